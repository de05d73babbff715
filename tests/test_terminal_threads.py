"""Threads of the numeric libraries sleep while they wait for each other, in every command and server."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRIES = ["ranking/__main__.py", "index_builder/__main__.py", "pipeline/__main__.py", "retrieval/__main__.py"]
SAYS = (
    "from adcascade.terminal.threads import share_cores; share_cores(); import os; print(os.environ['OMP_WAIT_POLICY'])"
)


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_unless_the_environment_says_otherwise(given, found):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    said = subprocess.run([sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == found


@pytest.mark.parametrize("path", ENTRIES)
def test_it_is_said_before_a_library_reads_it(path):
    body = ast.parse((ROOT / path).read_text("utf-8")).body
    calls = [number for number, node in enumerate(body) if ast.unparse(node) == "share_cores()"]
    before = [node for node in body[: calls[0]] if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {ast.unparse(node).split()[1] for node in before} == {
        "adcascade.terminal.extras",
        "adcascade.terminal.threads",
    }


def test_a_command_says_it_before_a_library_reads_it():
    code = """
import os, sys
import pipeline.cli
print([name for name in ("torch", "faiss", "lightgbm", "sklearn") if name in sys.modules])
sys.argv = ["adcascade", "train", "--help"]
try:
    pipeline.cli.main()
finally:
    print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.strip().splitlines()
    assert (lines[0], lines[-1]) == ("[]", "PASSIVE")
