"""All targets beside what was reached, from the results of several benchmarks. Knows no models."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.display import machine_line
from benchmarks.speed.results import BenchResult

_GPU = ("gpu-search", "gpu-embed", "gpu-rank", "gpu-train")
BENCHES = ("rank", "build", "retrieve", "load", "soak", "gateway", "attack", "train", "fuzz", *_GPU)


def kept_results(folder: Path) -> list[BenchResult]:
    """What the benchmarks wrote into `folder` last; those that were not run are left out."""
    files = [folder / f"{name}.json" for name in BENCHES]
    return [BenchResult.load(path) for path in files if path.exists()]


def targets_markdown(results: Sequence[BenchResult]) -> str:
    """A table for a document: the command, the target, what was reached, and why not where it was missed."""
    lines = ["| `adcascade bench` | what | target | reached | met |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        for one in result.verdicts:
            met = "yes" if one.met else f"no: {one.why}" if one.why else "no"
            cells = (result.bench, one.what, one.target, one.reached, met)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    machines = dict.fromkeys(
        f"`bench {result.bench}`, {result.created_at:%Y-%m-%d}: {machine_line(result)}" for result in results
    )
    remarks = [f"`bench {result.bench}`, {remark}" for result in results for remark in result.remarks]
    peers = [
        f"`bench {result.bench}` with {name} {version}" for result in results for name, version in result.peers.items()
    ]
    missing = [
        f"`bench {result.bench}` without {name}: {why}" for result in results for name, why in result.missing.items()
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in (*machines, *remarks, *peers, *missing))
