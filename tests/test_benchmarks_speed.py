"""The speed harness: contenders take turns, texts are made up, results are kept and shown."""

import re
import sys
import threading
import time
from collections import Counter
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import serving_server
from rich.console import Console
from typer.testing import CliRunner

from adcascade.catalog.ad_text import embedding_text
from adcascade.records.ads import Ad, read_catalog
from adcascade.records.clicks import read_clicks
from adcascade.records.errors import InputError
from adcascade.v1 import recommend_pb2, recommend_pb2_grpc
from adcascade.vectors.encoder import HashingEncoder
from benchmarks.ad_log import AdLogOptions, make_ad_log
from benchmarks.speed.against import Compared, checked_out, compare
from benchmarks.speed.attack import PARTS, bench_attack
from benchmarks.speed.attack_base import AttackSettings
from benchmarks.speed.catalog import KeptVectors, made_index
from benchmarks.speed.commands import app
from benchmarks.speed.display import tables
from benchmarks.speed.gateway import GatewayBenchSettings, bench_gateway
from benchmarks.speed.hostile import COSTLY, floods, ready_made
from benchmarks.speed.idle import held
from benchmarks.speed.interleaved_timing import Contender, Spread, Turns, interleave
from benchmarks.speed.load import LoadSettings, load_of
from benchmarks.speed.machine import Machine
from benchmarks.speed.memory import own_mib, peak_mib
from benchmarks.speed.open_loop import Answered, arrive, one_by_one
from benchmarks.speed.page import write_page, write_plot
from benchmarks.speed.peers import PeerMissing, peer_python
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.soak import SoakSettings, soak_of
from benchmarks.speed.stages import cache_flags, published, serving_at
from benchmarks.speed.synthetic_users import made_users, user_of_call
from benchmarks.speed.texts import recombined_ads
from benchmarks.speed.train_behaviour import BehaviourSpeed, behaviour_speed
from benchmarks.speed.train_text import OURS as TEXT_OURS
from benchmarks.speed.train_text import TextSpeed, text_speed
from benchmarks.speed.train_whole import WholeTraining, verdicts
from benchmarks.speed.vectors import made_vectors
from index_builder.artifact import load_version, open_store

MACHINE = Machine(
    processor="A <fast> one",
    cores=2,
    threads=2,
    memory_gib=24,
    system="Linux",
    python="3.11",
    packages={"torch": "2"},
    instructions=["avx2"],
    gemm={"float32": 100.0},
    memory_bandwidth=10.0,
)
SLOW = Entry(case="100 ads", contender="slow", milliseconds=Spread(1000, 900, 1100))
FAST = Entry(case="100 ads", contender="ours", milliseconds=Spread(10, 9, 12), times_faster=Spread(98, 80, 120))


VERDICT = TargetResult(
    what="100 ads", target="at least 99 times", reached="98 times", met=False, why="the floor is 9 ms"
)


def result(**changes):
    values = {"bench": "rank", "machine": MACHINE, "settings": {"rounds": 5}, "entries": [SLOW, FAST]}
    return BenchResult(**{**values, "verdicts": [VERDICT], "missing": {"a peer": "no wheel"}, **changes})


def test_contenders_take_turns_and_nobody_always_goes_first():
    calls, done = [], []
    contenders = [Contender(name, lambda name=name: calls.append(name)) for name in "abc"]
    turns = interleave(contenders, 3, progress=lambda *at: done.append(at))
    assert [sorted(calls[start : start + 3]) for start in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert {calls[start] for start in range(3, 12, 3)} == {"a", "b", "c"}
    assert all(len(turns.seconds[name]) == 3 for name in "abc")  # the first round warms up
    assert done == [(number, 12) for number in range(1, 13)]


def test_ratios_are_of_the_same_round():
    turns = Turns({"slow": [10.0, 20.0, 40.0], "fast": [1.0, 2.0, 2.0]})
    assert turns.times_faster("fast", "slow") == Spread(10.0, 10.0, 20.0)
    assert turns.milliseconds("fast") == Spread(2000.0, 1000.0, 2000.0)


def test_recombined_ads_differ_and_read_like_their_sources():
    sources = [Ad(f"ad-{number}", f"word{number} and word{number + 1}", f"body {number}") for number in range(30)]
    ads = list(recombined_ads(sources, 5000))
    assert len({(ad.title, ad.body) for ad in ads}) == len({ad.ad_id for ad in ads}) == 5000
    words = {word for ad in sources for word in ad.title.split()}
    assert all(set(ad.title.split()) <= words for ad in ads)
    assert ads[:50] == list(recombined_ads(sources, 50))
    assert ads[:50] != list(recombined_ads(sources, 50, seed=1))


def test_too_few_sources_are_refused():
    with pytest.raises(InputError, match="fewer than two"):
        next(recombined_ads([Ad("a", "one title")], 1))
    with pytest.raises(InputError, match="make no 1,000 different texts"):
        list(recombined_ads([Ad("a", "one"), Ad("b", "two")], 1000))


def test_results_come_back_as_they_were_kept(tmp_path):
    found = result()
    found.save(tmp_path / "deep" / "rank.json")
    assert BenchResult.load(tmp_path / "deep" / "rank.json") == found
    (tmp_path / "other.json").write_text('{"bench": "rank"}')
    for name, message in (("other.json", "no result of a benchmark"), ("none.json", "cannot read")):
        with pytest.raises(InputError, match=message):
            BenchResult.load(tmp_path / name)


def test_tables_show_targets_what_moved_and_what_is_missing():
    console = Console(width=160, record=True)
    then = FAST.model_copy(update={"milliseconds": Spread(33, 30, 40)})
    before = result(entries=[SLOW, then], verdicts=[VERDICT.model_copy(update={"reached": "30 times"})])
    console.print(tables(result(peers={"another": "1.2.3"}, remarks=["computing 9 ms"]), before))
    shown = console.export_text()
    for part in ("98.0 [80.0, 120.0]", "33.0", "-70%", "+0%", "30 times", "at least 99 times", "the floor is 9 ms"):
        assert part in shown
    for part in ("another 1.2.3", "computing 9 ms", "a peer: no wheel", "avx2"):
        assert part in shown


def test_the_page_and_the_plot(tmp_path):
    write_page(tmp_path / "rank.html", result())
    write_plot(tmp_path / "rank.png", result())
    page = (tmp_path / "rank.html").read_text()
    assert "<svg" in page
    assert "A &lt;fast&gt; one" in page
    assert "the floor is 9 ms" in page
    assert (tmp_path / "rank.png").read_bytes().startswith(b"\x89PNG")


def test_help_teaches():
    shown = CliRunner().invoke(app, ["rank", "--help"])
    assert "CrossEncoder.predict" in " ".join(shown.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "--backend", "nonsense"], "choose of auto, torch, openvino, openvino-int8"),
        (["retrieve", "--peers", "hnswlib,nonsense"], "there is no peer nonsense"),
        (["rank", "--compare", "missing.json"], "cannot read missing.json: No such file"),
        (["load", "--compare", "rank.json"], "is a result of bench rank, not of bench load"),
        (["attack", "--index", "rank.json"], "--index and --model go together"),
        (["load", "--out", "rank.json"], "cannot write into rank.json"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result().save(tmp_path / "rank.json")
    ran = CliRunner().invoke(app, arguments)
    assert isinstance(ran.exception, InputError)
    assert message in str(ran.exception)


class Call:
    """A gRPC future that is over after a while."""

    def __init__(self, seconds, status="OK", degraded=""):
        self._status, self._degraded = status, degraded
        self._callbacks, self._lock, self._over = [], threading.Lock(), False
        threading.Timer(seconds, self._end).start()

    def _end(self):
        with self._lock:
            self._over, waiting = True, list(self._callbacks)
        for callback in waiting:
            callback(self)

    def add_done_callback(self, callback):
        with self._lock:
            if not self._over:
                self._callbacks.append(callback)
                return
        callback(self)

    def code(self):
        return SimpleNamespace(name=self._status)

    def result(self):
        return SimpleNamespace(degraded_reason=self._degraded)


def test_calls_arrive_whether_or_not_others_are_answered():
    started = time.perf_counter()
    found = arrive(lambda: Call(0.5), rate=100, seconds=0.5)
    assert time.perf_counter() - started < 5  # one after the other they would take 25 seconds
    assert found.outcomes == {"OK": 50}
    assert 500 <= found.percentile(50) < 1500
    assert found.refused == 0


def test_what_is_refused_and_what_is_answered_without_ranking_is_told_apart():
    outcomes = cycle([{}, {"status": "RESOURCE_EXHAUSTED"}, {"degraded": "UNAVAILABLE"}])
    found = arrive(lambda: Call(0.01, **next(outcomes)), rate=200, seconds=0.3)
    assert found.outcomes == {"OK": 20, "RESOURCE_EXHAUSTED": 20, "DEGRADED": 20}
    assert len(found.milliseconds) == 40
    assert found.refused == pytest.approx(1 / 3)
    assert found.shed == pytest.approx(2 / 3)
    nothing = arrive(lambda: Call(0.0, "UNAVAILABLE"), rate=100, seconds=0.05)
    assert nothing.percentile(99) == float("inf")
    assert nothing.refused == 1


def test_calls_one_by_one_do_not_wait_for_each_other():
    busy = []

    def start():
        assert not busy
        busy.append(True)
        call = Call(0.02)
        call.add_done_callback(lambda _: busy.clear())
        return call

    found = one_by_one(start, 10)
    assert found.outcomes == {"OK": 10}
    assert 20 <= found.percentile(50) < 500


def test_of_ten_calls_one_is_of_a_user_who_was_not_there_before():
    callers = [user_of_call(number) for number in range(1000)]
    assert set(Counter(callers).values()) == set(range(1, 11))
    newcomers = [number for number, user in enumerate(callers) if user not in callers[:number]]
    assert [sum(start <= number < start + 20 for number in newcomers) for start in range(0, 1000, 20)] == [20] + 49 * [
        2
    ]


def test_a_result_where_nothing_was_answered_comes_back_from_its_file(tmp_path):
    endless = Entry(case="overload", contender="ours", milliseconds=Spread(float("inf"), 1, float("inf")))
    found = result(entries=[endless])
    found.save(tmp_path / "load.json")
    assert BenchResult.load(tmp_path / "load.json") == found


SOURCES = [Ad(f"ad-{number}", f"word{number} and word{number + 1}", f"body {number}") for number in range(30)]


def test_vectors_are_embedded_once_and_go_on_where_they_stopped(tmp_path):
    encoder = HashingEncoder(32)
    few = np.array(made_vectors(tmp_path, SOURCES, 50, encoder))
    many = made_vectors(tmp_path, SOURCES, 300, encoder)
    want = encoder.encode([embedding_text(ad) for ad in recombined_ads(SOURCES, 300)])
    np.testing.assert_array_equal(many, want)
    np.testing.assert_array_equal(few, want[:50])
    again = made_vectors(tmp_path, SOURCES, 300, KeptVectors(encoder, few))  # has no vectors for anything new
    np.testing.assert_array_equal(again, want)
    root, loaded = made_index(tmp_path, SOURCES, many, encoder)
    assert loaded.manifest.ad_count == 300
    np.testing.assert_array_equal(loaded.vectors, want)
    assert made_index(tmp_path, SOURCES, many, encoder)[1].version == loaded.version
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".jsonl"] == []
    assert root.is_dir()


def test_memory_is_that_of_the_process_and_failures_are_told():
    small, large = (
        peak_mib(["-c", f"x = bytearray({size} * 2**20); import time; time.sleep(0.5)"]) for size in (1, 200)
    )
    assert 190 < large - small < 260
    with pytest.raises(RuntimeError, match="no such thing"):
        peak_mib(["-c", "raise SystemExit('no such thing')"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells mapped files apart")
def test_memory_of_its_own_is_without_mapped_files(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(100 * 2**20))
    process = psutil.Process()
    before = own_mib(process)
    mapped = np.memmap(path, np.uint8, "r")
    assert mapped.sum() == 0
    assert own_mib(process) - before < 50
    own = np.ones(100 * 2**20, np.uint8)
    assert own_mib(process) - before > 80
    del own


def test_floors_are_shown_as_a_share():
    entry = FAST.model_copy(update={"floor": 2.5, "figures": {"recall@100": 0.987}})
    assert entry.share_of_floor == 0.25
    console = Console(width=160, record=True)
    console.print(tables(result(entries=[SLOW, entry])))
    shown = console.export_text()
    for part in ("floor's share", "25%", "recall@100", "0.987"):
        assert part in shown


def test_a_peer_that_is_not_installed_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeerMissing, match="make bench-peers"):
        peer_python("hnswlib")


def test_targets_go_between_the_marks_of_a_document(tmp_path):
    result().save(tmp_path / "rank.json")
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
    ran = CliRunner().invoke(app, ["targets", "--out", str(tmp_path), "--document", str(document)])
    assert ran.exit_code == 0, ran.output
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for part in (
        "| rank | 100 ads | at least 99 times | 98 times | no: the floor is 9 ms |",
        "A <fast> one",
        "without a peer: no wheel",
    ):
        assert part in text
        assert part in ran.stdout
    ran = CliRunner().invoke(app, ["targets", "--out", str(tmp_path / "empty"), "--document", str(document)])
    assert "holds no results" in str(ran.exception)
    assert document.read_text() == text
    (tmp_path / "other.md").write_text("no marks")
    ran = CliRunner().invoke(app, ["targets", "--out", str(tmp_path), "--document", str(tmp_path / "other.md")])
    assert isinstance(ran.exception, InputError)


def test_a_commit_is_checked_out_or_said_to_be_missing(tmp_path):
    code = checked_out("HEAD", tmp_path / "code")
    assert (code / "ranking" / "service.py").is_file()
    with pytest.raises(InputError, match=r"^--against no-such-commit: .*no-such-commit"):
        checked_out("no-such-commit", tmp_path / "other")
    with pytest.raises(InputError, match="no name of a commit"):
        checked_out("--output=/tmp/x", tmp_path / "other")


class _Side:
    """Servers that spend so many seconds a call, carry so many calls a second, and write down what they are asked."""

    def __init__(self, name, seconds, carries, asked):
        self.name, self.seconds, self.carries, self.asked, self.spent = name, seconds, carries, asked, 0.0
        self.processes = [SimpleNamespace(name="ranking")]

    def warm_up(self, candidates):
        self.asked.append((self.name, "warm up", candidates))

    def cpu_seconds_of_each(self):
        return {"ranking": self.spent}

    def asking(self, candidates):
        self.asked.append((self.name, "one by one", candidates))

        def start():
            self.spent += self.seconds
            done = SimpleNamespace(code=lambda: SimpleNamespace(name="OK"), result=lambda: None)
            return SimpleNamespace(add_done_callback=lambda told: told(done))

        return start

    def at(self, rate):
        self.asked.append((self.name, rate))
        return Answered(rate, 1.0, [10.0], {"OK": 1} if rate <= self.carries else {"RESOURCE_EXHAUSTED": 1}), 1.0


def test_sides_are_asked_in_turns_until_they_carry_no_more():
    asked = []
    ours, theirs = _Side("ours", 0.01, 40, asked), _Side("theirs", 0.02, 10, asked)
    found = compare(
        {"ours": ours, "theirs": theirs},
        100,
        [10, 20, 40, 80],
        lambda side, rate: side.at(rate),
        lambda one: not one.shed,
    )
    assert found.milliseconds["ours"]["ranking"] == pytest.approx([10.0] * 5)
    assert found.ratio == pytest.approx(0.5)
    assert [one.rate for one, _ in found.ladder["ours"]] == [10, 20, 40, 80]
    assert [one.rate for one, _ in found.ladder["theirs"]] == [10, 20]
    assert asked[:2] == [("ours", "warm up", 100), ("theirs", "warm up", 100)]
    assert [name for name, *what in asked if what[0] == "one by one"] == ["ours", "theirs", "theirs", "ours"] * 2 + [
        "ours",
        "theirs",
    ]


def test_sides_are_compared_round_by_round():
    def answered(rate, shed):
        return Answered(rate, 1.0, [10.0], {"OK": 100 - shed, "RESOURCE_EXHAUSTED": shed})

    spent = {"ours": {"ranking": [5.0, 6.0], "pipeline": [1.0, 2.0]}, "theirs": {"ranking": [12.0, 16.0]}}
    ladder = {"ours": [(answered(10, 0), 0.5)], "theirs": [(answered(10, 50), 1.5)]}
    compared = Compared(spent, ladder)
    assert compared.totals("ours") == [6.0, 8.0]
    assert compared.ratio == 0.5
    entries = {(one.case, one.contender): one for one in compared.entries()}
    assert entries["processor time of a call", "theirs"].milliseconds.median == 14.0
    assert entries["processor time of a call", "ours"].figures == {"ranking ms": 5.5, "pipeline ms": 1.5}
    assert entries["in turns: 10 calls a second", "theirs"].figures["shed %"] == 50


@pytest.mark.slow
def test_load_and_soak_of_real_servers(world, tmp_path):
    ids = load_version(open_store(world.index), open_store(world.index).current()).catalog.ids
    with serving_at(world.index, world.model, made_users(ids, ["running", "tea"]), tmp_path / "logs") as servers:
        load = load_of(servers, LoadSettings(ads=len(ids), seconds=1.0))
        soak = soak_of(servers, SoakSettings(ads=len(ids), rate=10, minutes=0.1))
    assert {one.case for one in load.entries} >= {
        f"10 calls a second, {min(10, count)} of {count}" for count in (1, 10, 100, 500)
    }
    first = load.entry("10 calls a second, 10 of 100", "AdCascade")
    assert first.figures["refused %"] == 0
    assert re.search(r"ranking [\d.]+ ms, of them in its server .*; all of Recommend [\d.]+ ms$", load.remarks[0])
    slowest = re.search(r"^the slowest hundredth of the calls, .*; all of Recommend ([\d.]+) ms$", soak.remarks[0])
    times = soak.entries[0].milliseconds
    assert times.median / 2 <= float(slowest[1]) <= times.high  # what the servers see has no client in it
    assert first.milliseconds.median <= first.figures["p99"] <= first.milliseconds.high
    assert [plot.x_label for plot in soak.plots] == ["minutes", "minutes"]
    assert {line.name for line in soak.plots[0].lines} == {"retrieval", "ranking", "pipeline"}
    assert all(value > 10 for line in soak.plots[0].lines for value in line.y)
    write_page(tmp_path / "load.html", load)
    write_plot(tmp_path / "soak.png", soak)
    assert "<svg" in (tmp_path / "load.html").read_text()


def test_the_heaviest_calls_fit_a_message_and_no_two_floods_send_the_same_value():
    for make in COSTLY.values():
        assert 6 * 2**20 < len(make("first").SerializeToString()) < 8 * 2**20
        assert make("first") != make("second")
    for _, make in floods().values():
        assert make("first") != make("second")


@pytest.mark.parametrize("name", COSTLY)
def test_a_ready_made_message_is_the_costly_one_of_another_number(name):
    make, number = ready_made(name), f"{17:020d}"
    assert make(number) == COSTLY[name](number).SerializeToString()
    assert make(number) != make(f"{18:020d}")


@pytest.mark.parametrize(("ads", "flags"), [(1000, []), (20_000, ["--cache-mib", "781"]), (1_000_000, [])])
def test_ranking_has_room_for_all_ads_where_a_gibibyte_is_enough(ads, flags):
    assert cache_flags(ads) == flags


def test_an_attack_that_there_is_not_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(InputError, match="there is no attack 'nothing'; choose of heaviest-calls, cache-floods"):
        bench_attack(AttackSettings(parts=("nothing",)), tmp_path, tmp_path)


@pytest.mark.slow
def test_what_the_gateway_adds_is_timed_on_real_servers(world, tmp_path):
    found = bench_gateway(GatewayBenchSettings(calls=20), tmp_path, tmp_path, own=(world.index, world.model))
    seen, whole, outside, fetching = (entry.milliseconds.median for entry in found.entries)
    assert seen > whole > outside > 0
    assert fetching > 0
    assert found.entries[0].figures["processor ms a call"] > 0
    assert len(found.verdicts) == 1


@pytest.mark.slow
def test_attacks_on_real_servers(world, tmp_path):
    settings = AttackSettings(
        seconds=1,
        calls_at_once=1,
        flood_calls=3,
        silent_calls=5,
        idle_connections=10,
        outage_seconds=2,
    )
    found = bench_attack(settings, tmp_path, tmp_path, own=(world.index, world.model))
    assert found.settings["ads"] == published(world.index).manifest.ad_count
    assert found.settings["parts"] == ", ".join(PARTS)
    assert {f"normal {method}, 5 a second" for method in COSTLY} <= {entry.case for entry in found.entries}
    assert {f"flood: {what}" for what in floods()} <= {entry.case for entry in found.entries}
    kinds = ("heaviest", "heavy", "memory of", "beside", "stopped", "goes on", "gone", "healthy again")
    verdicts = [[one for one in found.verdicts if kind in one.what] for kind in kinds]
    assert [len(some) for some in verdicts] == [len(COSTLY), len(COSTLY), len(floods()), 6, 1, 1, 2, 2]
    assert len(found.verdicts) == sum(map(len, verdicts))
    assert all(entry.milliseconds.median > 0 for entry in found.entries)
    alone = found.entry("normal Retrieve, 5 a second", "AdCascade")
    assert alone.figures["refused %"] == 0
    for case in ("ranking stopped: Recommend, 16 a second", "ranking gone for 2 s: Recommend, 16 a second"):
        outage = found.entry(case, "AdCascade")
        assert outage.figures["refused %"] == 0
        assert outage.figures["shed %"] > 0  # in the retrieval order
    assert "UNAVAILABLE" in found.entry("retrieval gone for 2 s: Recommend", "AdCascade").note
    for part in ("on one connection", "on 5 connections", "10 connections without a call"):
        (health,) = [one for one in found.entries if one.case.startswith("idle streams: health") and part in one.case]
        assert health.figures["refused %"] == 0


MAX_UNSENT = 4
REFUSED = {"method": "/adcascade.v1.RecommendService/Recommend", "status": "RESOURCE_EXHAUSTED"}


class Recommending(recommend_pb2_grpc.RecommendServiceServicer):
    """Counts the calls whose message arrived."""

    def __init__(self):
        self.reached = 0

    def Recommend(self, request, context):  # noqa: N802
        self.reached += 1
        return recommend_pb2.RecommendResponse(request_id="here")


@pytest.mark.parametrize(("connections", "calls"), [(1, 12), (3, 2), (5, 0)])
def test_silent_clients_hold_what_they_are_told_to_and_send_nothing(connections, calls):
    servicer = Recommending()
    with serving_server(
        "adcascade.v1.RecommendService",
        lambda server: recommend_pb2_grpc.add_RecommendServiceServicer_to_server(servicer, server),
        max_unsent=MAX_UNSENT,
    ) as (server, channel):
        port = int(server.address.rpartition(":")[2])
        with held(server.address, connections, calls):
            theirs = [one for one in psutil.Process().net_connections() if one.laddr and one.laddr.port == port]
            assert len([one for one in theirs if one.status == psutil.CONN_ESTABLISHED]) >= connections
            answer = recommend_pb2_grpc.RecommendServiceStub(channel).Recommend(
                recommend_pb2.RecommendRequest(), timeout=20
            )
            if connections * calls > MAX_UNSENT:  # those that waited longest give way
                end = time.monotonic() + 30
                while not server.registry.get_sample_value("adcascade_calls_total", REFUSED):
                    assert time.monotonic() < end
                    time.sleep(0.02)
    assert answer.request_id == "here"
    assert servicer.reached == 1


def test_bench_train_reads_a_log_and_makes_histories_of_it(tmp_path):
    sizes = ["--read-rows", "3000", "--rows", "2000", "--rounds", "1"]
    sizes += ["--part", "read", "--part", "history", "--part", "words", "--part", "behaviour"]
    result = CliRunner().invoke(app, ["train", *sizes, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = BenchResult.load(tmp_path / "train.json")
    assert [one.case for one in found.entries] == [
        "read and check 3,000 rows",
        "read and check 3,000 rows",
        "histories and counters of 2,000 rows",
        "texts of users and ads of 1,599 rows",
        "an epoch over 1,599 rows",
        "an epoch over 1,599 rows",
    ]
    assert all(one.figures["rows a second"] > 0 for one in found.entries)
    assert found.entries[0].figures["MiB"] > 10
    assert not found.verdicts[0].met  # on so few rows nothing is said of ten million
    assert found.verdicts[0].why == "measured on fewer"
    of_few = verdicts(WholeTraining(2500, 1.0, 1.0, 1.5))
    assert [(one.met, one.why) for one in of_few] == [(False, "measured on fewer rows")] * 2
    assert [one.met for one in verdicts(WholeTraining(50_000_000, 29.0, 50.0, 7.0))] == [True, False]
    short = verdicts(WholeTraining(50_000_000, 20.0, 20.0, 5.0), was_cut_short=True)
    assert [(one.met, one.why) for one in short] == [(False, "the clock cut it short"), (True, "")]


def test_steps_of_the_text_layers_are_timed_in_a_process_of_their_own(tmp_path):
    files = make_ad_log(tmp_path / "log", AdLogOptions(rows=2000, users=400, ads=50))
    found = text_speed(files, tmp_path, "", steps=2, rounds=1)
    (rate,) = found.pairs_a_second[TEXT_OURS]
    assert 1 < rate < 1e6
    assert (found.times_faster, found.verdicts("")) == (None, [])
    known = TextSpeed({TEXT_OURS: [400.0, 900.0, 300.0], "commit abc": [100.0, 100.0, 100.0]})
    assert known.times_faster == pytest.approx(4.0)
    assert [(one.met, one.reached) for one in known.verdicts("abc")] == [(True, "4.00 times (400 and 100)")]
    with pytest.raises(InputError, match="no-such-commit"):
        text_speed(files, tmp_path, "no-such-commit", steps=1, rounds=1)


def test_a_made_up_log_is_shaped_like_a_real_one(tmp_path):
    files = make_ad_log(tmp_path, AdLogOptions(rows=100_000, users=20_000, ads=2000, seed=3))
    log, report = read_clicks(files.clicks, {ad.ad_id for ad in read_catalog(files.ads).ads})
    assert (len(log), report.rejected) == (100_000, {})
    assert 0.015 < log.ctr < 0.05
    assert 3.5 < len(log) / log.request_id.distinct < 4.5
    requests = {*zip(log.request_id, log.user_id, log.time.tolist(), log.context["device"], strict=True)}
    assert len(requests) == log.request_id.distinct
    shown = np.bincount(log.ad_id.codes)
    assert shown.max() > 100 * np.median(shown)
    assert np.bincount(log.user_id.codes).mean() < 10


def test_an_epoch_of_the_behaviour_part_is_timed_beside_users_one_by_one(tmp_path, tiny_bert):
    files = make_ad_log(tmp_path, AdLogOptions(rows=3000, users=600, ads=50))
    found = behaviour_speed(files, rows_one_by_one=500, rounds=1, base=str(tiny_bert))
    assert found.rows == (500, 2400)
    assert len(found.one_by_one) == len(found.in_batches) == 1
    assert min(*found.one_by_one, *found.in_batches) > 0
    known = BehaviourSpeed((500, 2400), (4.0, 2.0, 1.0), (9.6, 9.6, 9.6))
    assert known.times_faster == pytest.approx(1.0)  # 250 rows a second beside 125, 250 and 500
