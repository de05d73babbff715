"""How long trainings take by ads and rows: embedding, a pass of the towers, a pass of each stage of the ranker.

Logs are synthetic; what is timed is a pass (or, of the text, some steps of one), and the whole job is reckoned from it.
Knows nothing of how good what was trained is.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adcascade.catalog.ad_text import embedding_text
from adcascade.records.datasets.synthetic import SyntheticOptions, make_synthetic
from adcascade.towers.training.data import load_retrieval_data
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.train import train_towers
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.vectors.encoder import TextEncoder
from benchmarks.speed.machine import describe
from ranking.data.dataset import load_dataset
from ranking.training.options import TrainOptions
from ranking.training.train import train

_PLACES, _ROWS_PER_USER = 6, 60
_TEXT_STEPS = 10
# The towers are trained twice: on most rows to choose, and then on all.
_TRAININGS = 2


@dataclass(frozen=True)
class TrainingTime:
    """Seconds of one size of log: embedding all ads, and one pass each."""

    ads: int
    rows: int
    embedding: float
    towers: float
    behaviour: float
    text: float

    @property
    def minutes(self) -> float:
        """Of train-retrieval and train together as they are by default, without reading and evaluating."""
        towers = _TRAININGS * TowerOptions().epochs * self.towers
        ranker = TrainOptions().behaviour.epochs * self.behaviour + TrainOptions().text.epochs * self.text
        return (self.embedding + towers + ranker) / 60


def training_times(
    sizes: Sequence[tuple[int, int]], folder: Path, tell: Callable[[str], None] = lambda _: None
) -> list[TrainingTime]:
    """Times each size of (ads, rows), one after the other."""
    encoder = load_bulk_encoder()
    found = []
    for ads, rows in sizes:
        tell(f"{ads:,} ads, {rows:,} rows")
        found.append(_measured(ads, rows, folder / f"{ads}-{rows}", encoder))
    return found


def _measured(ads: int, rows: int, folder: Path, encoder: TextEncoder) -> TrainingTime:
    made = SyntheticOptions(ads=ads, users=max(20, rows // _ROWS_PER_USER), requests=rows // _PLACES, places=_PLACES)
    files = make_synthetic(folder, made)
    data = load_retrieval_data(files.ads, files.clicks, files.users, encoder)
    started = time.perf_counter()
    encoder.encode([embedding_text(ad) for ad in data.ads])
    embedding = time.perf_counter() - started
    towers = train_towers(data, encoder, TowerOptions(epochs=1)).spec.passes["train"].seconds
    options = TrainOptions.of(behaviour_epochs=1, behaviour_min_steps=0, export=False)
    dataset = load_dataset(files.ads, files.clicks, files.users)
    pairs = TrainOptions().text.pairs_per_step
    part = _TEXT_STEPS * pairs / len(dataset.split.train)
    stages = train(dataset, options.but(epochs=part, validate_every=10**6, validation_rows=1)).stages
    text = stages["text"]
    passes = len(dataset.split.train) / pairs
    return TrainingTime(
        ads, len(dataset.log), embedding, towers, stages["behaviour"].seconds, text.seconds / text.steps * passes
    )


def markdown(found: Sequence[TrainingTime], machine: str) -> str:
    """A table for a document."""
    lines = [
        "| ads | rows | embedding all ads, once | towers, a pass (of 25, twice) | behaviour, a pass (of at most 8) | "
        "text, a pass | all, at most |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        seconds = " | ".join(f"{value:.1f} s" for value in (one.embedding, one.towers, one.behaviour, one.text))
        lines.append(f"| {one.ads:,} | {one.rows:,} | {seconds} | {one.minutes:.0f} min |")
    return "\n".join([*lines, "", machine])


def load_of_machine() -> str:
    """How busy the machine is with other work, since that stretches every figure; ask before the measurement."""
    return f"Load average {os.getloadavg()[0]:.1f} before it."


def machine_words() -> str:
    """The machine, and how fast it multiplies now."""
    found = describe()
    return f"{found.processor}, {found.cores} cores, float32 matrix products at {found.gemm['float32']:.0f} GFLOP/s."
