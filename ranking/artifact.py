"""A model version: what lies in its directory, and that directory loaded. Knows no training.

A Hugging Face directory (``config.json``, ``model.safetensors``, tokenizer) beside ``ctr.json`` (see `ranking.spec`),
``head.safetensors`` (what was learned outside the encoder), ``trees.txt`` and ``text-prior.safetensors`` (boosted
trees, and what texts alone say, where they help) and ``counters.parquet`` (past impressions and clicks for features).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from adcascade.artifacts.errors import CorruptVersion
from adcascade.artifacts.manifest import Manifest
from adcascade.artifacts.store import Draft, VersionStore
from adcascade.catalog.words import ANALYZER
from adcascade.records.counters import CounterSnapshot, SavedCounters
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.vectors.encoder import EMBEDDED, embedded_model_path
from adcascade.vectors.model_check import (
    BrokenModelError,
    check_folder,
    check_loading,
    check_tokenizer,
    check_weights,
    position_limit,
)
from ranking.errors import ModelError
from ranking.inputs.content import ContentSpace
from ranking.inputs.features import FEATURES
from ranking.model.batch import TokenRows
from ranking.model.behaviour import BehaviourLogits
from ranking.model.joint import JointCrossEncoder
from ranking.model.shape import ModelShape
from ranking.model.shared_user import BERT_LIKE, JOINT, SharedUserCrossEncoder
from ranking.model.text_prior import TextPrior, load_text_prior
from ranking.model.trees import BoostedTrees, load_trees
from ranking.spec import CTR_FILE, CtrSpec, read_spec

HEAD_FILE, COUNTERS_FILE, TREES_FILE = "head.safetensors", "counters.parquet", "trees.txt"
TEXT_PRIOR_FILE, CONTENT_FILE = "text-prior.safetensors", "content.safetensors"
EXPORT_FOLDER = "openvino"
# Weights that versions of 0.1 know by other names.
_RENAMED = {
    "behaviour.liking.weight": "behaviour.event_value.weight",
    "behaviour.indifference": "behaviour.null_logit",
    "behaviour.sharpness": "behaviour.inverse_temperature",
}

RankerModel = SharedUserCrossEncoder | JointCrossEncoder


@dataclass(frozen=True)
class Ranker:
    """A network with what it takes to read texts and features as it learned to, and to turn logits into probabilities.

    Attributes:
        model: The network; on whichever device it was put.
        tokenizer: Of its texts.
        spec: Everything else; see ``ctr.json``.
        trees: Beside the behaviour part; None if they brought nothing.
        text_prior: What an ad's text alone adds; None if it brought nothing. Of a shared-user model alone.
        content: Where the words of ads are compared with what users liked; None if no feature does.
    """

    model: RankerModel
    tokenizer: PreTrainedTokenizerBase
    spec: CtrSpec
    trees: BoostedTrees | None = field(default=None, kw_only=True)
    text_prior: TextPrior | None = field(default=None, kw_only=True)
    content: ContentSpace | None = field(default=None, kw_only=True)

    def with_trees(self, behaviour: BehaviourLogits, dense: Tensor) -> BehaviourLogits:
        """What is known without reading text: the behaviour part's logits with what the trees say, if there are any.

        Args:
            behaviour: of impressions, [impressions].
            dense: their normalised features, float32 [impressions, features].
        """
        if self.trees is None:
            return behaviour
        click = self.trees.blended(behaviour.click.double().cpu().numpy(), dense.cpu().numpy())
        return BehaviourLogits(torch.from_numpy(click).to(behaviour.click), behaviour.conversion)

    def of_texts(self, ads: TokenRows, keywords: Sequence[str] = ()) -> Tensor:
        """What the prior adds for each of some ads, float32 [ads]; zeros without one. See `TextPrior.logits`."""
        if self.text_prior is None or not isinstance(self.model, SharedUserCrossEncoder):
            return torch.zeros(len(ads.ids), device=ads.ids.device)
        return self.text_prior.logits(self.model, ads, keywords)

    @property
    def pad_id(self) -> int:
        """The token that fills up short texts."""
        return int(self.tokenizer.pad_token_id or 0)


@dataclass(frozen=True)
class ModelVersion(Ranker):
    """A loaded model version.

    Attributes:
        counters: past impressions and clicks, for the dense features.
        export: where its text layers lie for OpenVINO; None if they were not exported.
    """

    version: str
    created_at: datetime
    counters: CounterSnapshot
    export: Path | None = None


def load_base(
    base: str, architecture: str, join_layer: int, shape: ModelShape, features: int = len(FEATURES)
) -> tuple[RankerModel, PreTrainedTokenizerBase]:
    """A network and its tokenizer from a Hugging Face directory or hub name, or the embedded MiniLM.

    Args:
        shape: Of what is learned beside the encoder.
        features: How many dense ones it reads.

    Raises:
        ModelError: There is no such model, it is not BERT-like, it has fewer layers than `join_layer` needs, or it is
            broken: weights are missing or no numbers, its tokenizer does not fit or knows no words, ...
    """
    place = str(embedded_model_path()) if base == EMBEDDED else base
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    switch_off_telemetry()
    own = {"local_files_only": Path(place).is_dir()}  # a folder has all it needs: no hub is asked for what it lacks
    try:
        check_folder(place)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **own)
    except BrokenModelError as broken:
        raise ModelError(f"the model {base!r} is broken: {broken}") from broken
    except Exception as error:  # the library raises whatever its loaders raise
        raise ModelError(f"cannot load {base!r}: {error}. Give a Hugging Face directory or hub name") from error
    _check_family(base, config, architecture, join_layer)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **own)
        network = _load_network(place, config, architecture, own)
        check_tokenizer(tokenizer, network.get_input_embeddings().weight.shape[0])
        _check_marks(tokenizer)
        position_limit(network)
    except BrokenModelError as broken:
        raise ModelError(f"the model {base!r} is broken: {broken}") from broken
    except Exception as error:  # the library raises whatever its loaders raise
        raise ModelError(f"cannot load the weights of {base!r}: {error}") from error
    if architecture == JOINT:
        return JointCrossEncoder(network, features, shape), tokenizer
    return SharedUserCrossEncoder(network, join_layer, features, shape), tokenizer


def _load_network(place: str, config: Any, architecture: str, own: dict[str, bool]) -> Any:
    """What the files at `place` hold, and nothing drawn at random but the head of a classifier that has yet to learn.

    Raises BrokenModelError, or what the library raises.
    """
    has_classifier = "SequenceClassification" in str(config.architectures)
    how: dict[str, Any] = {"attn_implementation": "sdpa"}
    if architecture == JOINT:
        how = {} if has_classifier else {"num_labels": 1}
    how |= own
    of_kind = AutoModelForSequenceClassification if architecture == JOINT else AutoModel
    # No pickles; and nothing is mapped, since a mapped file that is cut short would end the process.
    network, info = of_kind.from_pretrained(
        place, use_safetensors=True, disable_mmap=True, trust_remote_code=False, output_loading_info=True, **how
    )
    check_loading(network, info, has_new_head=architecture == JOINT and not has_classifier)
    check_weights(network)
    return network


def _check_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises BrokenModelError unless texts begin with a mark of their own, which the ranker reads."""
    ids = tokenizer("x")["input_ids"]
    if not ids or ids[0] not in tokenizer.all_special_ids:
        raise BrokenModelError(
            "its tokenizer begins a text with no token of its own ([CLS] or the like), which the ranker reads; choose "
            "a model of an encoder"
        )


def _check_family(base: str, config: Any, architecture: str, join_layer: int) -> None:
    if architecture == JOINT:
        if getattr(config, "num_labels", 1) > 2 and "SequenceClassification" in str(config.architectures):
            raise ModelError(f"{base!r} is a classifier of {config.num_labels} labels; a click needs one or two")
        return
    if config.model_type not in BERT_LIKE:
        raise ModelError(
            f"{base!r} is a {config.model_type!r} model; the shared-user ranker runs on {', '.join(BERT_LIKE)}. "
            f"Choose another base, or --architecture {JOINT}"
        )
    if not 0 <= join_layer < config.num_hidden_layers:
        raise ModelError(
            f"{base!r} has {config.num_hidden_layers} layers; the join layer {join_layer} is not below that"
        )


def check_lengths(model: RankerModel, max_user_tokens: int, max_ad_tokens: int) -> None:
    """Raises ModelError if the model has too few positions for these lengths."""
    positions = position_limit(model.encoder)
    needed = max_user_tokens + max_ad_tokens if isinstance(model, JointCrossEncoder) else max_user_tokens
    if max(needed, max_ad_tokens) > positions:
        raise ModelError(f"{needed} tokens do not fit the model's {positions} positions; lower --max-user-tokens")


def save_version(store: VersionStore, draft: Draft, ranker: Ranker, counters: SavedCounters) -> Manifest:
    """Writes all files of a version into `draft` and commits it (not yet published)."""
    ranker.model.encoder.save_pretrained(draft.path)
    ranker.tokenizer.save_pretrained(draft.path)
    save_file(_beside_encoder(ranker.model), draft.path / HEAD_FILE)
    counters.save(draft.path / COUNTERS_FILE)
    if ranker.trees is not None:
        ranker.trees.save(draft.path / TREES_FILE)
    if ranker.text_prior is not None:
        ranker.text_prior.save(draft.path / TEXT_PRIOR_FILE)
    if ranker.content is not None:
        ranker.content.save(draft.path / CONTENT_FILE)
    document = ranker.spec.document()
    (draft.path / CTR_FILE).write_text(json.dumps(document, indent=2))
    return store.commit(draft, {name: document[name] for name in ("architecture", "base", "metrics")})


def save_derived(store: VersionStore, loaded: ModelVersion, spec: CtrSpec, *, publish: bool) -> str:
    """Commits a version that is `loaded` but for its spec, and returns its name.

    Raises:
        ArtifactError: It cannot be written.
    """
    with store.begin() as draft:
        if loaded.export is not None:  # of the weights, which stay
            shutil.copytree(loaded.export, draft.path / EXPORT_FOLDER)
        save_version(store, draft, replace(loaded, spec=spec), loaded.counters)
    if publish:
        store.publish(draft.version)
    return draft.version


def _beside_encoder(model: RankerModel) -> dict[str, Tensor]:
    """What the model learned outside its Hugging Face encoder."""
    return {name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("encoder.")}


def _with_names_of_today(learned: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a version that an earlier release saved, by the names that the network has now."""
    return {_RENAMED.get(name, name): value for name, value in learned.items()}


def load_version(store: VersionStore, version: str) -> ModelVersion:
    """Loads a (verified) version on the CPU, ready to score. Raises CorruptVersion or ModelError."""
    path = store.path(version)
    manifest = store.manifest(version)
    spec = read_spec(path)
    model, tokenizer = load_base(str(path), spec.architecture, spec.join_layer, spec.shape, features=len(spec.features))
    try:
        learned = _with_names_of_today(load((path / HEAD_FILE).read_bytes()))
        if learned.keys() != _beside_encoder(model).keys():
            raise RuntimeError(f"it holds {', '.join(learned)}")
        if not all(bool(tensor.isfinite().all()) for tensor in learned.values()):
            raise RuntimeError("it holds NaN or infinite numbers")
        model.load_state_dict(learned, strict=False)
        counters = CounterSnapshot.load(path / COUNTERS_FILE)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, SafetensorError) as error:
        raise CorruptVersion(f"{path / HEAD_FILE} does not fit this program's click head: {error}") from error
    model.eval()
    trees = _load_trees(path / TREES_FILE, spec)
    text_prior = _load_text_prior(path / TEXT_PRIOR_FILE, spec, model)
    content = _load_content(path / CONTENT_FILE, spec)
    export = path / EXPORT_FOLDER
    found = export if export.is_dir() else None
    about = version, manifest.created_at, counters, found
    return ModelVersion(model, tokenizer, spec, *about, trees=trees, text_prior=text_prior, content=content)


def _load_trees(path: Path, spec: CtrSpec) -> BoostedTrees | None:
    try:
        return None if spec.trees is None else load_trees(path, spec.trees, len(spec.features))
    except (OSError, ValueError, MemoryError) as error:
        raise CorruptVersion(f"{path} holds no boosted trees that this program can use: {error}") from error


def _load_text_prior(path: Path, spec: CtrSpec, model: RankerModel) -> TextPrior | None:
    if spec.text_prior is None:
        return None
    if spec.text_prior.keywords is not None:
        _check_analyzer("keywords", spec.text_prior.keywords.analyzer, path)
    try:
        if not isinstance(model, SharedUserCrossEncoder):
            raise ValueError(f"a {spec.architecture} model has none")
        return load_text_prior(path, spec.text_prior, model)
    except (OSError, ValueError, MemoryError, SafetensorError) as error:
        raise CorruptVersion(f"{path} holds no prior of texts that this program can use: {error}") from error


def _load_content(path: Path, spec: CtrSpec) -> ContentSpace | None:
    if spec.content is None:
        return None
    _check_analyzer("words", spec.content.analyzer, path)
    try:
        return ContentSpace.load(path, spec.content.events)
    except (OSError, ValueError, MemoryError, SafetensorError) as error:
        raise CorruptVersion(f"{path} holds no content space that this program can use: {error}") from error


def _check_analyzer(what: str, analyzer: int, path: Path) -> None:
    if analyzer != ANALYZER:
        raise ModelError(
            f"the {what} of model version {path.parent.name} were cut in a way (analyzer {analyzer}) that this release "
            "does not know; upgrade adcascade, or train it again"
        )


def default_join_layer(layers: int) -> int:
    """The last layer alone: joining more costs time and, measured, brings no AUC (docs/quality.md, join layer)."""
    return layers - 1
