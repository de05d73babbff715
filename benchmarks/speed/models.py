"""A ranker for the speed benchmarks: trained on MovieLens-100k until its text says something of ads never met."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ranking.artifact import ModelVersion
from ranking.store import open_store
from ranking.training.dataset import load_dataset
from ranking.training.options import TrainOptions
from ranking.training.run import train_and_save
from ranking.training.versions import load_from
from records.movielens import DatasetFiles, export_movielens, find_movielens

# Little of everything: speed hangs on the shape of a network, and its quality in fewer bits shows early.
_OPTIONS = TrainOptions(
    behaviour_epochs=1,
    behaviour_batch=8192,
    behaviour_min_steps=10,
    epochs=0.03,
    validate_every=10,
    validation_rows=500,
    calibration_rows=500,
    max_user_tokens=256,
    max_ad_tokens=48,
    train_layers="all",
    min_text_gain=-np.inf,
)
_TEST_ROWS = 3000


def movielens_files(folder: Path) -> DatasetFiles:
    """MovieLens-100k as a catalog, a click log and users. Raises InputError if it is not installed."""
    return export_movielens(find_movielens(), folder / "movielens")


def train_ranker(
    root: Path, files: DatasetFiles, join_layer: int | None, *, seed: int, export: bool = True
) -> ModelVersion:
    """Publishes a ranker of the embedded base, with its export, and loads it (a few minutes)."""
    data = load_dataset(files.ads, files.clicks, files.users, split="ad", seed=seed)
    test = np.random.default_rng(seed).permutation(data.parts[2])[:_TEST_ROWS]
    data = data.with_parts((*data.parts[:2], np.sort(test)))
    train_and_save(data, root, replace(_OPTIONS, join_layer=join_layer, seed=seed, export=export), which_peers="none")
    found = load_from(open_store(root), "")
    if found.model.adds_nothing:
        raise RuntimeError("fine-tuning brought nothing, so that a server would leave the text out and look fast")
    return found


def kept_ranker(kept: Path, files: DatasetFiles, *, seed: int) -> Path:
    """Root of a ranker with the default join layer, trained if an earlier run has not kept one."""
    root = kept / f"ranker-{seed}"
    if open_store(root).current() is None:
        train_ranker(root, files, None, seed=seed)
    return root
