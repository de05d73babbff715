"""A training from data to a committed model version with its report."""

import json
import math
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from adcascade.artifacts.store import Draft
from adcascade.records.counters import CounterSnapshot
from adcascade.records.memory import release_unused
from adcascade.records.users_by_id import who_tell
from adcascade.reports.page import never_at_the_cost_of
from adcascade.terminal.progress import working
from adcascade.training.checkpoint import unfinished_folder
from ranking.artifact import EXPORT_FOLDER, ModelVersion, save_version
from ranking.data.dataset import Dataset
from ranking.data.log_counters import LogCounters
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.page import write_page
from ranking.evaluation.report import train_progress, train_report_as_dict
from ranking.evaluation.results import RANKER, TrainReport
from ranking.export.export import Exports, export_after_training
from ranking.store import FORMAT_VERSION, open_store
from ranking.training.curves import LossCurves
from ranking.training.options import TrainOptions
from ranking.training.train import Trained, train
from ranking.training.versions import exact_name

REPORT_FILE, REPORT_JSON_FILE = "report.html", "report.json"


def train_and_save(
    data: Dataset, out: Path, options: TrainOptions, *, publish: bool = True, which_baselines: str = "fast"
) -> TrainReport:
    """Trains, evaluates on the test part, and commits a version with its metrics and its report.

    A training that was killed is taken up again by the next one of the same data and options.

    Raises:
        ModelError: The base model cannot be used.
        TrainingError: The loss is not a number.
        ArtifactError: `out` cannot be written.
    """
    store, options = open_store(out), _with_exact_versions(options)
    unfinished = _unfinished(data, out, options)
    with store.begin() as draft:
        started = time.monotonic()
        with train_progress() as show, LossCurves(show, options.common.tensorboard) as curves:
            trained = train(data, options, curves.watch, checkpoints=unfinished)
        minutes = (time.monotonic() - started) / 60
        release_unused()
        with working("Evaluating on the test part"):
            report = _report(data, trained, options, curves, draft.version, minutes, which_baselines)
        release_unused()
        (draft.path / REPORT_JSON_FILE).write_text(json.dumps(train_report_as_dict(report), indent=2))
        _draw(draft, report)
        measured = report.evaluation.metrics[RANKER].items()
        metrics = {f"test_{name}": metric for name, metric in measured if math.isfinite(metric.value)}
        exports = _exported(data, trained, draft) if options.common.export else {}
        spec = trained.spec.model_copy(update={"metrics": metrics, "exports": exports})
        data.forget()  # to count a log needs room of its own
        release_unused()
        counters = LogCounters(data.log, data.keys, data.limits.counted_rows)
        save_version(store, draft, replace(trained, spec=spec), counters)
    if publish:
        store.publish(draft.version)
    shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _draw(draft: Draft, report: TrainReport) -> None:
    """The page of the version, without which it is saved as well."""
    again = (
        f"adcascade evaluate --version {draft.version} --report FILE, with the files of the training, draws it again"
    )
    with never_at_the_cost_of(f"model version {draft.version} is saved without it", again):
        write_page(draft.path / REPORT_FILE, report.evaluation, f"Model version {draft.version}", report)


def _exported(data: Dataset, trained: Trained, draft: Draft) -> Exports:
    """Of the version that `draft` will be, into its folder; its text layers, which read no counters."""
    nothing = CounterSnapshot({})
    version = ModelVersion(trained.model, trained.tokenizer, trained.spec, draft.version, datetime.now(UTC), nothing)
    with working("Exporting for OpenVINO"):
        return export_after_training(version, draft.path / EXPORT_FOLDER, data)


def _report(
    data: Dataset,
    trained: Trained,
    options: TrainOptions,
    curves: LossCurves,
    version: str,
    minutes: float,
    which_baselines: str,
) -> TrainReport:
    evaluation = evaluate(
        data,
        trained,
        device=options.common.device,
        precision=options.common.precision,
        which_baselines=which_baselines,
        teacher=trained.teacher,
    )
    return TrainReport(
        version=version,
        split=data.split_by,
        seed=options.common.seed,
        rows=len(data.log),
        rejected=dict(data.report.rejected),
        minutes=minutes,
        stages=dict(trained.spec.stages),
        cut_short=tuple(stage for stage, fit in trained.stages.items() if fit.by_clock),
        text_fit=trained.text_fit,
        losses=tuple(curves.points),
        calibration=trained.spec.calibration.log_loss,
        evaluation=evaluation,
    )


def help_to_train(data: Dataset, out: Path, options: TrainOptions) -> None:
    """Does this process's share of a training that another one shows and saves (see `adcascade.training.workers`)."""
    exact = _with_exact_versions(options)
    train(data, exact, checkpoints=_unfinished(data, out, exact))


def _with_exact_versions(options: TrainOptions) -> TrainOptions:
    """With the names of the versions to start and learn from: when a killed run goes on, others may be published."""
    return options.but(warm_start=exact_name(options.base.warm_start), teacher=exact_name(options.teacher.version))


def _unfinished(data: Dataset, out: Path, options: TrainOptions) -> Path:
    """The folder of the checkpoints, by everything that the weights depend on."""
    settings = json.dumps(options.but(tensorboard=None).flags, sort_keys=True, default=str)
    # Pairs of users with what they are shown say nothing that these do not.
    keys = {key: data.keys[key] for key in ("ad", "advertiser", "category", "user")}
    columns = data.log.position, data.log.utc_offset, keys, data.log.context, who_tell(data.users)
    return unfinished_folder(out, FORMAT_VERSION, data.training_sha256, len(data.ads), *columns, settings)
