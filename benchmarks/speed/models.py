"""A ranker for the speed benchmarks: trained on MovieLens-100k until its text says something of ads never met."""

from pathlib import Path

from adcascade.records.datasets.movielens import DatasetFiles, export_movielens, find_movielens
from benchmarks.architectures import LITTLE_TEXT, unseen_ads
from ranking.artifact import ModelVersion
from ranking.store import open_store
from ranking.training.run import train_and_save
from ranking.training.versions import load_from

# The default of a training: the last.
JOIN_LAYER = 5
_USER_TOKENS, _AD_TOKENS = 256, 48


def movielens_files(folder: Path) -> DatasetFiles:
    """MovieLens-100k as a catalog, a click log and users. Raises InputError if it is not installed."""
    return export_movielens(find_movielens(), folder / "movielens")


def kept_ranker(
    kept: Path, files: DatasetFiles, *, join_layer: int = JOIN_LAYER, seed: int = 0
) -> tuple[Path, ModelVersion]:
    """The root of a ranker, and its version; trained (a few minutes) if an earlier run has not kept it."""
    root = kept / f"ranker-{join_layer}-{seed}"
    if open_store(root).current() is None:
        options = LITTLE_TEXT.but(
            join_layer=join_layer, max_user_tokens=_USER_TOKENS, max_ad_tokens=_AD_TOKENS, seed=seed
        )
        train_and_save(unseen_ads(files, seed), root, options, which_baselines="none")
    found = load_from(open_store(root), "")
    if found.model.text_is_untrained:
        raise RuntimeError("fine-tuning brought nothing, so that a server would leave the text out and look fast")
    return root, found
