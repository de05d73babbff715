"""The command line as a user runs it: real processes, real servers, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from adcascade.serving.channel import is_serving, open_channel
from pipeline.processes import own_folder

# Nothing that runs on one machine goes through a proxy; nobody listens at this one.
NO_PROXY_ANSWERS = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"), "http://127.0.0.1:9")
ENVIRONMENT = {**os.environ, **NO_PROXY_ANSWERS, "no_proxy": "", "no_grpc_proxy": "", "COLUMNS": "120"}


def adcascade(*arguments, timeout=300):
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


@pytest.fixture(scope="module")
def platform(world, tmp_path_factory):
    """`adcascade serve` on free ports; yields the process and the addresses it printed."""
    logs = tmp_path_factory.mktemp("logs")
    flags = ["--port", "0", "--retrieval-port", "0", "--ranking-port", "0", "--logs", str(logs), "--json"]
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--index", str(world.index), "--model", str(world.model)]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "".join(log.read_text() for log in logs.glob("*.log"))
    yield process, json.loads(line)
    process.terminate()
    process.wait(30)


def test_help_teaches_every_command():
    top = adcascade("--help").stdout
    for command in (
        "build",
        "refresh",
        "train-retrieval",
        "train",
        "evaluate",
        "evaluate-retrieval",
        "evaluate-pipeline",
        "fit-order",
        "serve",
        "recommend",
        "quickstart",
        "export",
    ):
        assert command in top
        assert "--json" in adcascade(command, "--help").stdout
    assert "bench" in top
    assert "--json" in adcascade("bench", "rank", "--help").stdout


def test_build_train_evaluate_recommend_with_the_users_own_files(world, platform, tiny_bert, tmp_path):
    built = adcascade("build", "--ads", world.ads, "--out", tmp_path / "index", "--encoder", "hashing:64", "--json")
    assert json.loads(built.stdout)["ad_count"] == 60
    files = ["--ads", world.ads, "--clicks", world.clicks, "--users", world.users]
    sizes = ["--max-user-tokens", 48, "--max-ad-tokens", 24, "--epochs", 0.2]
    trained = adcascade("train", *files, "--out", tmp_path / "model", "--base", tiny_bert, *sizes, "--json")
    report = json.loads(trained.stdout)
    assert 0.5 < report["test"]["metrics"]["ranker"]["auc"]["value"] <= 1
    again = adcascade("evaluate", *files, "--model", tmp_path / "model", "--json")
    assert "may be tested" not in again.stderr
    evaluated = json.loads(again.stdout)
    assert evaluated["version"] == report["version"]
    for name in ("auc", "log_loss"):
        want = report["test"]["metrics"]["ranker"][name]["value"]
        assert evaluated["test"]["metrics"]["ranker"][name]["value"] == pytest.approx(want, abs=1e-6)
    other = adcascade("evaluate", *files, "--model", tmp_path / "model", "--split", "request", "--baselines", "none")
    assert "rows that it knows may be tested" in " ".join(other.stderr.split())
    _, addresses = platform
    where = ["--retrieval", addresses["retrieval"], "--ranking", addresses["ranking"]]
    who = ["--user-id", "u0", "--users", world.users, "--clicks", world.clicks]
    answer = json.loads(adcascade("recommend", *where, *who, "--k", 5, "--json").stdout)
    assert len(answer["recommendations"]) == 5
    assert not answer["degraded"]
    shown = adcascade("recommend", *where, "--interests", "espresso beans", "--k", 3).stdout
    assert "p_click" in shown
    assert "interests: espresso beans" in shown


def test_who_has_met_every_ad_is_told_that_none_is_left(world, platform, tmp_path):
    _, addresses = platform
    where = ["--retrieval", addresses["retrieval"], "--ranking", addresses["ranking"]]
    ids = [json.loads(line)["ad_id"] for line in world.ads.read_text().splitlines()]
    user = {"user_id": "all", "history": [{"type": "impression", "ad_id": ad_id} for ad_id in ids]}
    (tmp_path / "users.jsonl").write_text(json.dumps(user) + "\n")
    who = ["--user-id", "all", "--users", tmp_path / "users.jsonl"]
    told = adcascade("recommend", *where, *who)
    assert (told.returncode, "No ad is left for this user" in " ".join(told.stdout.split())) == (0, True), told.stderr
    answer = json.loads(adcascade("recommend", *where, *who, "--json").stdout)
    assert (answer["recommendations"], answer["degraded"]) == ([], False)


def test_what_files_say_of_others_is_no_matter_to_one_user(world, platform, tmp_path):
    _, addresses = platform
    where = ["--retrieval", addresses["retrieval"], "--ranking", addresses["ranking"], "--json"]
    ids = [json.loads(line)["ad_id"] for line in world.ads.read_text().splitlines()]
    met = {"user_id": "all", "history": [{"type": "impression", "ad_id": ad_id} for ad_id in ids]}
    users = [met, {"user_id": "none"}, {"user_id": "x", "history": 7}]
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    who = ["--user-id", "all", "--users", tmp_path / "users.jsonl"]
    told = adcascade("recommend", *where, *who)
    assert json.loads(told.stdout)["recommendations"] == [], told.stderr
    assert "2 of 3 users were left out, such as users.jsonl, row 2: there is no user_id" in told.stderr
    with_log = adcascade("recommend", *where, *who, "--clicks", world.clicks)
    assert json.loads(with_log.stdout)["recommendations"] == []  # the log lacks the user: the file's history stays
    assert "has no user 'all'." in with_log.stderr
    nobody_says = ["--user-id", "none", "--users", tmp_path / "users.jsonl", "--interests", "espresso", "--k", 3]
    nobody = adcascade("recommend", *where, *nobody_says)
    assert len(json.loads(nobody.stdout)["recommendations"]) == 3
    assert "--user-id 'none' stands for nobody" in nobody.stderr


def test_a_log_that_was_trained_on_with_more_rejected_rows_is_read_so_by_recommend(world, platform, tmp_path):
    _, addresses = platform
    lines = world.clicks.read_text().splitlines(keepends=True)
    (tmp_path / "clicks.csv").write_text("".join([*lines[:40], "broken\n" * 2]))
    user = lines[1].split(",")[lines[0].split(",").index("user_id")]
    where = ["--retrieval", addresses["retrieval"], "--ranking", addresses["ranking"], "--k", 2]
    who = ["--user-id", user, "--clicks", tmp_path / "clicks.csv"]
    refused = adcascade("recommend", *where, *who)
    assert refused.returncode == 2
    assert "more than the 1.0% allowed" in refused.stderr
    assert adcascade("recommend", *where, *who, "--max-rejected", 0.1).returncode == 0


def test_shares_of_the_command_line_reach_retrieval(platform):
    _, addresses = platform
    where = ["--retrieval", addresses["retrieval"], "--ranking", addresses["ranking"]]
    sources = []
    # So many that what words alone found is among them, wherever the ranker puts it.
    for share in ("lexical=0", "lexical=1"):
        answer = json.loads(
            adcascade("recommend", *where, "--interests", "espresso", "--share", share, "--k", "40", "--json").stdout
        )
        sources.append({item["source"] for item in answer["recommendations"]})
    assert "lexical" not in sources[0]
    assert "lexical" in sources[1]
    wrong = adcascade("recommend", *where, "--interests", "espresso", "--share", "moon=1")
    assert wrong.returncode == 2
    assert "there is no candidate source 'moon'" in wrong.stderr


def test_versions_are_managed_from_the_command_line(world):
    listed = json.loads(adcascade("model", "list", world.model, "--json").stdout)
    assert [version["published"] for version in listed] == [True]
    version = listed[0]["version"]
    assert version in adcascade("model", "list", world.model).stdout
    assert "files are intact" in adcascade("index", "verify", world.index).stdout
    assert json.loads(adcascade("model", "verify", world.model, "--json").stdout)["version"] == version
    assert json.loads(adcascade("model", "publish", world.model, version, "--json").stdout) == {"published": version}
    assert json.loads(adcascade("model", "prune", world.model, "--json").stdout) == {"removed": []}
    nothing_before = adcascade("index", "rollback", world.index)
    assert nothing_before.returncode == 2
    assert "no version was published before" in nothing_before.stderr


LOG = ("--ads", "{ads}", "--clicks", "{clicks}", "--out", "{tmp}/model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--ads", "/no/such.jsonl", "--out", "{tmp}/index", "--encoder", "hashing:64"], "does not exist"),
        (
            ["build", "--ads", "{ads}", "--out", "{tmp}/index", "--encoder", "{tmp}"],
            "holds no model: there is no config.json in it",
        ),
        (["train", "--ads", "{ads}", "--clicks", "{ads}", "--out", "{tmp}/model"], "the click log lacks request_id"),
        (["evaluate", "--ads", "{ads}", "--clicks", "{clicks}", "--model", "{tmp}/none"], "nothing is published under"),
        (["recommend", "--user-id", "nobody", "--users", "{users}"], "has no user 'nobody'"),
        (
            ["recommend", "--user-id", "nobody", "--clicks", "{clicks}"],
            "has no user 'nobody'; choose one with --user-id",
        ),
        (["recommend", "--users", "{users}"], "Choose one with --user-id"),
        (["recommend", "--interests", "x", "--k", "20", "--candidates", "5"], "candidates must be k to 1000"),
        (["recommend", "--interests", "x", "--retrieval", "127.0.0.1:1"], "Is the retrieval server running"),
        (["recommend", "--user-id", "u0"], "--user-id alone says nothing"),
        (["train", *LOG, "--users", "{ads}"], "there is no user_id; the columns are ad_id"),
        (["train", *LOG, "--architecture", "foo"], "architecture must be shared_user or joint"),
        (["train", *LOG, "--split", "moon"], "there is no split 'moon'"),
        (["train", *LOG, "--baselines", "moon"], "'moon' is not one of"),
        (["train", *LOG[:4], "--out", "/proc/none/model"], "cannot write"),
        (
            ["build", "--ads", "{ads}", "--out", "/proc/none", "--encoder", "hashing:64"],
            "cannot write under /proc/none",
        ),
        (["index", "list", "{tmp}/none"], "there is no folder"),
        (["recommend", "--interests", "x", "--k", "0"], "k must be 1 to 1000"),
        (["recommend", "--interests", "x", "--share", "lexical"], "'lexical' is not of the form source=number"),
        (["recommend", "--interests", "x", "--share", "fresh=1", "--share", "fresh=0"], "names 'fresh' twice"),
        (
            ["serve", "--index", "{tmp}/none", "--model", "{model}", "--logs", "{tmp}/logs"],
            "nothing is published under",
        ),
    ],
)
def test_bad_input_ends_with_a_message_and_exit_code_2(world, tmp_path, arguments, message):
    places = {"tmp": tmp_path, "ads": world.ads, "clicks": world.clicks, "users": world.users, "model": world.model}
    result = adcascade(*(argument.format(**places) for argument in arguments))
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_output_onto_a_full_disk_is_an_error_without_a_traceback(world, as_json):
    command = [sys.executable, "-m", "pipeline.cli", "index", "list", str(world.index), *as_json]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False)
    assert ran.returncode == 74
    assert ran.stderr.startswith("error: the output could not be written: No space left on device")
    assert "Traceback" not in ran.stderr


def test_a_port_in_use_is_named(world, platform, tmp_path):
    _, addresses = platform
    port = addresses["retrieval"].split(":")[1]
    command = [sys.executable, "-m", "retrieval", "--index", str(world.index), "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "choose another port" in result.stderr


def test_a_second_serve_leaves_the_logs_of_the_first_alone(world, tmp_path):
    roots, ports = ["--index", world.index, "--model", world.model], ["--port", 0, "--retrieval-port", 0]
    with own_folder(tmp_path):
        (tmp_path / "ranking.log").write_text("of the first")
        second = adcascade("serve", *roots, *ports, "--ranking-port", 0, "--logs", tmp_path)
    assert second.returncode == 2
    assert "choose another folder with --logs" in " ".join(second.stderr.split())
    assert (tmp_path / "ranking.log").read_text() == "of the first"


@pytest.mark.skipif(not hasattr(os, "nice"), reason="this system has no nice")
def test_the_ranking_server_gives_way_to_the_others(platform):
    process, _ = platform
    own = psutil.Process(process.pid)
    niceness = {server.cmdline()[2]: server.nice() for server in own.children() if server.cmdline()[1] == "-m"}
    assert niceness == {"retrieval": own.nice(), "ranking": min(19, own.nice() + 5), "pipeline": own.nice()}


def test_stopping_serve_leaves_no_process_behind(world, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        flags = ["--port", "0", "--retrieval-port", "0", "--ranking-port", "0", "--logs", str(tmp_path), "--json"]
        command = [
            sys.executable,
            "-m",
            "pipeline.cli",
            "serve",
            "--index",
            str(world.index),
            "--model",
            str(world.model),
        ]
        process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["gateway"]
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 3
        process.send_signal(number)
        process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, f"left behind after {number.name}"


def test_serve_starts_a_dead_server_again_and_says_with_its_exit_code_when_that_does_not_help(world, tmp_path):
    roots = ["--index", str(world.index), "--model", str(world.model)]
    ports = ["--port", "0", "--retrieval-port", "0", "--ranking-port", "0"]
    command = [sys.executable, "-m", "pipeline.cli", "serve", *roots, *ports, "--logs", str(tmp_path), "--json"]
    errors = (tmp_path / "errors").open("wb")
    process = subprocess.Popen(
        [*command, "--max-restarts", "1"], stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["gateway"]
    own = psutil.Process(process.pid)

    def kill_the_gateway():
        (gateway,) = (child for child in own.children() if child.cmdline()[2] == "pipeline")
        gateway.kill()

    kill_the_gateway()
    end = time.monotonic() + 60
    while f"The pipeline server is serving again on {address}." not in (tmp_path / "errors").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    with open_channel(address) as channel:
        assert is_serving(channel, timeout_seconds=10)
    children = own.children()
    kill_the_gateway()
    assert process.wait(60) == 69
    assert "was killed by signal 9, after 1 restarts" in (tmp_path / "errors").read_text()
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert (tmp_path / "pipeline.log").read_text().count("pipeline starts as process") == 2


def test_an_interrupted_quickstart_leaves_no_process_and_no_half_published_version(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "quickstart", "--smoke", "--data", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (tmp_path / "model" / "drafts").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)  # until training has begun
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not (tmp_path / "model" / "CURRENT").exists()
    assert not list((tmp_path / "model" / "drafts").iterdir())
    listed = json.loads(adcascade("index", "list", tmp_path / "index", "--json").stdout)
    assert [version["problem"] for version in listed] == [""]


def test_both_stages_are_measured_together(world):
    files = ("--ads", world.ads, "--clicks", world.clicks, "--users", world.users)
    ran = adcascade("evaluate-pipeline", "--index", world.index, "--model", world.model, *files, "--json")
    assert ran.returncode == 0, ran.stderr
    assert "may be tested" not in ran.stderr
    found = json.loads(ran.stdout)
    assert {"retrieval", "ranking of 100", "ranking of 500", "EASE"} <= found["comparison"]["metrics"].keys()
    assert found["shown"] is None  # retrieval of this index has no scores of its own
    shown = adcascade("evaluate-pipeline", "--index", world.index, "--model", world.model, *files, "--newest", 1000)
    assert "nDCG@10 of ranking of 100 minus retrieval's" in " ".join(shown.stdout.split())
    assert "200 older rows were left out" in shown.stderr
    assert "rows that it knows may be tested" in " ".join(shown.stderr.split())


def test_what_was_shown_together_is_put_in_order(world, tower_index):
    files = ("--ads", world.ads, "--clicks", world.clicks, "--users", world.users)
    where = ("--index", tower_index, "--model", world.model, "--no-baselines", "--candidates", 50)
    ran = adcascade("evaluate-pipeline", *where, *files, "--together", "days", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["shown"]
    assert (found["together"], set(found["ndcg"])) == ("day", {"retrieval's score", "p_click", "both as served"})
    ran = adcascade("evaluate-pipeline", *where, *files, "--together", "days")
    assert "Of ads that a user had before them on one day" in " ".join(ran.stdout.split())
