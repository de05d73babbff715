"""The wheel in an empty environment: what comes with it, what it holds, and a call made from there.

Builds and installs from the package registry, so it needs one; skipped with the reason where there is none.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from test_client_connection import addresses  # noqa: F401

ROOT = Path(__file__).parent.parent
ROOMS = {"adcascade", "index_builder", "retrieval", "ranking", "pipeline"}
MAX_BYTES = 40 * 2**20
NO_NETWORK = ("ConnectionError", "NewConnectionError", "resolve host", "Network is unreachable")
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
    if done.returncode and any(
        sign in done.stderr for sign in ("Connection", "resolve host", "Network is unreachable")
    ):
        pytest.skip(f"the package registry cannot be reached: {done.stderr.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    installed_or_skipped(pip(sys.executable, "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, ROOT))
    (made,) = folder.glob("adcascade-*.whl")
    return made


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory):
    """Python of an environment that holds the wheel and what it brings, and not even pip."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    installed_or_skipped(pip(sys.executable, "--python", python, "install", "--quiet", wheel))
    return python


def site_packages(python):
    (folder,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return folder


def test_the_wheel_holds_the_rooms_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == ROOMS
    for wanted in ("adcascade/py.typed", "adcascade/v1/types_pb2.pyi", "adcascade/reports/base.html.j2"):
        assert wanted in names
    assert not [name for name in names if "test" in Path(name).parts[0]]


def test_the_client_comes_with_grpcio_and_protobuf_alone_in_less_than_40_mib(empty):
    listed = installed_or_skipped(pip(sys.executable, "--python", empty, "list", "--format", "json"))
    came = {one["name"].lower().replace("_", "-") for one in json.loads(listed.stdout)}
    assert {"adcascade", "grpcio", "protobuf"} <= came <= {"adcascade", "grpcio", "protobuf", "typing-extensions"}
    size = sum(file.stat().st_size for file in site_packages(empty).rglob("*") if file.is_file())
    assert size < MAX_BYTES, f"{size / 2**20:.1f} MiB"


def test_a_call_is_made_from_the_empty_environment(empty, addresses, tmp_path):  # noqa: F811
    command = [empty, "-c", CALL, addresses["localhost:50050"]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, *rest = done.stdout.split()
    assert version
    assert rest == ["from-afar", "True", "True", "True"]


def test_the_main_job_runs_from_the_wheel(empty, tmp_path):
    """With the packages that the extras bring, but not with our own, of this environment."""
    packages = {**os.environ, "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    command = [empty.parent / "adcascade", "quickstart", "--smoke", "--json"]
    where = "import ranking, pipeline; print(ranking.__file__, pipeline.__file__)"
    found = subprocess.run([empty, "-c", where], capture_output=True, text=True, cwd=tmp_path, env=packages)
    assert all(Path(file).is_relative_to(site_packages(empty)) for file in found.stdout.split())
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=packages)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "adcascade-data" / "model" / "versions").iterdir())


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
