"""The wire contract: its text, the code generated from it, and the runtime that this code asks for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from packaging.requirements import Requirement
from packaging.version import Version

from adcascade.v1 import events_pb2, ranking_pb2, recommend_pb2, retrieval_pb2, types_pb2

ROOT = Path(__file__).parent.parent
PROTOS = ROOT / "protos"
SOURCES = sorted(PROTOS.glob("adcascade/v1/*.proto"))
GENERATED = sorted(
    path for path in (ROOT / "adcascade" / "v1").iterdir() if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)
)
MODULES = (types_pb2, retrieval_pb2, ranking_pb2, recommend_pb2, events_pb2)

# A field of a message or a value of an enum, up to its semicolon; what follows is the comment.
FIELD = re.compile(
    r"^\s*(?:(?:repeated|optional)\s+)?(?:map<[\w., ]+>\s+|[\w.]+\s+)?(?P<name>\w+)\s*=\s*\d+;(?P<rest>.*)"
)


def name_of(path: Path) -> str:
    return path.name


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make protos` would write, in a folder of its own."""
    out = tmp_path_factory.mktemp("generated")
    plugins = Path(sys.executable).parent
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos"]
        + [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        + [f"--plugin={name}={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
        + [str(source.relative_to(PROTOS)) for source in SOURCES],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return out / "adcascade" / "v1"


def test_every_proto_has_its_generated_code_and_nothing_else_is_left_over(regenerated):
    written = sorted(path.name for path in regenerated.iterdir())
    assert written == [path.name for path in GENERATED], "run make protos"
    assert len(written) == 4 * len(SOURCES)


@pytest.mark.parametrize("committed", GENERATED, ids=name_of)
def test_the_generated_code_is_what_make_protos_writes(regenerated, committed):
    assert (regenerated / committed.name).read_bytes() == committed.read_bytes(), "run make protos"


def uncommented(source: str) -> list[str]:
    """Names of the fields and enum values without a comment behind them or on the line above."""
    lines = source.splitlines()
    found = [(number, match) for number, line in enumerate(lines) if (match := FIELD.match(line))]
    return [
        match["name"]
        for number, match in found
        if not match["rest"].strip().startswith("//") and not lines[number - 1].strip().startswith("//")
    ]


def fields_in(source: str) -> list[str]:
    return sorted(match["name"] for line in source.splitlines() if (match := FIELD.match(line)))


def fields_of(file: FileDescriptor) -> list[str]:
    messages = [field.name for message in file.message_types_by_name.values() for field in message.fields]
    return sorted(messages + [value.name for enum in file.enum_types_by_name.values() for value in enum.values])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.DESCRIPTOR.name)
def test_every_field_has_a_comment(module):
    source = (PROTOS / module.DESCRIPTOR.name).read_text()
    assert fields_in(source) == fields_of(module.DESCRIPTOR)  # else the pattern overlooks some
    assert uncommented(source) == []


def test_a_field_without_a_comment_would_be_noticed():
    message = "message M {\n  string a = 1;  // Why.\n  map<string, int64> b = 2;\n  // How.\n  repeated x.Y c = 3;\n}"
    assert uncommented(message) == ["b"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.DESCRIPTOR.name)
def test_the_package_is_adcascade_v1(module):
    assert module.DESCRIPTOR.package == "adcascade.v1"


def test_every_proto_is_among_the_modules_tested_here():
    assert sorted(module.DESCRIPTOR.name for module in MODULES) == [
        str(source.relative_to(PROTOS)) for source in SOURCES
    ]


def test_the_services_and_their_methods():
    services = [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]
    assert {service.full_name: [method.name for method in service.methods] for service in services} == {
        "adcascade.v1.RetrievalService": ["Retrieve", "EmbedUser", "GetAds", "GetIndex"],
        "adcascade.v1.RankingService": ["Rank", "GetModel"],
        "adcascade.v1.RecommendService": ["Recommend"],
        "adcascade.v1.EventService": [
            "Record",
            "RecordStream",
            "GetUser",
            "ExportUser",
            "DeleteUser",
            "GetCounters",
            "Tail",
        ],
    }


def lowest_admitted(package: str) -> Version:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = [found for text in project["dependencies"] if (found := Requirement(text)).name == package]
    (bound,) = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
    return Version(bound)


@pytest.mark.parametrize("path", [path for path in GENERATED if path.name.endswith("_pb2.py")], ids=name_of)
def test_the_lowest_protobuf_admitted_is_the_one_the_generated_code_asks_for(path):
    call = re.search(r"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+),\s*''", path.read_text())
    assert call is not None
    assert Version(".".join(call.groups())) == lowest_admitted("protobuf") == Version("6.31.1")


@pytest.mark.parametrize("path", [path for path in GENERATED if path.name.endswith("_pb2_grpc.py")], ids=name_of)
def test_the_lowest_grpcio_admitted_runs_the_generated_code(path):
    version = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", path.read_text())
    assert version is not None
    assert Version(version[1]) <= lowest_admitted("grpcio")
