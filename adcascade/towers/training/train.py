"""Towers from a click log: train, choose on later rows, train anew on all of them, keep as a version."""

import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.records.popularity import FEATURES, PopularitySnapshot
from adcascade.records.users import Context
from adcascade.towers.artifact import CHOOSING_FOLDER, TowerSpec, TrainedTowers, novelty, save_towers
from adcascade.towers.evaluation.holdout import HeldOut, held_out
from adcascade.towers.findings import FIRST, Passes, Spread
from adcascade.towers.item_to_item import ItemToItem
from adcascade.towers.model import Towers, TowerShape
from adcascade.towers.store import FORMAT_VERSION, open_store
from adcascade.towers.training.batches import Catalog, attributes_of, catalog_of
from adcascade.towers.training.data import RetrievalData
from adcascade.towers.training.fit import fit_towers
from adcascade.towers.training.fit_ease import fit_ease, neighbour_scores
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.sequences import Sequences, sequences_of
from adcascade.towers.training.tune import Choice, SideScores, interests_of, tune
from adcascade.training.checkpoint import checkpoint_file, unfinished_folder
from adcascade.training.stage import OnProgress, StageContext
from adcascade.vectors.encoder import TextEncoder, Vectors
from adcascade.vectors.errors import BuildError

_QUERIES = 500
_SPREAD_USERS = 100


@dataclass(frozen=True)
class TowerReport:
    """What a training made; see `TowerSpec` for what was chosen.

    Attributes:
        published: False if that was not wanted, or refused, see `train_and_save`.
    """

    version: str
    published: bool
    spec: TowerSpec
    events: int
    users: int
    ads_clicked: int
    seconds: float


def train_towers(
    data: RetrievalData,
    encoder: TextEncoder,
    options: TowerOptions,
    watch: OnProgress = lambda _: None,
    *,
    checkpoints: Path | None = None,
    keep: Path | None = None,
) -> TrainedTowers:
    """Trains towers on `data.split`: the stage "choose", then the stage "train".

    Args:
        checkpoints: Folder that a killed training of the same data and options goes on from; None for no checkpoints.
        keep: New folder for the towers of the stage "choose"; None keeps them not.

    Raises:
        InputError: Too few users clicked anything to learn from, or to choose by.
        BuildError: The options do not fit together.
        TrainingError: The loss is not a number.
    """
    _check(options)
    seconds = None if options.max_minutes is None else 60 * options.max_minutes / 2
    identity = "" if checkpoints is None else checkpoints.name
    first, second = (
        StageContext(watch, checkpoint=checkpoint_file(checkpoints, stage), seconds=seconds, identity=identity)
        for stage in ("choose", "train")
    )
    choice, chosen = _chosen(data, options, first)
    fitted = _fitted(data, data.split.train, options, second, "train")
    spec = TowerSpec(
        shape=fitted.towers.shape,
        encoder_name=encoder.name,
        encoder_sha256=encoder.sha256,
        space_sha256=fitted.towers.sha256,
        features=FEATURES,
        popularity_weights=tuple(choice.weights.popularity.tolist()),
        exploration=options.exploration,
        neighbour_weight=choice.weights.neighbours,
        recall=choice.recall,
        training=asdict(options),
        training_sha256=data.training_sha256,
        compared=choice.compared,
        passes={"choose": chosen.passes, "train": fitted.passes},
    )
    trained = _trained(spec, fitted, data, options.seed)
    spec = spec.model_copy(update={"spread": _spread(trained, fitted, data, options.seed)})
    if keep is not None:
        keep.mkdir()
        of_fit = replace(data, split=replace(data.split, train=data.split.fit))
        save_towers(keep, _of_other_rows(spec, chosen, of_fit, options.seed))
    return replace(trained, spec=spec)


def train_as_chosen(data: RetrievalData, spec: TowerSpec, watch: OnProgress = lambda _: None) -> TrainedTowers:
    """Towers of the options and weights of `spec`, trained on `data.split.train`: the stage "train" alone.

    Raises what `train_towers` does.
    """
    known = {one.name for one in fields(TowerOptions)}
    options = TowerOptions(**{name: value for name, value in spec.training.items() if name in known})  # type: ignore[arg-type]
    seconds = None if options.max_minutes is None else 60 * options.max_minutes / 2
    fitted = _fitted(data, data.split.train, options, StageContext(watch, seconds=seconds), "train")
    return _of_other_rows(spec, fitted, data, options.seed)


def _of_other_rows(spec: TowerSpec, fitted: "_Fitted", data: RetrievalData, seed: int) -> TrainedTowers:
    """Towers that were fitted on `data.split.train`, with what was chosen for those of `spec`."""
    learned = {
        "shape": fitted.towers.shape,
        "space_sha256": fitted.towers.sha256,
        "training_sha256": data.training_sha256,
        "passes": {"train": fitted.passes},
        "spread": None,
    }
    return _trained(spec.model_copy(update=learned), fitted, data, seed)


def _trained(spec: TowerSpec, fitted: "_Fitted", data: RetrievalData, seed: int) -> TrainedTowers:
    """Towers with what else the training part says of ads."""
    queries = _queries(fitted, _drawn(fitted.sequences, seed), data)
    rows = data.log.take(data.split.train)
    known = frozenset(rows.ad_id.tolist())
    return TrainedTowers(spec, fitted.towers, known, PopularitySnapshot.of(rows), queries, fitted.neighbours)


def train_and_save(
    data: RetrievalData,
    encoder: TextEncoder,
    root: Path,
    options: TowerOptions,
    *,
    publish: bool = True,
    publish_anyway: bool = False,
    watch: OnProgress = lambda _: None,
) -> TowerReport:
    """Trains towers and keeps them as a version under `root`. Raises what `train_towers` does, and ArtifactError.

    A training that was killed is taken up again by the next one of the same data and options.

    Args:
        publish: Make the version the one that builds take, unless something that needs no training finds more (see
            `TowerComparison.better_than`).
        publish_anyway: Also then.
    """
    started = time.perf_counter()
    store, unfinished = open_store(root), _unfinished(data, encoder, root, options)
    with store.begin() as draft:
        keep = draft.path / CHOOSING_FOLDER
        trained = train_towers(data, encoder, options, watch, checkpoints=unfinished, keep=keep)
        save_towers(draft.path, trained)
        store.commit(draft, trained.spec.model_dump(mode="json"))
    published = publish and (publish_anyway or not trained.spec.better_than())
    if published:
        store.publish(draft.version)
    shutil.rmtree(unfinished, ignore_errors=True)
    sequences = sequences_of(data.log, data.split.train, data.number_of)
    clicked = data.split.train[data.log.clicks[data.split.train] > 0]
    return TowerReport(
        draft.version,
        published,
        trained.spec,
        len(sequences.ads),
        len(sequences.users),
        data.log.ad_id[clicked].distinct,
        time.perf_counter() - started,
    )


def _unfinished(data: RetrievalData, encoder: TextEncoder, root: Path, options: TowerOptions) -> Path:
    """The folder of the checkpoints, by everything that the weights depend on."""
    split, log = data.split, data.log
    rows = data.training_sha256, split.fit, split.tune, split.train, log.conversions, log.context
    ads = encoder.sha256, data.ad_ids, data.texts
    return unfinished_folder(root, FORMAT_VERSION, *ads, *rows, data.users, asdict(options))


def _check(options: TowerOptions) -> None:
    if options.width % options.heads:
        raise BuildError(f"--width {options.width} cannot be divided among {options.heads} heads")


@dataclass(frozen=True)
class _Fitted:
    """Towers with what they learned from, which ads go together there, and how far they came."""

    towers: Towers
    catalog: Catalog
    sequences: Sequences
    neighbours: ItemToItem | None
    passes: Passes


def _chosen(data: RetrievalData, options: TowerOptions, context: StageContext) -> tuple[Choice, _Fitted]:
    """What is chosen, and the towers that it is chosen with."""
    split = data.split
    judged = held_out(data.log, split.fit, split.tune, data.number_of)
    if not len(judged):
        if not (data.log.clicks > 0).any():
            raise InputError("the log has no click to learn from")
        raise InputError(
            "the log is too small to choose by: nobody clicked an ad that was new to them in its last part"
        )
    fitted = _fitted(data, split.fit, options, context, "choose")
    sequences, neighbours = fitted.sequences, fitted.neighbours
    popularity = PopularitySnapshot.of(data.log.take(split.fit))
    novel = options.exploration * novelty(popularity.impressions(data.ad_ids))
    shape = (len(sequences.users) + 1, len(data.ads))
    item_scores = csr_matrix(shape) if neighbours is None else neighbour_scores(neighbours, sequences, data.ad_ids)
    beside = SideScores(popularity.features(data.ad_ids), novel, item_scores)
    return tune(fitted.towers, fitted.catalog, judged, data.users, beside, options.seed), fitted


def _fitted(data: RetrievalData, rows: Integers, options: TowerOptions, context: StageContext, stage: str) -> _Fitted:
    sequences = sequences_of(data.log, rows, data.number_of)
    if not (data.log.clicks[rows] > 0).any() or not len(sequences.users):
        raise InputError("the training part of the log has no clicks of known users to learn from")
    shape = TowerShape(
        text_width=data.texts.shape[1],
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        history=options.history,
        id_buckets=_id_buckets(len(data.ads)),
    )
    catalog = catalog_of(data.ad_ids, frozenset(data.log.ad_id[rows].compact().names.to_pylist()), data.texts, shape)
    attributes = attributes_of(data.users, list(sequences.users))
    fitted = fit_towers(sequences, catalog, attributes, shape, options, context, stage)
    return _Fitted(fitted.towers, catalog, sequences, fit_ease(sequences, data.ad_ids, options), fitted.passes)


def _id_buckets(ads: int) -> int:
    """A power of two with room to spare, so that few ads share a residual."""
    return int(2 ** np.clip(np.ceil(np.log2(4 * ads)), 8, 22))


def _drawn(sequences: Sequences, seed: int) -> Integers:
    """Places of some users, in order."""
    return np.sort(np.random.default_rng(seed).permutation(len(sequences.users))[:_QUERIES])


def _interests(fitted: _Fitted, places: Integers, data: RetrievalData) -> Vectors:
    """Interest vectors of users as they are now, float32 [users, dimension]."""
    users = [fitted.sequences.users[place] for place in places.tolist()]
    nothing = [np.empty(0, np.int64)] * len(users)
    nowhere = [Context()] * len(users)
    return interests_of(
        fitted.towers, fitted.catalog, HeldOut(users, nothing, nothing, nowhere, fitted.sequences, places), data.users
    )


def _queries(fitted: _Fitted, places: Integers, data: RetrievalData) -> Vectors:
    """Interest vectors of some users, float32 [queries, dimension]."""
    return np.ascontiguousarray(_interests(fitted, places, data))


def _spread(trained: TrainedTowers, fitted: _Fitted, data: RetrievalData, seed: int) -> Spread:
    """Of what users of the log would get now, with all that is added when it is served."""
    places = _drawn(fitted.sequences, seed)[:_SPREAD_USERS]
    interests, vectors = _interests(fitted, places, data), trained.ad_vectors(data.ad_ids, data.texts)
    scores = interests @ vectors.T
    if trained.neighbours is not None:
        item_scores = neighbour_scores(trained.neighbours, fitted.sequences, data.ad_ids)[places].toarray()
        scores += trained.spec.neighbour_weight * item_scores
    first = np.argsort(-scores, axis=1, kind="stable")[:, :FIRST]
    ads, counts = np.unique(first[:, 0], return_counts=True)
    return Spread(
        users=len(places),
        ads=len(data.ads),
        first_ad=data.ad_ids[int(ads[counts.argmax()])],
        first_of=int(counts.max()),
        shown=len(np.unique(first)),
    )
