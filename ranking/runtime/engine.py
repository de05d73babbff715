"""Scores users' candidates with a loaded model version: prepare, forward, finish. Knows no wire.

Picks device, precision and what runs the text layers. Belongs to one thread at a time.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.hashing import blake2b_bucket
from adcascade.serving.slices import SliceBudget, Slices, run_through
from adcascade.vectors.encoder import estimated_tokens
from ranking.artifact import ModelVersion
from ranking.errors import ModelError
from ranking.inputs.content import MOST_CHARS, Similarity
from ranking.inputs.context import CONTEXT_WORDS, context_buckets
from ranking.inputs.features import COUNTED, FeatureInputs, snapshot_features, time_gap_buckets
from ranking.inputs.keywords import AdParts
from ranking.inputs.query import MAX_CANDIDATES, PastEvent, RankAnswer, RankQuery
from ranking.model.behaviour import BehaviourLogits
from ranking.model.behaviour_inputs import AdInputs, History, Impressions, with_interests
from ranking.model.passes import AdPass
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.runtime.ad_state_cache import AdStateCache
from ranking.runtime.backends import TextBackend, choose_backend
from ranking.runtime.engine_settings import EngineSettings
from ranking.runtime.hardware import choose_device, choose_precision
from ranking.runtime.prior_numbers import PriorNumbers
from ranking.runtime.text_scorer import JointText, NoText, Reader, SharedText, TextLayers, chars_to_find, read_ahead

log = logging.getLogger(__name__)

# Of candidates and past ads; to read one again costs little.
_CACHED_VECTORS = 20_000
_GPU_BUDGETS = 8
# What a call costs at most is told in candidates that have been read before; reading a token in the text layers takes
# as long as half of one, splitting a text into tokens and looking up its words an eighth a token.
_READ_TOKENS, _LOOKED_UP_TOKENS = 2, 8
# A call that costs more waits behind the others; on a GPU as many times more as `_GPU_BUDGETS` says.
LIGHT_COST = 512
# How long a slice may take that splits texts into tokens, and how many characters the first ones have.
_SLICE_SECONDS, _FIRST_CHARS, _LEAST_CHARS, _MOST_CHARS = 0.04, 8192, 1024, 131_072

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


def light_cost(device: str) -> int:
    """What a call costs at most that need not wait behind others, on a device as `EngineSettings` names it.

    Raises:
        ModelError: The device is not there.
    """
    return LIGHT_COST * (_GPU_BUDGETS if choose_device(device).type == "cuda" else 1)


class RankingEngine:
    """A model version on its device.

    Attributes:
        backend: what runs the text layers; None if nothing does, or if they are those of a plain cross-encoder.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.records.ads import read_catalog
        >>> from adcascade.records.users import Context, UserProfile
        >>> from ranking.artifact import load_version
        >>> from ranking.inputs.prepare import prepare
        >>> from ranking.runtime.engine import RankingEngine
        >>> from ranking.runtime.engine_settings import EngineSettings
        >>> from ranking.store import open_store
        >>> store = open_store(Path("data/model"))
        >>> engine = RankingEngine(load_version(store, store.current()), EngineSettings(device="cpu"))
        >>> user, ads = UserProfile(interests="trail running"), read_catalog(Path("examples/ads.jsonl")).ads[:10]
        >>> asked = prepare(user, Context(device="phone"), ads, None, skip_unknown=False)
        >>> (answer,) = engine.rank([asked.query])
        >>> answer.p_click.shape, bool(((answer.p_click > 0) & (answer.p_click < 1)).all())
        ((10,), True)
    """

    def __init__(self, loaded: ModelVersion, settings: EngineSettings) -> None:
        self.loaded = loaded
        self.device = choose_device(settings.device)
        spec = loaded.spec
        self._model = loaded.model.to(self.device).eval()
        self._reader = Reader(loaded.tokenizer, spec.max_user_tokens, spec.max_ad_tokens, self.device)
        self.backend: TextBackend | None = None
        self._text = self._text_layers(settings)
        self._slice = SliceBudget(_SLICE_SECONDS, _FIRST_CHARS, least=_LEAST_CHARS, most=_MOST_CHARS)
        self._vectors = AdStateCache(_CACHED_VECTORS, 1, self._model.text.width, self.device, page_rows=1)
        self._contents: AdStateCache | None = None
        if loaded.content is not None:
            self._contents = AdStateCache(_CACHED_VECTORS, 1, loaded.content.width, torch.device("cpu"), page_rows=1)
        self._priors: PriorNumbers | None = None
        if loaded.text_prior is not None:
            self._priors = PriorNumbers(loaded, loaded.text_prior, self._reader, self.device)

    def _text_layers(self, settings: EngineSettings) -> TextLayers:
        model, bfloat16 = self._model, choose_precision(settings.precision, self.device)
        token_budget = settings.token_budget * (_GPU_BUDGETS if self.device.type == "cuda" else 1)
        if model.text_is_untrained:
            log.info("its text layers were not trained for clicks and are left out")
            return NoText()
        if not isinstance(model, SharedUserCrossEncoder):
            return JointText(model, self._reader, token_budget=token_budget, bfloat16=bfloat16)
        # Half as many bytes lose nothing beside bfloat16, and next to nothing beside float32.
        dtype = torch.float32 if settings.precision == "float32" else torch.float16
        self.backend = choose_backend(
            self.loaded, model, settings.backend, self.device, bfloat16=bfloat16, kept_in=dtype
        )
        return SharedText(
            self.backend,
            AdPass(model),
            self._reader,
            cache_bytes=settings.cache_mib * 2**20,
            user_cache_bytes=settings.user_cache_mib * 2**20,
            token_budget=token_budget,
            most_candidates=MAX_CANDIDATES,
            dtype=dtype,
            device=self.device,
        )

    def warm_up(self) -> None:
        """One small request, so that the first real one does not pay for lazy initialisation."""
        past, keys = [PastEvent("a", "an ad", 1, 60.0)], {key: ["", ""] for key in COUNTED}
        texts = ["an ad", "another ad"]
        self.rank([RankQuery("warm up", "ads", past, ["a", "b"], texts, keys, [0] * CONTEXT_WORDS, 0.0)])

    @torch.inference_mode()
    def prefetch(self, ad_texts: Sequence[str], parts: Sequence[AdParts] = ()) -> bool:
        """Reads ads before anybody asks for them; False if there is no room left, or nothing that could be kept.

        Args:
            ad_texts, parts: as those of a `RankQuery`.
        """
        has_prior = self._priors is not None and self._priors.prefetch(ad_texts, parts)
        has_states = isinstance(self._text, SharedText) and self._text.prefetch(ad_texts)
        return has_prior or has_states

    def readable(self, query: RankQuery) -> RankQuery:
        """The query with texts that are cut to what the model reads of them.

        Another version may answer it, so that `parts` stay whether or not this one reads them; where it does not, as
        they are, for to cut them is to make them.
        """
        most = self._reader.max_ad_chars
        if self._contents is not None:
            most = max(most, MOST_CHARS)
        return replace(
            query,
            user_text=query.user_text[: self._reader.max_user_chars],
            interests=query.interests[:most],
            past=[replace(event, text=event.text[:most]) for event in self._newest(query).past],
            ad_texts=[text[:most] for text in query.ad_texts],
            parts=self._readable_parts(query.parts),
        )

    def _readable_parts(self, parts: Sequence[AdParts]) -> Sequence[AdParts]:
        if self._priors is None or not self._priors.reads_keywords:
            return parts
        return [AdParts(one.text[: self._reader.max_ad_chars], one.keywords) for one in parts]

    def _newest(self, query: RankQuery) -> RankQuery:
        """The query with as many past events as the model reads."""
        most = self.loaded.spec.shape.history_events
        return query if len(query.past) <= most else replace(query, past=query.past[-most:])

    def cost_of(self, query: RankQuery) -> int:
        """About what a query costs; the unit is one candidate that has been read before.

        May be called in any thread: what is kept by now is looked up, and nothing is changed.
        """
        looked_up = self._missing([*query.ad_texts, *(event.text for event in query.past)])
        user_tokens = estimated_tokens(query.user_text, self._reader.max_user_tokens)
        read = user_tokens + self._text.cost_of(query.ad_texts, user_tokens)
        if self._priors is not None:
            read += self._priors.cost_of(query.ad_texts, query.parts)
        tokens = sum(map(self._reader.tokens_of_ad, looked_up))
        return len(query.ad_texts) + read // _READ_TOKENS + tokens // _LOOKED_UP_TOKENS

    def rank(self, queries: Sequence[RankQuery]) -> list[RankAnswer]:
        """Scores each query's candidates; users are read together, and each once.

        Raises:
            ModelError: The model made a score that is not a number.
        """
        return run_through(self.rank_in_slices(queries))

    @torch.inference_mode()
    def rank_in_slices(self, queries: Sequence[RankQuery]) -> Slices[list[RankAnswer]]:
        """The same as `rank`."""
        started = time.perf_counter()
        queries = [self._newest(query) for query in queries]
        users = self._reader.users([query.user_text for query in queries])
        tokenized = time.perf_counter()
        yield
        dense, behaviour = [], []
        for query in queries:
            yield from read_ahead(self._missing(_texts_of(query)), self._looking_up, self._slice, self._look_up)
            dense.append(self._dense(query))
            known = self._behaviour(query, dense[-1])
            yield
            if self._priors is not None:
                added = yield from self._priors.of(query.ad_texts, query.parts)
                known = replace(known, click=known.click + added)
            behaviour.append(known)
        text = yield from self._text.text_logits(users, [query.ad_texts for query in queries], dense)
        scored = [
            ((known.click + text_logits).cpu().numpy(), known.conversion.cpu().numpy(), cached)
            for known, (text_logits, cached) in zip(behaviour, text, strict=True)
        ]
        compute_ms = 1000 * (time.perf_counter() - tokenized)
        timings = 1000 * (tokenized - started), compute_ms
        version = self.loaded.version, self.loaded.spec.retrieval_weight
        return [RankAnswer(*self._finish(*logits), cached, *timings, *version) for *logits, cached in scored]

    def _behaviour(self, query: RankQuery, dense: Tensor) -> BehaviourLogits:
        """Logits from counters and the user's past events; what they are about is read once an ad, and kept."""
        shape = self.loaded.spec.shape
        texts = self._text_vectors(_texts_of(query))
        count, interests = len(query.ad_texts), [query.interests] if query.interests else []
        stated, past = texts[count : count + len(interests)], texts[count + len(interests) :]
        gaps = self._integers(time_gap_buckets(np.array([event.seconds for event in query.past]), shape.time_gap_ends))
        history = History(
            AdInputs(past, self._buckets([event.ad_id for event in query.past])),
            self._integers([event.event_class for event in query.past]),
            gaps.expand(count, -1),
            torch.ones((count, len(query.past)), dtype=torch.bool, device=self.device),
        )
        if interests:
            history = with_interests(history, stated, history.seen.new_ones((count, 1)))
        candidates = AdInputs(texts[:count], self._buckets(query.ad_ids))
        context = self._integers(context_buckets(query.context[: shape.context_words], shape.context_buckets))
        shown = Impressions(dense, context.expand(count, -1), candidates)
        return self.loaded.with_trees(self._model.behaviour(shown, history), dense)

    def _missing(self, texts: Sequence[str]) -> list[str]:
        """Those of some texts that have no vector yet, or none that is compared."""
        missing = self._vectors.missing(texts)
        if self._contents is not None:
            missing = [*missing, *self._contents.missing(texts)]
        return list(dict.fromkeys(missing))

    def _looking_up(self, text: str) -> int:
        """What looking a text up costs, in characters of plain English."""
        return len(text) if self._contents is None else chars_to_find(text)

    def _look_up(self, texts: Sequence[str]) -> None:
        """Reads texts that are not kept yet."""
        self._text_vectors(texts)
        if self._contents is not None:
            self._content_vectors(self._contents, texts)

    def _content_vectors(self, cache: AdStateCache, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """See `ContentSpace.vectors`."""
        space = self.loaded.content
        assert space is not None

        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            vectors = torch.from_numpy(space.vectors([texts[place] for place in places]))
            return torch.ones(len(places), dtype=torch.int64), vectors[:, None]

        found: npt.NDArray[np.float32] = cache.gather(texts, compute)[0][:, 0].numpy()
        return found

    def _similarity(self, query: RankQuery) -> Similarity | None:
        """Of the candidates to what the user likes."""
        cache = self._contents
        if cache is None:
            return None
        liked = [event.text for event in query.past if event.event_class]
        vectors = self._content_vectors(
            cache, [*query.ad_texts, *([query.interests] if query.interests else []), *liked]
        )
        ads = len(query.ad_texts)
        return Similarity.of((vectors[:ads] @ vectors[ads:].T).astype(np.float64))

    def _dense(self, query: RankQuery) -> Tensor:
        counters = self.loaded.counters
        counts = {key: counters.counts(key, query.keys[key], query.counter_overrides.get(key, {})) for key in COUNTED}
        spec, timestamps_s = self.loaded.spec, np.full(len(query.ad_ids), query.timestamp_s)
        shown = np.full(len(query.ad_ids), float(query.shown)) if query.shown else None
        inputs = FeatureInputs(counts, spec.prior_ctr, timestamps_s, shown=shown, similarity=self._similarity(query))
        features = snapshot_features(inputs, counters.end, spec.features)
        return torch.from_numpy(spec.normalise(features)).to(self.device)

    def _buckets(self, ad_ids: Sequence[str]) -> Tensor:
        return self._integers([blake2b_bucket(ad_id, self.loaded.spec.shape.id_buckets) for ad_id in ad_ids])

    def _integers(self, values: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(np.array(values, np.int64)).to(self.device)

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        def compute(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            rows = self._reader.ads([texts[place] for place in places])
            return torch.ones_like(rows.lengths), self._model.text(rows)[:, None]

        return self._vectors.gather(texts, compute)[0][:, 0]

    def _finish(self, click: Logits, conversion: Logits) -> tuple[Probabilities, Probabilities | None]:
        spec = self.loaded.spec
        p_click = spec.calibration.probability(click)
        if not np.isfinite(p_click).all():
            raise ModelError(f"model version {self.loaded.version} made a score that is not a number")
        return p_click, spec.conversion.probability(conversion) if spec.conversion is not None else None


def _texts_of(query: RankQuery) -> list[str]:
    """Candidates, interests if there are any, and what past events are about."""
    interests = [query.interests] if query.interests else []
    return [*query.ad_texts, *interests, *(event.text for event in query.past)]
