"""The part of the ranker that knows what people did: counters, context, and attention over the user's past ads.

It reads no text while scoring, only one ready vector an ad: scoring is cheap, and training takes minutes. The candidate
attends to the user's past events (after DIN, arXiv 1706.06978): each event is the ad's text vector and learned id, what
the user did, and how long before the impression. One head more attends by likeness of the texts alone (kernel
regression, Nadaraya 1964, Watson 1964), so that tastes count before anything is learned. Knows no gRPC and no files.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranking.model.behaviour_inputs import AdInputs, History, Impressions, Tile, UserBatch
from ranking.model.shape import ModelShape

# Where the head of likeness begins: how fast attention falls as texts differ, and how much of it goes to nothing.
_INVERSE_TEMPERATURE, _SIMILARITY_NULL_LOGIT = 4.0, 2.8
# In training alone.
_DROPOUT, _DROP_IDS, _DROP_EVENTS, _DROP_WORDS = 0.3, 0.2, 0.2, 0.5


@dataclass(frozen=True)
class BehaviourLogits:
    """Logits of a click, and of a conversion given the click, float32 [impressions]."""

    click: Tensor
    conversion: Tensor


class BehaviourModel(nn.Module):
    """Counters and attention over past events to logits.

    The wide part is a logistic regression on the features (wide and deep, arXiv 1606.07792). In training an ad's
    learned id is dropped at random, so that the text alone stands for an ad that nobody has seen, and so are events.

    Args:
        text_width: Numbers in an ad's text vector.
        features: Number of dense features.
        shape: All other sizes.
    """

    def __init__(self, text_width: int, features: int, shape: ModelShape) -> None:
        super().__init__()
        self._heads, width, all_heads = shape.heads, shape.width, shape.heads + 1
        self.text = nn.Linear(text_width, width)
        self.ids = nn.Embedding(shape.id_buckets, width)
        self.types = nn.Embedding(shape.event_classes, width)
        self.gaps = nn.Embedding(shape.time_gap_buckets, all_heads)
        # What attributes, context and hour say of any ad, and of this one (a factorisation machine, Rendle 2010).
        self.context = nn.EmbeddingBag(shape.context_buckets, width, mode="sum", padding_idx=0)
        self.positions = nn.Embedding(shape.positions, 1, padding_idx=0)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        # How much each kind of event speaks for the ad that it is about, and how strongly nothing is attended to.
        self.event_value = nn.Embedding(shape.event_classes, 1)
        self.null_logit = nn.Parameter(torch.tensor([1.0] * shape.heads + [_SIMILARITY_NULL_LOGIT]))
        self.inverse_temperature = nn.Parameter(torch.tensor(_INVERSE_TEMPERATURE))
        self.dropout = nn.Dropout(_DROPOUT)
        self.wide = nn.Linear(features + all_heads, 1)
        self.deep = nn.Sequential(
            nn.Linear(features + 5 * width + all_heads, shape.hidden),
            nn.GELU(),
            nn.Dropout(_DROPOUT),
            nn.Linear(shape.hidden, 2),
        )
        for embedding in (self.ids, self.gaps, self.context, self.positions):
            nn.init.zeros_(embedding.weight)
        with torch.no_grad():
            self.event_value.weight.copy_(torch.linspace(-0.5, 1.0, shape.event_classes)[:, None])
        nn.init.normal_(self.types.weight, std=0.1)

    def forward(self, shown: Impressions, history: History) -> BehaviourLogits:
        """Logits of impressions at an average place on the page."""
        ads = self._ads(shown.ads)
        attended, event_value = self._attend(shown.ads.vectors, ads, history)
        return self._logits(shown.dense, shown.context, ads, attended, event_value)

    def of_users(self, batch: UserBatch) -> BehaviourLogits:
        """What `forward` says of impressions of many users, in one pass: each text is projected once."""
        texts = torch.cat([self.text(batch.texts.vectors), self._ids(batch.texts.buckets)], dim=1)
        both = F.embedding(torch.cat([batch.shown, batch.events]), texts)
        width = self.text.out_features
        vectors = both[:, :width] + self._some(both[:, width:])
        ads, events = vectors[: len(batch.shown)], vectors[len(batch.shown) :]
        if not batch.tiles:
            nothing = ads.new_zeros(len(ads), self._heads + 1)
            return self._logits(batch.dense, batch.context, ads, torch.zeros_like(ads), nothing)
        queries = self.query(ads)
        keys_values = torch.cat([self.key(events), self.value(self.dropout(events) + self.types(batch.types))], dim=1)
        kept = None
        if self.training:
            kept = torch.rand(batch.types.shape, device=ads.device) >= _DROP_EVENTS
        found = [self._attend_tile(batch, tile, queries, keys_values, kept) for tile in batch.tiles]
        # One row more is for impressions without a past.
        table = torch.cat([*found, found[0].new_zeros(1, found[0].shape[1])])
        back = F.embedding(batch.places, table)
        return self._logits(batch.dense, batch.context, ads, back[:, :width], back[:, width:])

    def _logits(
        self, dense: Tensor, words: Tensor, ads: Tensor, attended: Tensor, event_value: Tensor
    ) -> BehaviourLogits:
        context = self.context(self._words(words))
        vectors = torch.cat([ads, attended, attended * ads, context, context * ads], dim=1)
        click, conversion = self.deep(torch.cat([dense, self.dropout(vectors), event_value], dim=1)).unbind(dim=1)
        return BehaviourLogits(click + self.wide(torch.cat([dense, event_value], dim=1))[:, 0], conversion)

    def of_position(self, positions: Tensor) -> Tensor:
        """What the place on the page adds to the logit of a click, [impressions]; nothing for an unknown place, 0.

        It belongs to training alone: scores are those of an average place (a shallow tower for the selection bias,
        Zhao et al. 2019, "Recommending what video to watch next").
        """
        effect: Tensor = self.positions(positions.clamp(max=self.positions.num_embeddings - 1))[:, 0]
        return effect

    @torch.no_grad()
    def center_positions(self, positions: Tensor, impressions: Tensor) -> None:
        """Makes the mean effect over these impressions zero, and moves it to where every score has it."""
        known = positions > 0
        if known.any():
            mean = (self.of_position(positions) * impressions)[known].sum() / impressions[known].sum()
            # effect_p - mean for each place p, and + mean in the bias: the sum of both is what it was.
            self.positions.weight[1:] -= mean
            self.wide.bias.add_(mean)

    def _words(self, context: Tensor) -> Tensor:
        """Ids of attributes and context, some of them dropped in training: together they almost tell the user."""
        if not self.training:
            return context
        return context * (torch.rand(context.shape, device=context.device) >= _DROP_WORDS)

    def _ads(self, ads: AdInputs) -> Tensor:
        vectors: Tensor = self.text(ads.vectors) + self._some(self._ids(ads.buckets))
        return vectors

    def _ids(self, buckets: Tensor) -> Tensor:
        ids: Tensor = self.ids(buckets) * (buckets > 0)[:, None]
        return ids

    def _some(self, ids: Tensor) -> Tensor:
        """Learned ids, some of them dropped in training."""
        if not self.training:
            return ids
        return ids * (torch.rand(len(ids), device=ids.device) >= _DROP_IDS)[:, None]

    def _attend(self, texts: Tensor, ads: Tensor, history: History) -> tuple[Tensor, Tensor]:
        """What candidates find in the history, [impressions, width], and how it was liked, [impressions, heads + 1]."""
        # DIN with multi-head attention and a place for "nothing" beside the events e of candidate c:
        #   score_h(c, e) = q_h(c) k_h(e) / sqrt(size) + gap_h(c, e)      for the learned heads,
        #   score(c, e)   = inverse_temperature cos(c, e) + gap(c, e)     for the head of similarity,
        #   weights       = softmax over events and nothing, of which the share of nothing is then dropped.
        events = self._ads(history.ads)  # [events, width]
        # [heads, events, size] each, queries [heads, impressions, size]
        keys = self._split(self.key(events))
        values = self._split(self.value(self.dropout(events) + self.types(history.types)))
        queries = self._split(self.query(ads))
        learned = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[2])
        similarity = self.inverse_temperature * (texts @ history.ads.vectors.T)  # [impressions, events]
        seen = history.seen
        if self.training:
            seen = seen & (torch.rand(history.types.shape, device=seen.device) >= _DROP_EVENTS)
        # [heads + 1, impressions, events]
        scores = torch.cat([learned, similarity[None]]) + self.gaps(history.gaps).permute(2, 0, 1)
        nothing = self.null_logit[:, None, None].expand(-1, len(ads), 1)  # [heads + 1, impressions, 1]
        scores = torch.cat([scores.masked_fill(~seen, float("-inf")), nothing], dim=2)
        weights = scores.softmax(dim=2)[:, :, :-1]
        # [heads, impressions, size] to [impressions, width]
        attended = (weights[: self._heads] @ values).transpose(0, 1).flatten(1)
        # sum over events of weight * value of its type: [heads + 1, impressions, 1] to [impressions, heads + 1]
        event_value = (weights @ self.event_value(history.types))[:, :, 0].transpose(0, 1)
        return attended, event_value

    def _attend_tile(
        self, batch: UserBatch, tile: Tile, queries: Tensor, keys_values: Tensor, kept: Tensor | None
    ) -> Tensor:
        """`_attend` for the users of a tile: attended and event value, [users x impressions, width + heads + 1].

        Args:
            kept: which events are not dropped, bool [events]; None for all.
        """
        users, rows, events = tile.seen.shape
        q, kv = F.embedding(tile.shown, queries), F.embedding(tile.events, keys_values)
        q = q.view(users, rows, self._heads, -1).transpose(1, 2)  # [users, heads, impressions, size]
        keys, values = kv.view(users, events, 2, self._heads, -1).permute(2, 0, 3, 1, 4)  # [users, heads, events, size]
        learned = q @ keys.transpose(2, 3) / math.sqrt(q.shape[3])
        with torch.no_grad():
            texts = batch.texts.vectors
            alike = F.embedding(batch.shown[tile.shown], texts) @ F.embedding(batch.events[tile.events], texts).mT
        scores = torch.cat([learned, (self.inverse_temperature * alike)[:, None]], dim=1)
        scores = scores + self._gap_bias(tile.gaps)
        seen = tile.seen if kept is None else tile.seen & kept[tile.events][:, None]
        nothing = self.null_logit[:, None, None].expand(users, -1, rows, 1)
        scores = torch.cat([scores.masked_fill(~seen[:, None], float("-inf")), nothing], dim=3)
        weights = scores.softmax(dim=3)[..., :-1]  # [users, heads + 1, impressions, events]
        attended = (weights[:, : self._heads] @ values).transpose(1, 2).flatten(2)
        value = (weights @ self.event_value(batch.types[tile.events])[:, None])[..., 0].transpose(1, 2)
        return torch.cat([attended, value], dim=2).flatten(0, 1)

    def _gap_bias(self, gaps: Tensor) -> Tensor:
        """What the time between event and impression adds to each score, [users, heads + 1, impressions, events].

        In training as a product with one-hot classes: the gradient of a lookup adds cell by cell to a few rows.
        """
        if not torch.is_grad_enabled():
            return F.embedding(gaps, self.gaps.weight).permute(0, 3, 1, 2)
        weight = self.gaps.weight
        classes = weight.new_zeros(*gaps.shape, len(weight)).scatter_(3, gaps[..., None], 1.0)
        return (classes @ weight).permute(0, 3, 1, 2)

    def _split(self, x: Tensor) -> Tensor:
        """[rows, width] to [heads, rows, size]."""
        return x.view(len(x), self._heads, x.shape[1] // self._heads).transpose(0, 1)
