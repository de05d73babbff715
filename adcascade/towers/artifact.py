"""What lies in a folder of trained towers, as a version of its own and inside an index version. Knows no training.

``towers.safetensors`` (weights of both), ``towers.json`` (`TowerSpec`), ``popularity.parquet`` (see
`PopularitySnapshot`), ``known_ads.parquet`` (ads that have a residual), ``queries.npy`` (float32 [queries, dimension]:
interest vectors of users of the log, by which the recall of an index is measured), ``neighbours/`` (see `ItemToItem`;
absent if the training kept none). In a version of its own also ``choosing/``: the same of towers that have not learned
the rows by which was chosen; absent in those of earlier releases.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from adcascade.artifacts.errors import CorruptVersion
from adcascade.artifacts.fallback import load_newest
from adcascade.records.errors import InputError
from adcascade.records.hashing import crc32_bucket
from adcascade.records.popularity import FEATURES, Floats, PopularitySnapshot
from adcascade.towers.findings import Passes, Spread, TowerComparison
from adcascade.towers.item_to_item import ItemToItem
from adcascade.towers.model import Towers, TowerShape
from adcascade.towers.store import open_store
from adcascade.vectors.encoder import TextEncoder, Vectors
from adcascade.vectors.errors import BuildError

SPEC_FILE = "towers.json"
_WEIGHTS_FILE, _POPULARITY_FILE, _KNOWN_FILE = "towers.safetensors", "popularity.parquet", "known_ads.parquet"
_QUERIES_FILE, _NEIGHBOURS_FOLDER, CHOOSING_FOLDER = "queries.npy", "neighbours", "choosing"
# What the libraries raise of files that are not what they should be.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(BadZipFile, pa.ArrowException, SafetensorError),
)


class TowerSpec(BaseModel):
    """What must be known of trained towers beside their weights.

    Attributes:
        encoder_name, encoder_sha256: whose text vectors they were trained on.
        space_sha256: hash of the weights; vectors of ads and users go together if they have the same.
        features: of `adcascade.records.popularity.FEATURES`, those that they were trained with, in their order.
        popularity_weights: what each counts in an ad's bias.
        exploration: what being new adds to an ad's bias: this over the square root of 1 + its impressions (optimism in
            the face of uncertainty, as UCB1, Auer et al. 2002).
        neighbour_weight: what `ItemToItem` count beside a similarity.
        recall: width -> recall@100 of the vectors cut to it, on the validation part.
        compared: with what needs no training; None in versions that were trained before this was kept.
        passes: of the training that chose ("choose") and of the one that made these towers ("train").
        spread: of what users get; None as above.
        training: the options.
        training_sha256: hash of the log's rows that were trained on.
    """

    model_config = ConfigDict(frozen=True)

    shape: TowerShape
    encoder_name: str
    encoder_sha256: str
    space_sha256: str
    features: tuple[str, ...]
    popularity_weights: tuple[float, ...]
    exploration: float
    neighbour_weight: float
    recall: dict[int, float]
    training: dict[str, object]
    training_sha256: str
    compared: TowerComparison | None = None
    passes: dict[str, Passes] = {}
    spread: Spread | None = None

    def better_than(self, width: int | None = None) -> tuple[str, ...]:
        """See `TowerComparison.better_than`; nothing is known of older versions."""
        return () if self.compared is None else self.compared.better_than(width)


def novelty(impressions: Floats) -> Vectors:
    """How new ads are, from 1 for one that was never shown towards 0, float32 [ads]."""
    return (1 / np.sqrt(1 + impressions)).astype(np.float32)


@dataclass(frozen=True)
class TrainedTowers:
    """Towers with all that turns ads and users into vectors.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.towers.artifact import load_published_towers
        >>> trained = load_published_towers(Path("data/towers"))
        >>> shape = trained.spec.shape
        >>> trained.queries.shape[1] == shape.dimension == 1 + shape.width  # of users; number 0 meets the ads' bias
        True
        >>> trained.known_ads <= set(trained.popularity.ad_ids)  # those that have a residual
        True
    """

    spec: TowerSpec
    towers: Towers
    known_ads: frozenset[str]
    popularity: PopularitySnapshot
    queries: Vectors
    neighbours: ItemToItem | None

    def with_popularity(self, popularity: PopularitySnapshot) -> "TrainedTowers":
        """The same towers at a later moment."""
        return replace(self, popularity=popularity)

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Raises BuildError if `encoder` is not the one that the towers were trained on."""
        if encoder.sha256 != self.spec.encoder_sha256:
            raise BuildError(
                f"the towers were trained on texts of the encoder {self.spec.encoder_name!r} with weights "
                f"{self.spec.encoder_sha256[:12]}, but {encoder.name!r} has {encoder.sha256[:12]}; "
                "build with the same encoder, or train the towers again"
            )

    @torch.no_grad()
    def ad_vectors(self, ad_ids: list[str], texts: Vectors) -> Vectors:
        """Vectors of the index, float32 [ads, 1 + width], from unit text vectors [ads, text width]."""
        vectors = self.towers.ads.vectors(*self._inputs(ad_ids, texts)).numpy()
        weights = np.array(self.spec.popularity_weights, np.float32)
        columns = [FEATURES.index(name) for name in self.spec.features]
        vectors[:, 0] += self.popularity.features(ad_ids)[:, columns] @ weights
        vectors[:, 0] += self.spec.exploration * novelty(self.popularity.impressions(ad_ids))
        return vectors

    @torch.no_grad()
    def event_vectors(self, ad_ids: list[str], texts: Vectors) -> Vectors:
        """What the user tower reads of events about these ads, float32 [ads, event width]."""
        vectors: Vectors = self.towers.ads.events(*self._inputs(ad_ids, texts)).numpy()
        return vectors

    def _inputs(self, ad_ids: list[str], texts: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.spec.shape.id_buckets
        buckets = [crc32_bucket(ad_id, rows) if ad_id in self.known_ads else 0 for ad_id in ad_ids]
        return torch.tensor(np.asarray(texts), dtype=torch.float32), torch.tensor(buckets, dtype=torch.int64)


def save_towers(folder: Path, trained: TrainedTowers) -> None:
    """Writes the files named above into an existing folder."""
    weights = {name: tensor.contiguous() for name, tensor in trained.towers.state_dict().items()}
    save_file(weights, folder / _WEIGHTS_FILE)
    (folder / SPEC_FILE).write_text(trained.spec.model_dump_json(indent=1), "utf-8")
    trained.popularity.save(folder / _POPULARITY_FILE)
    pq.write_table(pa.table({"ad_id": sorted(trained.known_ads)}), folder / _KNOWN_FILE, compression="zstd")
    np.save(folder / _QUERIES_FILE, trained.queries, allow_pickle=False)
    if trained.neighbours is not None:
        (folder / _NEIGHBOURS_FOLDER).mkdir(exist_ok=True)
        trained.neighbours.save(folder / _NEIGHBOURS_FOLDER)


def load_towers(folder: Path) -> TrainedTowers:
    """Reads what `save_towers` wrote.

    Raises:
        CorruptVersion: A file is missing or of another shape, the weights are not those that the spec names, or an
            earlier release gave these towers several vectors a user.
    """
    try:
        document = (folder / SPEC_FILE).read_bytes()
        _check_one_interest(folder, json.loads(document))
        spec = TowerSpec.model_validate_json(document)
        towers = Towers(spec.shape).eval()
        towers.load_state_dict(load((folder / _WEIGHTS_FILE).read_bytes()))
        known = frozenset(pq.read_table(folder / _KNOWN_FILE)["ad_id"].to_pylist())
        queries = np.load(folder / _QUERIES_FILE, allow_pickle=False)
        popularity = PopularitySnapshot.load(folder / _POPULARITY_FILE)
        has_neighbours = (folder / _NEIGHBOURS_FOLDER).is_dir()
        neighbours = ItemToItem.load(folder / _NEIGHBOURS_FOLDER) if has_neighbours else None
    except _UNREADABLE as error:
        raise CorruptVersion(f"{folder} holds no towers that can be read: {error}") from error
    if not all(bool(weight.isfinite().all()) for weight in towers.state_dict().values()):
        raise CorruptVersion(f"the weights of the towers in {folder} are not all numbers; train them again")
    if queries.ndim != 2 or queries.shape[1] != spec.shape.dimension or not np.isfinite(queries).all():
        raise CorruptVersion(f"{folder / _QUERIES_FILE} holds no vectors of these towers; train them again")
    if towers.sha256 != spec.space_sha256:
        raise CorruptVersion(f"the weights in {folder} are not those that {SPEC_FILE} speaks of; build it again")
    if unknown := [name for name in spec.features if name not in FEATURES]:
        raise CorruptVersion(
            f"the towers in {folder} count popularity in ways that this release does not know ({', '.join(unknown)}); "
            "upgrade adcascade, or train again"
        )
    return TrainedTowers(spec, towers, known, popularity, queries, neighbours)


def _check_one_interest(folder: Path, document: dict[str, dict[str, int]]) -> None:
    count = document["shape"].get("interests", 1)
    if count != 1:
        raise CorruptVersion(
            f"the towers in {folder} have {count} vectors a user, which this release no longer reads; train them again "
            "(adcascade train-retrieval), and build with the new ones"
        )


def load_published_towers(root: Path) -> TrainedTowers:
    """The published towers under a root, verified; if they are damaged, with an error logged, those before them.

    Raises ArtifactError.
    """
    store = open_store(root)
    return load_newest(store, lambda version: load_towers(store.path(version)))[1]


def load_choosing_towers(root: Path, towers: TrainedTowers) -> TrainedTowers | None:
    """Those that all was chosen with for `towers`, which have not learned the rows that it was chosen by.

    Of several versions of these towers the newest that is whole and kept them counts. None if none did.

    Raises:
        InputError: No version under `root` is of these towers.
        ArtifactError: All versions of these towers, or of which it cannot be told, are damaged.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    store, has_match, problem = open_store(root), False, ""
    for one in reversed(store.versions()):
        if one.problem:
            problem = problem or one.problem
            continue
        if store.manifest(one.version).content.get("space_sha256") != towers.spec.space_sha256:
            continue
        try:
            store.verify(one.version)
        except CorruptVersion as error:
            problem = problem or str(error)
            continue
        has_match, folder = True, store.path(one.version) / CHOOSING_FOLDER
        if folder.is_dir():
            return load_towers(folder)
    if has_match:
        return None
    if problem:
        raise CorruptVersion(problem)
    raise InputError(
        f"no version under {root} is of the towers that the index version was built with; name the root that they are "
        "under, or leave out --towers, so that some are trained"
    )
