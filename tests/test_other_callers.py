"""Callers as the pages show them: Python, JavaScript from the protos alone, and grpcurl, against real servers."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import EXAMPLES, World, serving_server
from test_pipeline_client import ranking_on, retrieval_on

from adcascade.v1.recommend_pb2_grpc import add_RecommendServiceServicer_to_server
from adcascade.vectors.encoder import load_encoder
from index_builder.build import BuildOptions, build
from pipeline.client import AdPipeline
from pipeline.service import SERVICE_NAME, RecommendServicer
from pipeline.settings import GatewaySettings

ROOT = EXAMPLES.parent


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[dict[str, str]]:
    """Gateway, retrieval and ranking over the example ads, each by the address that the pages print for it."""
    index = tmp_path_factory.mktemp("callers") / "index"
    build(EXAMPLES / "ads.jsonl", index, load_encoder("hashing:64"), BuildOptions())
    with (
        retrieval_on(index) as retrieval,
        ranking_on(world.model, index) as ranking,
        AdPipeline(retrieval, ranking) as both,
    ):
        register = partial(add_RecommendServiceServicer_to_server, RecommendServicer(both, GatewaySettings()))
        with serving_server(SERVICE_NAME, register) as (server, _):
            yield {"localhost:50050": server.address, "localhost:50051": retrieval, "localhost:50052": ranking}


def printed(page: str, heading: str, language: str, addresses: dict[str, str]) -> str:
    """The first block of code below a heading, with the addresses of running servers."""
    section = (ROOT / page).read_text().split(f"## {heading}\n")[1]
    code = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[0]
    for there, here in addresses.items():
        code = code.replace(there, here)
    return code


def test_the_readmes_call_prints_ads_with_probabilities(addresses, capsys):
    exec(printed("README.md", "Call it", "python", addresses), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(0 < float(line.rsplit(maxsplit=1)[1]) < 1 for line in lines)


def test_the_call_without_a_gateway_prints_ads_with_probabilities(addresses, capsys):
    exec(printed("docs/api.md", "From Python", "python", addresses), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(0 < float(line.split("  ")[0]) < 1 for line in lines)


def test_every_line_for_grpcurl_is_answered(addresses):
    if shutil.which("grpcurl") is None:
        pytest.skip("needs grpcurl on the PATH")
    lines = printed("docs/api.md", "From a shell", "", addresses).splitlines()
    answers = [subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=30) for line in lines]
    assert [answer.returncode for answer in answers] == [0] * 5, [answer.stderr for answer in answers]
    listed, recommended, retrieved, ranked, health = (answer.stdout for answer in answers)
    assert "adcascade.v1.RecommendService" in listed
    assert len(re.findall('"p_?click"', recommended, re.IGNORECASE)) == 5  # versions of grpcurl write names differently
    assert len(re.findall('"ad_?id"', retrieved, re.IGNORECASE)) == 10
    assert len(re.findall('"p_?click"', ranked, re.IGNORECASE)) == 2
    assert "SERVING" in health


@pytest.fixture(scope="module")
def node_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example for Node with its two packages, beside a copy of the protos and nothing else of the project."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} on the PATH")
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "protos", root / "protos")
    folder = root / "examples" / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=1"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not reach its registry in time")
    if installed.returncode:
        pytest.skip(f"npm cannot install the two packages: {installed.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow
def test_a_client_in_javascript_made_from_the_protos_alone_is_answered(addresses, node_example):
    command = ["node", "recommend.js", addresses["localhost:50050"], "espresso at home"]
    ran = subprocess.run(command, cwd=node_example, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 5
    assert all(0 < float(line.split("  ")[0]) < 1 for line in lines)
    assert ran.stderr == ""


@pytest.mark.slow
def test_a_client_in_javascript_says_what_is_wrong(node_example, free_port):
    command = ["node", "recommend.js", f"localhost:{free_port}"]
    ran = subprocess.run(command, cwd=node_example, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert ran.stderr.startswith(("UNAVAILABLE: ", "DEADLINE_EXCEEDED: "))
