"""The plain cross-encoder: ``[CLS] user [SEP] ad [SEP]`` for every pair. Knows no gRPC and no files of clicks.

The reference for quality, the baseline for speed, and the way to use any published reranker.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ranking.model.batch import PairBatch, TokenRows, pad
from ranking.model.behaviour import BehaviourModel
from ranking.model.shape import ModelShape
from ranking.model.shared_user import TextVectors


class JointCrossEncoder(nn.Module):
    """A sequence classifier that reads user and ad together, for every pair anew.

    Args:
        classifier: Any `AutoModelForSequenceClassification` with one label, or two (then the second is the click).
        features: Number of dense features.
        shape: Sizes of what is learned beside the classifier.
    """

    def __init__(self, classifier: PreTrainedModel, features: int, shape: ModelShape) -> None:
        super().__init__()
        self.encoder: Any = classifier
        # How much the classifier counts beside the behaviour part: nothing until it has been trained for clicks.
        self.head = nn.Linear(1, 1)
        self.text = TextVectors(classifier.get_input_embeddings())
        self.behaviour = BehaviourModel(self.text.width, features, shape)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: PairBatch) -> Tensor:
        """What the text adds to the logits of the behaviour part, float32 [pairs]."""
        return self._added(self._classify(batch))

    def read(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and the last state of each pair's first token, [pairs, hidden]."""
        found = self._classify(batch, output_hidden_states=True)
        return self._added(found), found.hidden_states[-1][:, 0]

    def _classify(self, batch: PairBatch, **asked: bool) -> Any:
        pairs, segments = self._pairs(batch)
        if int(getattr(self.encoder.config, "type_vocab_size", 1)) > 1:
            return self.encoder(input_ids=pairs.ids, attention_mask=pairs.mask.long(), token_type_ids=segments, **asked)
        return self.encoder(input_ids=pairs.ids, attention_mask=pairs.mask.long(), **asked)

    def _added(self, found: Any) -> Tensor:
        logits = found.logits.float()
        click = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
        added: Tensor = self.head(click[:, None])[:, 0]
        return added

    @property
    def text_is_untrained(self) -> bool:
        """See `SharedUserCrossEncoder.text_is_untrained`."""
        return not (self.head.weight.any() or self.head.bias.any())

    def _pairs(self, batch: PairBatch) -> tuple[TokenRows, Tensor]:
        """[CLS] user [SEP] ad [SEP] of each pair, and which tokens are the ad's."""
        users = [ids[:n] for ids, n in zip(batch.users.ids.tolist(), batch.users.lengths.tolist(), strict=True)]
        ads = [ids[1:n] for ids, n in zip(batch.ads.ids.tolist(), batch.ads.lengths.tolist(), strict=True)]
        owner = [user for user, count in zip(users, batch.ads_per_user, strict=True) for _ in range(count)]
        rows = pad([user + ad for user, ad in zip(owner, ads, strict=True)], int(self.encoder.config.pad_token_id or 0))
        places = torch.arange(rows.ids.shape[1])
        segments = (places >= torch.tensor([len(user) for user in owner])[:, None]) & rows.mask
        device = batch.users.ids.device
        return rows.to(device), segments.long().to(device)
