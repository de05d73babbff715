"""Nothing of ours, and no library that it uses, talks to another host or writes into the home directory.

Each command runs as a process of its own in which looking up or reaching another host fails and is written down.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_world_files

ROOT = Path(__file__).parent.parent
# What a caller's environment may say that would make libraries keep quiet by themselves.
QUIETENING = (
    "CI",
    "TF_BUILD",
    "JENKINS_URL",
    "NNCF_",
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "DO_NOT_TRACK",
    "MPL",
    "XDG_",
)


class Confined:
    """Starts Python without another host and with an empty home; says what was tried."""

    def __init__(self, folder: Path) -> None:
        self.home, self._record = folder / "home", folder / "tried.txt"
        self.home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(QUIETENING)}
        self.environment = kept | {
            "HOME": str(self.home),
            "CONFINED_RECORD": str(self._record),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "confined"), str(ROOT)]),
            "COLUMNS": "120",
        }

    def run(self, *arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self) -> str:
        return self._record.read_text() if self._record.exists() else ""


@pytest.fixture
def confined(tmp_path):
    return Confined(tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import urllib.request; urllib.request.urlopen('http://tracker.invalid')",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import pathlib; (pathlib.Path.home() / 'id').write_text('x')",
        "import pathlib; (pathlib.Path.home() / 'folder').mkdir()",
    ],
)
def test_the_watch_sees_what_it_is_there_for(confined, code):
    subprocess.run([sys.executable, "-c", code], env=confined.environment, capture_output=True, check=False)
    assert confined.tried()


def test_the_watch_lets_this_host_be_reached(confined):
    confined.run(
        "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    )
    assert confined.tried() == ""


@pytest.mark.slow
def test_no_command_talks_to_another_host_or_writes_into_the_home_directory(confined, tiny_bert, tmp_path):
    pytest.importorskip("nncf")
    write_world_files(tmp_path)
    index, model = tmp_path / "index", tmp_path / "model"
    files = ["--ads", tmp_path / "ads.jsonl", "--clicks", tmp_path / "clicks.csv"]
    cli = ["-m", "pipeline.cli"]
    confined.run(*cli, "build", *files[:2], "--out", index, "--encoder", tiny_bert, "--engine", "openvino")
    text = [
        "--max-user-tokens",
        48,
        "--max-ad-tokens",
        24,
        "--epochs",
        0.1,
        "--behaviour-epochs",
        1,
        "--behaviour-min-steps",
        5,
    ]
    # So that the text layers stay, and are exported.
    how = [*text, "--min-text-gain", 0, "--trees", "none", "--baselines", "none"]
    trained = json.loads(confined.run(*cli, "train", *files, "--out", model, "--base", tiny_bert, *how, "--json"))
    exported = json.loads(confined.run(*cli, "export", "--model", model, *files, "--json"))
    assert exported["exports"], "nothing was exported: the test does not show what it is for"
    report = model / "versions" / trained["version"] / "report.html"
    assert "<svg" in report.read_text()
    self_test = SERVE_AND_ASK.format(index=str(index), model=str(model), logs=str(tmp_path / "logs"))
    assert json.loads(confined.run("-c", self_test)) == [3, ""]
    assert confined.tried() == ""
    assert list(confined.home.iterdir()) == []


SERVE_AND_ASK = """
import json, pathlib
from pipeline.client import AdPipeline
from pipeline.processes import running
from adcascade.records.users import UserProfile
stages = [("retrieval", ["--index", {index!r}, "--port", "0"]), ("ranking", ["--model", {model!r}, "--port", "0"])]
with running(stages, pathlib.Path({logs!r})) as servers:
    with AdPipeline(*(server.wait_until_serving() for server in servers)) as pipeline:
        answer = pipeline.recommend(UserProfile(interests="espresso"), k=3, timeout_seconds=60)
print(json.dumps([len(answer.items), answer.degraded_reason]))
"""

AS_A_LIBRARY = """
import sys
from adcascade.vectors.encoder import SentenceTransformerEncoder
from adcascade.vectors.openvino_encoder import OpenVinoEncoder
OpenVinoEncoder(SentenceTransformerEncoder(sys.argv[1], "cpu")).encode(["an ad"])
"""


def test_a_module_used_as_a_library_is_as_quiet(confined, tiny_bert):
    pytest.importorskip("openvino")
    check = "assert sys.modules['huggingface_hub.constants'].HF_HUB_DISABLE_TELEMETRY"
    confined.run("-c", "\n".join(["import huggingface_hub.constants", AS_A_LIBRARY, check]), tiny_bert)
    assert confined.tried() == ""
    assert list(confined.home.iterdir()) == []
