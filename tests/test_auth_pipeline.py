"""Who may see what, through real servers and the gateway: bids, and the gateway's own identity."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.users import UserProfile
from adcascade.serving.auth.authority import write_dev_certificates
from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.auth.tokens import TokensFile
from adcascade.serving.channel import open_channel
from adcascade.serving.errors import PermissionDenied, StartupError, Unauthenticated
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings
from adcascade.v1 import recommend_pb2, retrieval_pb2, types_pb2
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub, add_RecommendServiceServicer_to_server
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub, add_RetrievalServiceServicer_to_server
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import open_store as open_index_store
from index_builder.build import BuildOptions, build
from pipeline.client import AdPipeline
from pipeline.security import ServeSecurity, reachable
from pipeline.service import RecommendServicer
from pipeline.settings import GatewaySettings
from retrieval.__main__ import RetrieverLoader
from retrieval.service import RetrievalServicer
from retrieval.settings import RetrievalSettings

import pipeline.service as gateway_service  # isort: skip
import retrieval.service as retrieval_service  # isort: skip

BID = 7_654_321
USER = types_pb2.UserProfile(interests="espresso coffee")


@contextmanager
def serve(service, register, folder, settings_type=ServerSettings, **settings):
    server = Server(settings_type(tokens=folder / "tokens.txt", **settings))
    server.add(service.SERVICE_NAME, register, service.SCOPES)
    server.start()
    server.set_serving(True)
    try:
        yield server.address
    finally:
        server.stop(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auth")
    ads = [
        {"ad_id": f"a{number}", "title": f"espresso coffee {number}", "bid_micros": BID, "attributes": {"size": "L"}}
        for number in range(5)
    ]
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    build(folder / "ads.jsonl", folder / "index", load_encoder("hashing:64"), BuildOptions())
    file = TokensFile(folder / "tokens.txt")
    for name, scopes in {
        "gateway": ["retrieve", "bids:read"],
        "gateway-without-bids": ["retrieve"],
        "stranger": ["models:read"],
        "caller": ["recommend", "retrieve"],
        "advertiser": ["recommend", "retrieve", "bids:read"],
    }.items():
        (folder / name).write_text(file.create(name, scopes)[1])
    (folder / "nobody").write_text("adct_nobody")
    return folder


@pytest.fixture(scope="module")
def retrieval_address(folder):
    store = open_index_store(folder / "index")
    swap = HotSwap(store, RetrieverLoader(store, RetrievalSettings(index=folder / "index")))
    swap.start()
    servicer = RetrievalServicer(swap, batch_vectors=64)
    with serve(retrieval_service, partial(add_RetrievalServiceServicer_to_server, servicer), folder) as address:
        yield address
    servicer.close()
    swap.close()


def as_(folder, name, address):
    return open_channel(address, security=ClientSecurity(token_file=folder / name))


@contextmanager
def gateway(folder, retrieval_address, name):
    """A gateway that shows the token `name` to retrieval; ranking is not there."""
    settings = GatewaySettings(retrieval=retrieval_address, ranking="127.0.0.1:1", token_file=folder / name)
    with ExitStack() as stack:
        client = stack.enter_context(AdPipeline(settings.retrieval, settings.ranking, security=settings.security()))
        servicer = RecommendServicer(client, settings)
        register = partial(add_RecommendServiceServicer_to_server, servicer)
        yield stack.enter_context(serve(gateway_service, register, folder))


def recommended_ads(folder, name, address):
    with as_(folder, name, address) as channel:
        answer = RecommendServiceStub(channel).Recommend(recommend_pb2.RecommendRequest(user=USER, k=3), timeout=30)
    assert len(answer.recommendations) == 3
    return [item.ad for item in answer.recommendations]


def bids(ads):
    return {ad.bid_micros for ad in ads}


def test_retrieve_shows_bids_to_those_who_may_see_them_and_all_else_to_both(folder, retrieval_address):
    request = retrieval_pb2.RetrieveRequest(user=USER, k=3, include_ads=True)
    found = {}
    for name in ("caller", "advertiser"):
        with as_(folder, name, retrieval_address) as channel:
            answer = RetrievalServiceStub(channel).Retrieve(request, timeout=30)
            found[name] = [candidate.ad for candidate in answer.candidates]
    assert bids(found["advertiser"]) == {BID}
    assert bids(found["caller"]) == {0}
    for ad in found["advertiser"]:
        ad.ClearField("bid_micros")
    assert found["advertiser"] == found["caller"]
    assert found["caller"][0].attributes == {"size": "L"}


def test_no_reply_of_any_method_holds_a_bid_for_those_who_may_not_see_it(folder, retrieval_address):
    """Each reply, of each method of the two services, by its bytes."""
    varint = types_pb2.Ad(bid_micros=BID).SerializeToString()
    asked = {
        "Retrieve": retrieval_pb2.RetrieveRequest(user=USER, k=3, include_ads=True),
        "EmbedUser": retrieval_pb2.EmbedUserRequest(user=USER),
    }
    if hasattr(retrieval_pb2, "GetAdsRequest"):
        asked["GetAds"] = retrieval_pb2.GetAdsRequest(ad_ids=["a0", "a1"])
    needed = {name for name, scope in retrieval_service.SCOPES.items() if scope == "retrieve"}
    assert set(asked) == needed  # a new method that this scope opens is asked here, too
    for name, hidden in (("caller", True), ("advertiser", False)):
        with as_(folder, name, retrieval_address) as channel:
            replies = {
                method: channel.unary_unary(f"/{retrieval_service.SERVICE_NAME}/{method}")(
                    request.SerializeToString(), timeout=30
                )
                for method, request in asked.items()
            }
        assert {method for method, reply in replies.items() if varint in reply} == (
            set() if hidden else set(asked) - {"EmbedUser"}
        )


def test_recommend_shows_bids_to_those_who_may_see_them_if_the_gateway_itself_may(folder, retrieval_address):
    with gateway(folder, retrieval_address, "gateway") as address:
        assert bids(recommended_ads(folder, "advertiser", address)) == {BID}
        assert bids(recommended_ads(folder, "caller", address)) == {0}
    with gateway(folder, retrieval_address, "gateway-without-bids") as address:
        assert bids(recommended_ads(folder, "advertiser", address)) == {0}


@pytest.mark.parametrize("name", ["nobody", "stranger"])
def test_a_gateway_that_retrieval_does_not_let_in_does_not_blame_its_caller(folder, retrieval_address, name):
    with gateway(folder, retrieval_address, name) as address, as_(folder, "caller", address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            RecommendServiceStub(channel).Recommend(recommend_pb2.RecommendRequest(user=USER, k=3), timeout=30)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "does not let it in" in refused.value.details()


def test_the_client_says_who_was_refused(folder, retrieval_address):
    user = UserProfile(interests="espresso coffee")
    for name, error in (("nobody", Unauthenticated), ("stranger", PermissionDenied)):
        security = ClientSecurity(token_file=folder / name)
        with AdPipeline(retrieval_address, "127.0.0.1:1", security=security) as client, pytest.raises(error):
            client.recommend(user, k=3)


# --- adcascade serve ---


def test_serve_says_what_is_missing_before_it_starts_anything(tmp_path):
    write_dev_certificates(tmp_path)
    tls = ServeSecurity(tls_certificate=tmp_path / "server.pem", tls_key=tmp_path / "server.key")
    mtls = replace(
        tls,
        ca_certificate=tmp_path / "ca.pem",
        client_ca_certificate=tmp_path / "ca.pem",
        client_certificates=tmp_path / "certificates.txt",
    )
    TokensFile(tmp_path / "tokens.txt").create("a", ["rank"])
    for security, host, message in (
        (ServeSecurity(), "0.0.0.0", "nobody would be asked"),
        (tls, "127.0.0.1", "--ca-certificate"),
        (replace(ServeSecurity(), ca_certificate=tmp_path / "ca.pem"), "127.0.0.1", "servers with TLS"),
        (mtls, "127.0.0.1", "ask the gateway for a certificate"),
        (ServeSecurity(tokens=tmp_path / "tokens.txt"), "127.0.0.1", "ask the gateway who it is"),
        (replace(mtls, certificate=tmp_path / "gateway.pem"), "127.0.0.1", "needs its key"),
        (ServeSecurity(tokens=tmp_path / "none"), "127.0.0.1", "none"),
    ):
        with pytest.raises(StartupError, match=message):
            security.check_servers(host)
    ServeSecurity().check_servers("127.0.0.1")
    ServeSecurity(insecure=True).check_servers("0.0.0.0")
    replace(mtls, certificate=tmp_path / "gateway.pem", key=tmp_path / "gateway.key").check_servers("0.0.0.0")


def test_servers_on_all_interfaces_are_asked_on_loopback():
    assert [reachable(one) for one in ("0.0.0.0:5", "[::]:5", "10.0.0.1:5", "localhost:5")] == [
        "127.0.0.1:5",
        "[::1]:5",
        "10.0.0.1:5",
        "localhost:5",
    ]


@pytest.mark.slow
def test_serve_and_recommend_with_mutual_tls_from_end_to_end(world, tmp_path):
    write_dev_certificates(tmp_path / "certs")
    certs = tmp_path / "certs"
    adcascade = [sys.executable, "-m", "pipeline.cli"]
    server_flags = {
        "tls-certificate": "server.pem",
        "tls-key": "server.key",
        "client-ca-certificate": "ca.pem",
        "client-certificates": "certificates.txt",
        "ca-certificate": "ca.pem",
        "certificate": "gateway.pem",
        "key": "gateway.key",
    }
    flags = [word for name, file in server_flags.items() for word in (f"--{name}", str(certs / file))]
    ports = ["--port", "0", "--retrieval-port", "0", "--ranking-port", "0", "--logs", str(tmp_path / "logs")]
    command = [*adcascade, "serve", "--index", str(world.index), "--model", str(world.model), *ports, *flags, "--json"]
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            addresses = json.loads(process.stdout.readline())
            recommend = [*adcascade, "recommend", "--interests", "espresso beans", "--k", "3", "--json"]
            recommend += ["--retrieval", addresses["retrieval"], "--ranking", addresses["ranking"]]
            mine = [
                f"--ca-certificate={certs}/ca.pem",
                f"--certificate={certs}/client.pem",
                f"--key={certs}/client.key",
            ]
            done = subprocess.run([*recommend, *mine], capture_output=True, timeout=120, env=environment, check=False)
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            assert len(answer["recommendations"]) == 3
            assert not answer["degraded"]
            stranger = subprocess.run(recommend, capture_output=True, timeout=120, env=environment, check=False)
            assert stranger.returncode == 2
            with open_channel(
                addresses["gateway"],
                security=ClientSecurity(certs / "ca.pem", certs / "client.pem", certs / "client.key"),
            ) as channel:
                reply = RecommendServiceStub(channel).Recommend(recommend_pb2.RecommendRequest(user=USER, k=3))
                assert len(reply.recommendations) == 3
                assert not reply.degraded
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    log = Path(tmp_path / "logs" / "retrieval.log").read_text()
    assert "as certificate:spiffe://adcascade.dev/gateway" in log
    assert "as certificate:spiffe://adcascade.dev/client" in log
    assert "espresso" not in log
