"""What a command says where the extra that it needs is not installed."""

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from adcascade.terminal.extras import EXTRA_OF

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Hides modules as if they were not installed, and runs a module as `python -m` does.
HIDING = """
import importlib.abc, runpy, sys
hidden, module, sys.argv = set(sys.argv[1].split(",")), sys.argv[2], ["adcascade", *sys.argv[3:]]
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else find_spec(name, package)
sys.meta_path.insert(0, Hide())
if module == "adcascade":
    from pipeline.entry import main
    main()
else:
    runpy.run_module(module, run_name="__main__")
"""


def run_without(hidden, module, *arguments):
    command = [sys.executable, "-c", HIDING, ",".join(hidden), module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def names(requirements):
    return {one.partition(">")[0].partition("=")[0].lower() for one in requirements if not one.startswith("adcascade[")}


def test_every_package_of_an_extra_is_known_by_its_module():
    modules = packages_distributions()
    known = {}
    for module, extra in EXTRA_OF.items():
        for one in modules.get(module, ()):
            known[one.lower().replace("_", "-")] = extra
    extras = PROJECT["optional-dependencies"]
    wanted = {
        "serve": names(extras["core"]) | {"faiss-cpu"},
        "train": names(extras["train"]),
        "fast": names(extras["fast"]),
        "bench": names(extras["bench"]),
    }
    for extra, packages in wanted.items():
        assert {package: known.get(package) for package in packages} == dict.fromkeys(packages, extra)


def test_the_base_install_is_the_client_alone():
    assert names(PROJECT["dependencies"]) == {"grpcio", "protobuf"}


@pytest.mark.parametrize("module", ["adcascade", "pipeline", "retrieval", "ranking", "index_builder"])
def test_a_command_without_the_packages_of_servers_says_so_in_a_line(module):
    serve = [name for name, extra in EXTRA_OF.items() if extra == "serve"]
    done = run_without(serve, module, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this needs bm25s, which is not installed: pip install 'adcascade[serve]'\n"


def test_a_command_without_benchmarks_says_where_they_are():
    done = run_without(["benchmarks"], "adcascade", "bench", "rank", "--rounds", "1", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: adcascade bench runs from a checkout of the repository (make install), not from the wheel\n"
    )
    shown = run_without(["benchmarks"], "adcascade", "--help")
    assert shown.returncode == 0
    assert "Runs from a checkout" in shown.stdout


def test_a_training_without_its_extra_says_so_in_a_line(tmp_path):
    """Of a package that nothing asks for by name before it is imported."""
    code = (
        "from adcascade.terminal.exits import clean_exit\n"
        "with clean_exit():\n    raise ModuleNotFoundError('No module named peft', name='peft.tuners')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: this needs peft, which is not installed: pip install 'adcascade[train]'\n"
    code = code.replace("peft", "adcascade.recrods")
    mistake = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert mistake.returncode == 1
    assert "Traceback" in mistake.stderr
