"""``adcascade bench``: speed, side by side with what one would otherwise use. What loads models is imported late."""

from pathlib import Path
from typing import Annotated

import typer

from adcascade.records.errors import InputError
from adcascade.terminal.options import IndexRoot, ModelRoot
from benchmarks.speed.running import OUT, Ads, Compare, Json, Out, Rounds, explained, run_bench
from benchmarks.speed.table_commands import targets_command, training_command

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed side by side with what you would otherwise use. Contenders take turns in one run, so ratios "
    "hold on a busy machine, too. Each benchmark prints a table and writes JSON, a plot and a page. They read "
    "MovieLens-100k (pip install --no-deps recbole==1.2.1), whose titles are recombined into as many ads as wanted.",
)


@app.command("rank")
def rank_command(
    join_layer: Annotated[
        int, typer.Option(min=0, max=5, help="First of the six layers in which ads attend to the user.")
    ] = 5,
    backend: Annotated[
        str, typer.Option(help="What runs the text layers: torch, openvino, openvino-int8, or auto for the fastest.")
    ] = "auto",
    rounds: Rounds = 5,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """One request of 10 to 1,000 candidates through the ranking server, against CrossEncoder.predict on the same texts.

    Also against infinity-emb, if make bench-peers installed it in .peers of the current folder. Trains a ranker first,
    which takes a few minutes, and keeps it in OUT/kept for the next run.
    """
    with explained():
        from benchmarks.speed.rank import RankSettings, bench_rank

    settings = RankSettings(join_layer, backend, rounds)
    run_bench(
        "rank", lambda folder, progress: bench_rank(settings, folder, out / "kept", progress), out, compare, as_json
    )


@app.command("build")
def build_command(
    catalog: Annotated[int, typer.Option(min=1000, help="Ads of the build, and of the rebuild after it.")] = 20_000,
    memory_ads: Annotated[int, typer.Option(min=1000, help="Ads of the build whose memory is measured.")] = 1_000_000,
    rounds: Rounds = 5,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Embedding against SentenceTransformer.encode; a rebuild after a few changes; the memory of a large build."""
    with explained():
        from benchmarks.speed.build import BuildSettings, bench_build

    settings = BuildSettings(catalog=catalog, memory_ads=memory_ads, rounds=rounds)
    run_bench("build", lambda folder, progress: bench_build(settings, folder, progress), out, compare, as_json)


@app.command("retrieve")
def retrieve_command(
    ads: Ads = 1_000_000,
    peers: Annotated[
        str, typer.Option(help="Of hnswlib,usearch,milvus-lite; of a million ads the last takes seconds a query.")
    ] = "hnswlib,usearch",
    rounds: Annotated[int, typer.Option(min=1, help="Queries that each contender answers.")] = 100,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """A hundred of many ads, against exact search, hnswlib, usearch and milvus-lite at equal recall.

    Vectors and index are kept in OUT/kept for the next run. Peers come with make bench-peers, and are looked for in
    .peers of the current folder.
    """
    with explained():
        from benchmarks.speed.retrieve import RetrieveSettings, bench_retrieve

    settings = RetrieveSettings(ads, tuple(filter(None, peers.split(","))), rounds)
    run_bench(
        "retrieve",
        lambda folder, progress: bench_retrieve(settings, folder, out / "kept", progress),
        out,
        compare,
        as_json,
    )


@app.command("load")
def load_command(
    ads: Ads = 1_000_000,
    seconds: Annotated[float, typer.Option(min=1, help="How long calls arrive at each rate.")] = 40.0,
    against: Annotated[
        str,
        typer.Option(
            help="A commit of this repository, whose servers are asked the same in turns (and need as much memory)."
        ),
    ] = "",
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Recommend, 10 of 100 candidates, at rising rates until the servers no longer keep up; then at twice as much.

    Calls arrive at random moments and do not wait for each other, so queueing shows. Vectors, index and ranker are
    kept in OUT/kept for the next run.
    """
    with explained():
        from benchmarks.speed.load import LoadSettings, bench_load

    settings = LoadSettings(ads, seconds, against=against)
    run_bench(
        "load", lambda folder, progress: bench_load(settings, folder, out / "kept", progress), out, compare, as_json
    )


@app.command("soak")
def soak_command(
    ads: Ads = 1_000_000,
    rate: Annotated[float, typer.Option(min=0.1, help="Calls a second.")] = 10.0,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 10.0,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """The same at one rate for minutes on end: does memory grow?"""
    with explained():
        from benchmarks.speed.soak import SoakSettings, bench_soak

    settings = SoakSettings(ads, rate, minutes)
    run_bench(
        "soak", lambda folder, progress: bench_soak(settings, folder, out / "kept", progress), out, compare, as_json
    )


@app.command("attack")
def attack_command(
    ads: Annotated[int, typer.Option(min=1000, help="Ads to search.")] = 20_000,
    index: Annotated[Path | None, typer.Option(help="Root of index versions to serve instead of made-up ads.")] = None,
    model: Annotated[Path | None, typer.Option(help="Root of model versions, with --index.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="One or more ways to attack; default: all.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long normal calls are measured, each time.")] = 30.0,
    calls_at_once: Annotated[int, typer.Option(min=1, help="Heavy calls that the attacker keeps under way.")] = 4,
    flood_calls: Annotated[int, typer.Option(min=3, help="Calls of each flood.")] = 2000,
    silent_calls: Annotated[int, typer.Option(min=1, help="Calls without a message on one connection.")] = 80,
    idle_connections: Annotated[int, typer.Option(min=1, help="Connections without a call.")] = 1200,
    outage_seconds: Annotated[float, typer.Option(min=1, help="How long a server that was killed stays away.")] = 120.0,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """What hostile clients, and servers that fail, cost the others.

    heaviest-calls: the costliest that are allowed; cache-floods: values never sent before; idle-streams: calls without
    a message, connections without a call; stopped-ranking and dead-ranking: servers behind the gateway that stand still
    or are gone. Normal calls of one client are timed without the attack and with it. Vectors, index and ranker are kept
    in OUT/kept for the next run; --index and --model serve versions of your own, and need no MovieLens.
    """
    if (index is None) != (model is None):
        raise InputError("--index and --model go together: the roots of the versions to serve")
    own = (index, model) if index is not None and model is not None else None
    with explained():
        from benchmarks.speed.attack import bench_attack
        from benchmarks.speed.attack_base import AttackSettings

    parts = tuple(part or ())
    settings = AttackSettings(
        ads,
        seconds,
        calls_at_once=calls_at_once,
        flood_calls=flood_calls,
        silent_calls=silent_calls,
        idle_connections=idle_connections,
        outage_seconds=outage_seconds,
        parts=parts,
    )
    run_bench(
        "attack",
        lambda folder, progress: bench_attack(settings, folder, out / "kept", progress, own),
        out,
        compare,
        as_json,
    )


@app.command("gateway")
def gateway_command(
    ads: Annotated[int, typer.Option(min=1000, help="Ads to search.")] = 20_000,
    calls: Annotated[int, typer.Option(min=1, help="Calls that are timed, one after the other.")] = 400,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Recommend, 10 of 100 candidates: what the gateway itself adds to the calls that it makes."""
    with explained():
        from benchmarks.speed.gateway import GatewayBenchSettings, bench_gateway

    settings = GatewayBenchSettings(ads, calls)
    run_bench(
        "gateway",
        lambda folder, progress: bench_gateway(settings, folder, out / "kept", progress),
        out,
        compare,
        as_json,
    )


@app.command("auth")
def auth_command(
    ads: Annotated[int, typer.Option(min=1000, help="Ads to search.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender is timed.")] = 300,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Retrieve, 100 candidates, by callers who prove who they are, against one that asks nobody: what safety costs."""
    with explained():
        from benchmarks.speed.auth import AuthSettings, bench_auth

    settings = AuthSettings(ads, rounds)
    run_bench("auth", lambda folder, progress: bench_auth(settings, folder, progress), out, compare, as_json)


@app.command("gpu")
def gpu_command(
    part: Annotated[str, typer.Option(help="search, embed, rank or train.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with MovieLens-100k as ads, clicks and users.parquet; default: export it."),
    ] = None,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """What a GPU brings: exact search of millions of ads, embedding, ranking and training, beside the CPU."""
    with explained():
        from benchmarks.speed.gpu.parts import gpu_part

    run_bench(f"gpu-{part}", lambda folder, progress: gpu_part(part, data, folder, progress), out, compare, as_json)


@app.command("fuzz")
def fuzz_command(
    index: IndexRoot,
    model: ModelRoot,
    calls: Annotated[int, typer.Option(min=1, help="How many calls, over all methods in turns.")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests.")] = 0,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Calls that nobody should send, to all three servers: near-valid, random, mutated and garbage.

    They must be answered or refused: no crash, no hang, no INTERNAL, no memory without bound.
    """
    with explained():
        from benchmarks.fuzz.bench import bench_fuzz

    run_bench(
        "fuzz", lambda folder, progress: bench_fuzz(index, model, calls, seed, folder, progress), out, compare, as_json
    )


@app.command("train")
def train_command(
    part: Annotated[
        list[str] | None,
        typer.Option(help="read, history, words, behaviour, text or whole; give it again for another; default: all."),
    ] = None,
    read_rows: Annotated[int, typer.Option(min=1000, help="Rows of the log that is read.")] = 10_000_000,
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the log that is learned from.")] = 1_000_000,
    whole_rows: Annotated[
        int, typer.Option(min=1000, help="Rows of the log that a whole training reads; ten million are half an hour.")
    ] = 10_000_000,
    against: Annotated[
        str, typer.Option(help="A commit of this repository, whose fine-tuning of text is timed in turns.")
    ] = "",
    whole_minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="--max-minutes of that training, 0 for none: it has as large arrays if the clock cuts it short, so "
            "that its memory alone is judged.",
        ),
    ] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often each part is timed; a whole training once.")] = 3,
    out: Out = OUT,
    compare: Compare = None,
    as_json: Json = False,
) -> None:
    """Reading a log, histories and counters of each row, users and ads in words, an epoch of the behaviour part, steps
    of the text layers, and a whole training.

    On a made-up log shaped like a real one: many users with few rows each, 20,000 ads of which few are shown often.
    """
    with explained():
        from benchmarks.speed.train import PARTS, TrainSettings, bench_train

    settings = TrainSettings(
        tuple(part or PARTS),
        read_rows=read_rows,
        rows=rows,
        whole_rows=whole_rows,
        whole_minutes=whole_minutes,
        against=against,
        rounds=rounds,
    )
    run_bench("train", lambda folder, progress: bench_train(settings, folder, progress), out, compare, as_json)


app.command("training")(training_command)


@app.command("quality")
def quality_command(
    check: Annotated[list[str] | None, typer.Option(help="One or more checks; default: all (hours).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each figure is the mean of.")] = 3,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("adcascade-bench/quality.json"),
) -> None:
    """What is found and foretold, not how fast: beside popularity, EASE, LightGBM and others on MovieLens."""
    with explained():
        from benchmarks.quality import main

    main(check=check, seeds=seeds, upworthy=None, out=out, show=False)


@app.command("all")
def all_command(
    ads: Ads = 1_000_000,
    document: Annotated[
        list[Path] | None, typer.Option(help="Put the table of targets into these, between their marks.")
    ] = None,
    out: Out = OUT,
) -> None:
    """All but quality, one after the other (hours on two cores), and then every target with what was reached."""
    rank_command(out=out)
    build_command(out=out)
    retrieve_command(ads=ads, out=out)
    load_command(ads=ads, out=out)
    soak_command(ads=ads, out=out)
    gateway_command(out=out)
    attack_command(out=out)
    train_command(out=out)
    targets_command(document=document, out=out)


app.command("targets")(targets_command)
