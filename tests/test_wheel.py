"""The packages: what they hold, and the wheel in environments of its own: a call, and what the pages tell to run.

Builds and installs from the package registry, so it needs one; skipped with the reason where there is none.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_client_connection import addresses  # noqa: F401
from test_other_callers import printed

ROOT = Path(__file__).parent.parent
ROOMS = {"adcascade", "index_builder", "retrieval", "ranking", "pipeline"}
MAX_BYTES = 40 * 2**20
NO_NETWORK = ("Connection", "resolve host", "Network is unreachable")
PYTHONS = ("3.11", "3.12", "3.13")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CALL = """
import sys
from adcascade import Client, Context, Event, User
user = User("u1", history=[Event("click", ad_id="running-3")])
with Client(sys.argv[1]) as client:
    answer = client.recommend(user, Context(device="phone"), k=3, request_id="from-afar")
print(answer.index_version, answer.request_id, *(0 < one.p_click < 1 for one in answer))
"""


def pip(python, *arguments):
    command = [python, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def installed_or_skipped(done):
    """Skips where the registry cannot be reached; any other failure is one."""
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode and any(sign in said for sign in NO_NETWORK):
        pytest.skip(f"the package registry cannot be reached: {said.splitlines()[-1][:200]}")
    assert done.returncode == 0, said[-3000:]
    return done


def build(folder, *arguments):
    """What `python -m build` makes of the project, in `folder`."""
    command = [sys.executable, "-m", "build", *arguments, "--outdir", str(folder), str(ROOT)]
    installed_or_skipped(subprocess.run(command, capture_output=True, text=True))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The wheel, and the source package that it was built from."""
    wheel, source = build(tmp_path_factory.mktemp("packages"))
    return wheel, source


@pytest.fixture(scope="module")
def wheel(packages):
    return packages[0]


@pytest.fixture(scope="module")
def unpacked(packages, tmp_path_factory):
    """The source package, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(packages[1]) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory):
    """Python of an environment that holds the wheel and what it brings, and not even pip."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    installed_or_skipped(pip(sys.executable, "--python", python, "install", "--quiet", wheel))
    return python


def interpreter(version):
    """The program of a Python of this version, such as "3.12"; skips where there is none."""
    program = shutil.which(f"python{version}")
    named = program and subprocess.run([program, "-V"], capture_output=True, text=True)
    if not named or named.returncode:  # pyenv has a program for every version, and says which ones are not chosen
        pytest.skip(f"no python{version} is on the PATH")
    return program


def site_packages(python):
    (folder,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return folder


def test_the_wheel_holds_the_rooms_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == ROOMS
    for wanted in ("adcascade/py.typed", "adcascade/v1/types_pb2.pyi", "adcascade/reports/base.html.j2"):
        assert wanted in names
    assert not [name for name in names if "test" in Path(name).parts[0]]


def test_the_wheel_holds_every_file_of_its_rooms(wheel):
    listed = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a checkout: {listed.stderr.strip()}")
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert there == set(listed.stdout.splitlines())


def test_the_source_package_makes_the_same_wheel_as_the_checkout(wheel, tmp_path):
    (direct,) = build(tmp_path, "--wheel")
    there, here = zipfile.ZipFile(wheel), zipfile.ZipFile(direct)
    assert there.namelist() == here.namelist()
    assert [name for name in here.namelist() if there.read(name) != here.read(name)] == []


def test_the_source_package_holds_what_its_pages_link_to(unpacked):
    command = [sys.executable, "-m", "benchmarks.links"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=unpacked, env=without_checkout())
    assert done.returncode == 0, done.stdout + done.stderr
    assert (unpacked / "protos" / "adcascade" / "v1" / "types.proto").exists()


def without_checkout():
    """The environment, but for what could put the checkout's packages before those of the wheel."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_client_comes_with_grpcio_and_protobuf_alone_in_less_than_40_mib(empty):
    listed = installed_or_skipped(pip(sys.executable, "--python", empty, "list", "--format", "json"))
    came = {one["name"].lower().replace("_", "-") for one in json.loads(listed.stdout)}
    assert {"adcascade", "grpcio", "protobuf"} <= came <= {"adcascade", "grpcio", "protobuf", "typing-extensions"}
    size = sum(file.stat().st_size for file in site_packages(empty).rglob("*") if file.is_file())
    assert size < MAX_BYTES, f"{size / 2**20:.1f} MiB"


@pytest.mark.parametrize("version", PYTHONS)
def test_a_call_is_made_from_an_empty_environment_of_every_python(wheel, version, addresses, tmp_path):  # noqa: F811
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([interpreter(version), "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    installed_or_skipped(pip(sys.executable, "--python", python, "install", "--quiet", wheel))
    command = [python, "-W", "error", "-c", CALL, addresses["localhost:50050"]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=without_checkout())
    assert done.returncode == 0, done.stderr
    version, *rest = done.stdout.split()
    assert version
    assert rest == ["from-afar", "True", "True", "True"]


@pytest.fixture(scope="module")
def equipped(wheel, tmp_path_factory):
    """Folder of the programs of an environment that was installed as the page says, the wheel for the checkout."""
    folder = tmp_path_factory.mktemp("equipped") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for line in printed("docs/quickstart.md", "Install without make", "", {}).splitlines():
        program, command, *rest = shlex.split(line, comments=True)
        assert (program, command) == ("pip", "install")
        wanted = [f"{wheel}{word[1:]}" if word.startswith(".") else word for word in rest if word != "-e"]
        quietly = ["--quiet", "-c", ROOT / "constraints.txt"]
        installed_or_skipped(pip(folder / "bin" / "python", command, *quietly, *wanted))
    return folder / "bin"


def run(programs, line, folder):
    """A line of a page in an environment, standard error to a file."""
    program, *rest = shlex.split(line, comments=True)
    where = {"cwd": folder, "env": without_checkout(), "text": True, "stdout": subprocess.PIPE}
    return subprocess.Popen([programs / program, *rest], stderr=(folder / "errors").open("w"), **where)


def finish(process, folder):
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, (folder / "errors").read_text()[-3000:]
    return said


@pytest.mark.timeout(1800)
def test_the_quickstart_runs_from_the_wheel(equipped, tmp_path):
    where = "import adcascade, pipeline, ranking; print(adcascade.__file__, pipeline.__file__, ranking.__file__)"
    found = finish(run(equipped, f"python -c {shlex.quote(where)}", tmp_path), tmp_path)
    assert all(Path(file).is_relative_to(equipped.parent) for file in found.split())
    finish(run(equipped, "adcascade quickstart --smoke --json", tmp_path), tmp_path)
    assert list((tmp_path / "adcascade-data" / "model" / "versions").iterdir())


@pytest.mark.timeout(1800)
def test_the_readmes_five_commands_run_from_the_wheel(equipped, tmp_path):
    """As they are printed, but for how long they train and on which ports they serve."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("node"))
    block = printed("README.md", "Bring your own data", "", {}).splitlines()
    towers, index, model, serve, recommend = (
        line.partition("#")[0].strip() for line in block if line.startswith("adcascade ")
    )
    finish(run(equipped, f"{towers} --epochs 2 --publish-anyway", tmp_path), tmp_path)
    finish(run(equipped, index, tmp_path), tmp_path)
    finish(run(equipped, f"{model} --max-minutes 0.2 --no-export", tmp_path), tmp_path)
    serving = run(equipped, f"{serve} --port 0 --retrieval-port 0 --ranking-port 0 --logs logs --json", tmp_path)
    try:
        first = serving.stdout.readline()
        assert first, (tmp_path / "errors").read_text()[-3000:]
        at = json.loads(first)
        asked = f"{recommend} --retrieval {at['retrieval']} --ranking {at['ranking']} --json"
        answer = json.loads(finish(run(equipped, asked, tmp_path), tmp_path))
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=60)
    assert len(answer["recommendations"]) == 5


@pytest.mark.parametrize("command", [["bin/adcascade", "serve"], ["bin/adcascade", "bench"], ["-m", "retrieval"]])
def test_a_command_says_there_which_extra_it_needs(empty, command, tmp_path):
    start = [empty] if command[0] == "-m" else []
    command = [str(empty.parent.parent / word) if "/" in word else word for word in command]
    done = subprocess.run([*start, *command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this needs bm25s, which is not installed: pip install 'adcascade[serve]'\n"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_client_resolves_for_every_python(wheel, python, tmp_path):
    only = ["--python-version", python, "--only-binary", ":all:", "--target", tmp_path]
    done = installed_or_skipped(
        pip(sys.executable, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *only, wheel)
    )
    resolved = {one["metadata"]["name"].lower() for one in json.loads(done.stdout)["install"]}
    assert {"adcascade", "grpcio", "protobuf"} <= resolved
