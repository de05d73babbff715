"""A training from data to a committed model version."""

import math
from pathlib import Path

from rich.console import Console

from ranking.artifact import save_version
from ranking.store import open_store
from ranking.training.dataset import Dataset
from ranking.training.evaluate import evaluate
from ranking.training.options import TrainOptions
from ranking.training.report import train_progress
from ranking.training.results import RANKER, TrainReport
from ranking.training.train import train
from records.counters import CounterSnapshot


def train_and_save(data: Dataset, out: Path, options: TrainOptions, *, publish: bool = True) -> TrainReport:
    """Trains, evaluates on the test part, and commits a version with its metrics.

    Raises:
        ModelError: The base model cannot be used.
        ArtifactError: `out` cannot be written.
    """
    store = open_store(out)
    with store.begin() as draft:
        with train_progress() as progress:
            trained = train(data, options, progress)
        with Console(stderr=True).status("Evaluating on the test part"):
            evaluation = evaluate(
                data,
                trained.model,
                trained.tokenizer,
                trained.spec,
                device=options.device,
                precision=options.precision,
            )
        measured = evaluation.metrics[RANKER].items()
        metrics = {f"test_{name}": metric for name, metric in measured if math.isfinite(metric.value)}
        spec = trained.spec.model_copy(update={"metrics": metrics})
        save_version(store, draft, spec, trained.model, trained.tokenizer, CounterSnapshot.of(data.log, data.keys))
    if publish:
        store.publish(draft.version)
    return TrainReport(
        draft.version, data.split, len(data.log), dict(data.report.rejected), trained.text_fit, evaluation
    )
