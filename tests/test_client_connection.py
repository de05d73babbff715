"""The client's connection: trying again, proxies, TLS, tokens; its examples; and what importing it loads."""

import doctest
import importlib
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from auth_files import write_pair
from conftest import serving_server
from test_client import OK, USER, Scripted, ask, scripted  # noqa: F401 (ask is a fixture)
from test_pipeline_client import ranking_on, retrieval_on
from test_serving_channel import proxy  # noqa: F401

import adcascade
from adcascade import Client
from adcascade.client import asynchronous, blocking, errors, values
from adcascade.serving import errors as served
from adcascade.serving.auth.authority import URI_PREFIX, DevAuthority
from adcascade.serving.auth.tokens import TokensFile
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings
from adcascade.v1.recommend_pb2_grpc import add_RecommendServiceServicer_to_server
from pipeline.client import AdPipeline
from pipeline.service import SERVICE_NAME, RecommendServicer
from pipeline.settings import GatewaySettings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def addresses(world):
    """A pipeline's three servers, by the address that the examples give them."""
    with (
        retrieval_on(world.index) as retrieval,
        ranking_on(world.model, world.index) as ranking,
        AdPipeline(retrieval, ranking) as pipeline,
    ):
        servicer = RecommendServicer(pipeline, GatewaySettings(candidates=30))
        register = partial(add_RecommendServiceServicer_to_server, servicer)
        with serving_server(SERVICE_NAME, register) as (server, _):
            yield {"localhost:50050": server.address, "localhost:50051": retrieval, "localhost:50052": ranking}


@pytest.mark.parametrize("module", [blocking, asynchronous, errors, values])
def test_the_examples_of_the_docstrings_run(addresses, module):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = [one for one in doctest.DocTestFinder().find(module) if one.examples]
    assert found
    for one in found:
        one.globs = {}  # what an example needs, it imports
        for example in one.examples:
            for shown, real in addresses.items():
                example.source = example.source.replace(shown, real)
        said = []
        assert runner.run(one, out=said.append).failed == 0, "".join(said)


# --- trying again ---


def test_a_server_that_is_unavailable_once_is_asked_again(ask):  # noqa: F811
    with scripted(served.Unavailable("loading"), OK) as (address, server):
        assert ask(address, "recommend", USER).index_version == "v1"
    assert len(server.requests) == 2
    assert len({metadata["x-request-id"] for metadata in server.metadata}) == 1


def test_a_server_that_is_down_and_comes_back_is_asked_again(ask, free_port):  # noqa: F811
    server = Server(ServerSettings(port=free_port))
    server.add(SERVICE_NAME, partial(add_RecommendServiceServicer_to_server, Scripted(OK)))
    started = threading.Timer(0.5, server.start)
    started.start()
    try:
        assert ask(f"localhost:{free_port}", "recommend", USER, timeout_seconds=20).index_version == "v1"
    finally:
        started.join()
        server.stop(0)


def test_after_the_last_attempt_the_error_says_where_nobody_answered(ask, free_port):  # noqa: F811
    with pytest.raises(adcascade.Unavailable, match=rf"Is a gateway .* running at localhost:{free_port}\?"):
        ask(f"localhost:{free_port}", "recommend", USER, options={"attempts": 2})


@pytest.mark.parametrize("attempts", [1, 3])
def test_there_are_as_many_attempts_as_were_allowed(ask, attempts):  # noqa: F811
    unready = served.Unavailable("loading")
    with scripted(unready) as (address, server), pytest.raises(adcascade.Unavailable, match="loading"):
        ask(address, "recommend", USER, options={"attempts": attempts})
    assert len(server.requests) == attempts


def test_attempts_end_with_the_time_of_the_call(ask):  # noqa: F811
    with scripted(served.Unavailable("loading")) as (address, server):
        started = time.monotonic()
        with pytest.raises(adcascade.Unavailable):
            ask(address, "recommend", USER, timeout_seconds=0.5, options={"attempts": 99})
        assert time.monotonic() - started < 1.5
    assert 2 <= len(server.requests) < 99


@pytest.mark.parametrize("error", [served.ResourceExhausted, served.InvalidArgument, served.ServiceError])
def test_nothing_else_is_tried_again(ask, error):  # noqa: F811
    with scripted(error("no"), OK) as (address, server), pytest.raises(adcascade.AdCascadeError):
        ask(address, "recommend", USER)
    assert len(server.requests) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_reached_without_the_proxy(ask, proxy, host):  # noqa: F811
    with scripted(OK) as (address, _):
        ask(f"{host}:{address.rpartition(':')[2]}", "recommend", USER)
    assert proxy == []


# --- who calls whom ---


def test_tls_and_an_own_certificate(ask, tmp_path):  # noqa: F811
    authority, other = DevAuthority(), DevAuthority("another")
    certificate, key = write_pair(tmp_path, "server", authority.server())
    own, own_key = write_pair(tmp_path, "shop", authority.client("shop"))
    for name, one in (("ca", authority), ("other", other)):
        (tmp_path / f"{name}.pem").write_bytes(one.certificate)
    (tmp_path / "names").write_text(f"uri:{URI_PREFIX}shop scopes=recommend\n")
    settings = {
        "tls_certificate": certificate,
        "tls_key": key,
        "client_ca_certificate": tmp_path / "ca.pem",
        "client_certificates": tmp_path / "names",
    }
    server = Server(ServerSettings(port=0, **settings))
    register = partial(add_RecommendServiceServicer_to_server, Scripted(OK))
    server.add(SERVICE_NAME, register, {"Recommend": "recommend"})
    server.start()
    address = f"localhost:{server.address.rpartition(':')[2]}"
    known = tmp_path / "ca.pem"
    mine = {"certificate_file": own, "key_file": own_key, "attempts": 1}
    try:
        assert ask(address, "recommend", USER, options={"ca_file": known, **mine}).index_version == "v1"
        for options in ({"ca_file": tmp_path / "other.pem", **mine}, {"ca_file": known, "attempts": 1}, {}):
            with pytest.raises(adcascade.Unavailable):
                ask(address, "recommend", USER, timeout_seconds=3, options=options)
    finally:
        server.stop(0)


def test_a_token_is_shown_and_read_again_when_its_file_changes(tmp_path):
    tokens, held = TokensFile(tmp_path / "tokens"), tmp_path / "token"
    good, narrow = tokens.create("shop", ["recommend"])[1], tokens.create("other", ["rank"])[1]
    server = Server(ServerSettings(port=0, tokens=tmp_path / "tokens"))
    register = partial(add_RecommendServiceServicer_to_server, Scripted(OK))
    server.add(SERVICE_NAME, register, {"Recommend": "recommend"})
    server.start()
    try:
        with Client(server.address) as nobody, pytest.raises(adcascade.Unauthenticated):
            nobody.recommend(USER)
        with Client(server.address, token=good) as shop:
            assert shop.recommend(USER).index_version == "v1"
        held.write_text(narrow + "\n")
        with Client(server.address, token_file=held) as client:
            with pytest.raises(adcascade.PermissionDenied):
                client.recommend(USER)
            held.write_text(good)
            assert client.recommend(USER).index_version == "v1"
            held.unlink()
            assert client.recommend(USER).index_version == "v1"
    finally:
        server.stop(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "t"}, "in the clear to example.org:443"),
        ({"token_file": "t"}, "in the clear to example.org:443"),
        ({"token": "t", "token_file": "t", "tls": True}, "not both"),
        ({"token": "two words", "tls": True}, "one word"),
        ({"server_name": "x"}, "needs TLS"),
        ({"certificate_file": "x", "tls": True}, "needs its key"),
        ({"ca_file": __file__}, "not PEM"),
        ({"attempts": 0}, "attempts must be 1 or more"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Client("example.org:443", **options)


def test_a_file_that_is_not_there_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", ca_file="/no/such/file")


# --- what is loaded ---


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names)


def test_adcascade_loads_nothing_before_one_of_its_names_is_used():
    nothing = loaded_by("pass")
    assert loaded_by("import adcascade") - nothing == {"adcascade"}
    assert not loaded_by("import adcascade.records.ads") & {"grpc", "torch"}


def test_the_client_loads_grpc_and_protobuf_alone():
    loaded = loaded_by("from adcascade import *") - loaded_by("import grpc, google.protobuf, grpc.aio")
    assert loaded == {"adcascade"}


def test_the_front_door_offers_all_that_the_client_gives_and_takes():
    for module in (values, errors):
        own = {name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__}
        assert {name for name in own if isinstance(getattr(module, name), type)} - {"Answer"} <= set(adcascade.__all__)
    assert all(getattr(adcascade, name) is not None for name in adcascade.__all__)
    assert set(adcascade.__all__) <= set(dir(adcascade))
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        adcascade.Klient  # noqa: B018
    assert importlib.import_module("adcascade.records")
