"""``adcascade bench gpu --part train``: rows a second of both parts of a training, beside the same machine's CPU."""

import itertools
import statistics
import time
from dataclasses import asdict, dataclass

from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.training.stage import TrainingProgress
from benchmarks.architectures import LITTLE_TEXT, unseen_ads
from benchmarks.speed.gpu.card import describe_with_card, faster
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.results import BenchResult, Entry
from ranking.data.dataset import Dataset
from ranking.training.behaviour import rows_per_step
from ranking.training.options import TrainOptions
from ranking.training.train import train

_STAGES = ("behaviour", "text")


@dataclass(frozen=True)
class TrainOnGpuSettings:
    """How the benchmark is run; `behaviour_steps` and `text_epochs` say how much is trained."""

    behaviour_steps: int = 40
    text_epochs: float = 0.15
    pairs_per_step: int = 512
    seed: int = 0


def bench_train_on_gpu(
    settings: TrainOnGpuSettings, files: DatasetFiles, progress: Progress = lambda *_: None
) -> BenchResult:
    """Times the steps of a training on the GPU and on the CPU. Raises InputError if there is no GPU."""
    machine = describe_with_card()
    data = unseen_ads(files, settings.seed)
    options = LITTLE_TEXT.but(
        behaviour_epochs=0,
        behaviour_min_steps=settings.behaviour_steps,
        epochs=settings.text_epochs,
        pairs_per_step=settings.pairs_per_step,
        validate_every=10**6,
        validation_rows=100,
        calibration_rows=100,
        export=False,
        seed=settings.seed,
    )
    found = {}
    for number, device in enumerate(("cuda", "cpu")):
        found[device] = _seconds_per_step(data, options.but(device=device))
        progress(number + 1, 2)
    rows = {"behaviour": rows_per_step(options.behaviour, len(data.split.train)), "text": options.text.pairs_per_step}
    return BenchResult(
        bench="gpu-train",
        machine=machine,
        settings=asdict(settings),
        entries=[_entry(stage, device, rows[stage], found) for stage in _STAGES for device in ("cpu", "cuda")],
    )


def _seconds_per_step(data: Dataset, options: TrainOptions) -> dict[str, list[float]]:
    """Of the steps of each part, the first three left out."""
    ended: dict[str, list[float]] = {stage: [] for stage in _STAGES}

    def watch(step: TrainingProgress) -> None:
        if step.stage in ended:
            ended[step.stage].append(time.perf_counter())

    train(data, options, watch)
    return {
        stage: [after - before for before, after in itertools.pairwise(times[3:-1])] for stage, times in ended.items()
    }


def _entry(stage: str, device: str, rows: int, found: dict[str, dict[str, list[float]]]) -> Entry:
    milliseconds = [1000 * value for value in found[device][stage]]
    median = statistics.median(milliseconds)
    slow = [1000 * value for value in found["cpu"][stage]]
    return Entry(
        case=f"a step of {rows:,} rows, {stage}",
        contender=f"{device}",
        milliseconds=Spread(median, min(milliseconds), max(milliseconds)),
        times_faster=None if device == "cpu" else faster(slow, milliseconds),
        figures={"rows a second": 1000 * rows / median},
    )
