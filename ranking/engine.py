"""Scores users' candidates with a loaded model version: prepare, forward, finish. Knows no wire.

Picks device and precision, keeps ad states across requests, and bounds memory by tokens, not by the request's size.
Belongs to one thread at a time.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ranking.ad_states import AdStateCache
from ranking.artifact import ModelVersion
from ranking.backends import OPENVINO, TORCH, OpenVinoBackend, TextBackend, TorchBackend, UserKept, fastest
from ranking.batch import PairBatch, TokenRows, pad, tokenize
from ranking.behaviour import AdKeys, Behaviour, History, Shown, with_interests
from ranking.context import CONTEXT_WORDS
from ranking.errors import ModelError
from ranking.features import COUNTED, gap_classes, id_bucket, snapshot_features
from ranking.model import SharedUserCrossEncoder
from ranking.passes import AdPass
from records.counters import Total

log = logging.getLogger(__name__)

MAX_CANDIDATES = 1000
_CACHED_VECTORS = 50_000

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EngineSettings:
    """How a model version is run.

    Attributes:
        device: torch device, or "auto" for the GPU where there is one.
        precision: "float32", "bfloat16", or "auto" for bfloat16 where the hardware computes in it.
        cache_mib: Memory for ad states, at most; at least one request's worth is always kept.
        token_budget: Ad tokens in one pass of the joined layers, at most.
        backend: "torch", "openvino", or "auto" for the faster one on this machine, of those that the version has.
    """

    device: str = "auto"
    precision: str = "auto"
    cache_mib: int = 256
    token_budget: int = 8192
    backend: str = "auto"


@dataclass(frozen=True)
class PastEvent:
    """What a user did with an ad, or with a text that is no ad; `seconds` ago, NaN if nobody knows."""

    ad_id: str
    text: str
    event_class: int
    seconds: float


@dataclass(frozen=True)
class RankQuery:
    """One user and their candidates.

    Attributes:
        interests: what the user says of themselves; may be empty.
        past: the user's newest events, oldest first.
        keys: for each of `ranking.features.COUNTED`, what each candidate's counters are looked up by.
        context: see `ranking.context.context_buckets`.
        moment: when the ads would be shown, seconds since 1970.
        fresher: totals of some keys that go before those of the model version, by what is counted.
    """

    user_text: str
    interests: str
    past: Sequence[PastEvent]
    ad_ids: Sequence[str]
    ad_texts: Sequence[str]
    keys: Mapping[str, Sequence[str]]
    context: Sequence[int]
    moment: float
    fresher: Mapping[str, Mapping[str, Total]] = field(default_factory=dict)


@dataclass(frozen=True)
class RankAnswer:
    """Probabilities in the order of the candidates, float64 [candidates].

    Attributes:
        p_click: calibrated probability of a click.
        p_conversion: of a conversion given the click; None if the log taught none.
    """

    p_click: npt.NDArray[np.float64]
    p_conversion: npt.NDArray[np.float64] | None
    cached_ads: int
    tokenize_ms: float
    compute_ms: float
    model_version: str


class RankingEngine:
    """A model version on its device."""

    def __init__(self, loaded: ModelVersion, settings: EngineSettings) -> None:
        self.loaded = loaded
        self.device = choose_device(settings.device)
        self._bfloat16 = choose_precision(settings.precision, self.device)
        self._settings = settings
        self._model = loaded.model.to(self.device).eval()
        self._reads_text = not self._model.adds_nothing
        self._pad_id = int(loaded.tokenizer.pad_token_id or 0)
        self._backend = self._make_backend()
        self._cache = self._make_cache()
        self._vectors = AdStateCache(_CACHED_VECTORS, 1, self._model.text.width, self.device)
        if not self._reads_text:
            log.info("its text layers were not trained for clicks and are left out")

    def _make_backend(self) -> TextBackend | None:
        """What runs the text layers; None if nothing does, or if they are those of a plain cross-encoder."""
        model, wanted, export = self._model, self._settings.backend, self.loaded.export
        if wanted not in ("auto", TORCH, OPENVINO):
            raise ModelError(f"backend must be auto, {TORCH} or {OPENVINO}, not {wanted!r}")
        if not isinstance(model, SharedUserCrossEncoder) or not self._reads_text:
            return None
        if wanted == OPENVINO and export is None:
            raise ModelError(f"model version {self.loaded.version} was not exported: see adcascade export")
        if wanted == OPENVINO and self.device.type != "cpu":
            raise ModelError(f"{OPENVINO} runs on the CPU; set the device to cpu, or the backend to {TORCH}")
        found: list[TextBackend] = []
        if wanted != OPENVINO:
            found.append(TorchBackend(model, self.device, bfloat16=self._bfloat16))
        if wanted != TORCH and export is not None and self.device.type == "cpu":
            found.append(OpenVinoBackend(export, bfloat16=self._bfloat16))
        if len(found) == 1:
            log.info("model %s runs in %s", self.loaded.version, found[0].name)
            return found[0]
        chosen, milliseconds = fastest(found, int(model.encoder.config.vocab_size), len(self.loaded.spec.features))
        timed = ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items())
        log.info("model %s runs in %s (a request of 100 ads: %s)", self.loaded.version, chosen.name, timed)
        return chosen

    def _make_cache(self) -> AdStateCache | None:
        if self._backend is None or not isinstance(self._model, SharedUserCrossEncoder):
            return None
        passes = AdPass(self._model)
        rows = passes.rows(self.loaded.spec.max_ad_tokens)
        fitting = self._settings.cache_mib * 2**20 // AdStateCache.bytes_per_ad(rows, passes.width)
        return AdStateCache(max(fitting, MAX_CANDIDATES), rows, passes.width, self.device)

    def warm_up(self) -> None:
        """One small request, so that the first real one does not pay for lazy initialisation."""
        past, keys = [PastEvent("a", "an ad", 1, 60.0)], {key: ["", ""] for key in COUNTED}
        texts = ["an ad", "another ad"]
        self.rank([RankQuery("warm up", "ads", past, ["a", "b"], texts, keys, [0] * CONTEXT_WORDS, 0.0)])

    def rank(self, queries: Sequence[RankQuery]) -> list[RankAnswer]:
        """Scores each query's candidates; users are read together, and each once.

        Raises:
            ModelError: The model made a score that is not a number.
        """
        started = time.perf_counter()
        users = self._tokenize([query.user_text for query in queries], self.loaded.spec.max_user_tokens)
        tokenized = time.perf_counter()
        with torch.inference_mode():
            scored = self._score(users, queries)
        compute_ms = 1000 * (time.perf_counter() - tokenized)
        return [
            RankAnswer(*self._finish(*logits), cached, 1000 * (tokenized - started), compute_ms, self.loaded.version)
            for *logits, cached in scored
        ]

    def _score(self, users: TokenRows, queries: Sequence[RankQuery]) -> list[tuple[Logits, Logits, int]]:
        """Logits of click and conversion of each query's candidates, and how many of their states were cached."""
        dense = [self._dense(query) for query in queries]
        behaviour = [self._behaviour(query, features) for query, features in zip(queries, dense, strict=True)]
        text = self._text(users, queries, dense)
        return [
            ((known.click + added).cpu().numpy(), known.conversion.cpu().numpy(), cached)
            for known, (added, cached) in zip(behaviour, text, strict=True)
        ]

    def _behaviour(self, query: RankQuery, dense: Tensor) -> Behaviour:
        """Logits from counters and the user's past events; what they are about is read once an ad, and kept."""
        interests = [query.interests] if query.interests else []
        texts = self._text_vectors([*query.ad_texts, *interests, *(event.text for event in query.past)])
        count = len(query.ad_texts)
        stated, past = texts[count : count + len(interests)], texts[count + len(interests) :]
        gaps = self._integers(gap_classes(np.array([event.seconds for event in query.past])))
        history = History(
            AdKeys(past, self._buckets([event.ad_id for event in query.past])),
            self._integers([event.event_class for event in query.past]),
            gaps.expand(count, -1),
            torch.ones((count, len(query.past)), dtype=torch.bool, device=self.device),
        )
        if interests:
            history = with_interests(history, stated, history.seen.new_ones((count, 1)))
        candidates = AdKeys(texts[:count], self._buckets(query.ad_ids))
        context = self._integers(query.context).expand(count, -1)
        return self._model.behaviour(Shown(dense, context, candidates), history)  # type: ignore[no-any-return]

    def _text(
        self, users: TokenRows, queries: Sequence[RankQuery], dense: Sequence[Tensor]
    ) -> list[tuple[Tensor, int]]:
        """What the text adds to the logits of each query, and how many ad states were cached."""
        if not self._reads_text:
            return [(torch.zeros(len(features), device=self.device), 0) for features in dense]
        if self._backend is not None:
            kept = self._backend.users(users)
            return [self._text_shared(self._backend, *query) for query in zip(kept, queries, dense, strict=True)]
        return [(self._text_joint(users, *query), 0) for query in zip(range(len(queries)), queries, dense, strict=True)]

    def _text_shared(self, backend: TextBackend, user: UserKept, query: RankQuery, dense: Tensor) -> tuple[Tensor, int]:
        logits, cached = [], 0
        for chunk in self._chunks(query, extra_tokens=0):
            kept, mask, found = self._kept(backend, query.ad_texts[chunk])
            cached += found
            logits.append(backend.join(user, kept, mask, dense[chunk]))
        return torch.cat(logits), cached

    def _text_joint(self, users: TokenRows, row: int, query: RankQuery, dense: Tensor) -> Tensor:
        user = TokenRows(users.ids[row : row + 1], users.lengths[row : row + 1])
        logits = []
        for chunk in self._chunks(query, extra_tokens=int(user.lengths[0])):
            ads = self._tokenize(query.ad_texts[chunk], self.loaded.spec.max_ad_tokens)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
                logits.append(self._model(PairBatch(user, ads, (len(ads.ids),), dense[chunk])).float())
        return torch.cat(logits)

    def _chunks(self, query: RankQuery, extra_tokens: int) -> Iterator[slice]:
        """Candidates in runs that keep to the token budget."""
        tokens_each = self.loaded.spec.max_ad_tokens + extra_tokens
        size = max(1, self._settings.token_budget // tokens_each)
        for start in range(0, len(query.ad_texts), size):
            yield slice(start, start + size)

    def _kept(self, backend: TextBackend, texts: Sequence[str]) -> tuple[Tensor, Tensor, int]:
        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            ads = self._tokenize([texts[place] for place in places], self.loaded.spec.max_ad_tokens)
            return _kept_by_length(backend, ads)

        assert self._cache is not None
        return self._cache.gather(texts, compute)

    def _tokenize(self, texts: Sequence[str], max_tokens: int) -> TokenRows:
        return pad(tokenize(self.loaded.tokenizer, texts, max_tokens), self._pad_id).to(self.device)

    def _dense(self, query: RankQuery) -> Tensor:
        counters = self.loaded.counters
        counts = {key: counters.counts(key, query.keys[key], query.fresher.get(key, {})) for key in COUNTED}
        moments = np.full(len(query.ad_ids), query.moment)
        features = snapshot_features(counts, self.loaded.spec.prior_ctr, moments, counters.end)
        return torch.from_numpy(self.loaded.spec.normalise(features)).to(self.device)

    def _buckets(self, ad_ids: Sequence[str]) -> Tensor:
        return self._integers([id_bucket(ad_id, self.loaded.spec.id_buckets) for ad_id in ad_ids])

    def _integers(self, values: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(np.array(values, np.int64)).to(self.device)

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            rows = self._tokenize([texts[place] for place in places], self.loaded.spec.max_ad_tokens)
            return torch.ones_like(rows.lengths), self._model.text(rows)[:, None]

        return self._vectors.gather(texts, compute)[0][:, 0]

    def _finish(self, click: Logits, conversion: Logits) -> tuple[Probabilities, Probabilities | None]:
        spec = self.loaded.spec
        p_click = spec.calibration.probability(click)
        if not np.isfinite(p_click).all():
            raise ModelError(f"model version {self.loaded.version} made a score that is not a number")
        return p_click, spec.conversion.probability(conversion) if spec.conversion is not None else None


def _kept_by_length(backend: TextBackend, ads: TokenRows, *, chunk: int = 32) -> tuple[Tensor, Tensor]:
    """What is kept of ads, and how many rows of each, in runs of like length: no short ad is padded to the longest."""
    order = torch.argsort(ads.lengths)
    parts = []
    for start in range(0, len(order), chunk):
        some = order[start : start + chunk]
        longest = int(ads.lengths[some].max())
        parts.append((some, backend.ads(TokenRows(ads.ids[some, :longest], ads.lengths[some]))))
    most, (_, last) = max(part.shape[1] for _, part in parts), parts[-1]
    kept = last.new_zeros((len(order), most, last.shape[2]))
    for some, part in parts:
        kept[some, : part.shape[1]] = part
    return ads.lengths + most - int(ads.lengths.max()), kept


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the GPU where there is one. Raises ModelError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for, but torch sees no GPU")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16; "auto" does where the hardware has it, since elsewhere it is far slower."""
    if name not in ("auto", "float32", "bfloat16"):
        raise ModelError(f"precision must be auto, float32 or bfloat16, not {name!r}")
    return has_bfloat16(device) if name == "auto" else name == "bfloat16"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
