"""The text layers of a shared-user model as serving runs them: three passes from plain tensors to plain tensors.

Each is a module without branches on data, so that it runs in torch as it is, or is exported to another engine. What is
kept of an ad depends on no user: its states below the join layer, or, where only the top layer is joined, already the
keys and values of that layer, of which a request then needs nothing but the [CLS] row. Knows no requests.
"""

import torch
from torch import Tensor, nn

from ranking.model.attention import UserStates
from ranking.model.batch import TokenRows
from ranking.model.shared_user import SharedUserCrossEncoder

# More ads than a request can have: all of them belong to the one user.
_ALL = 10**9


class UserPass(nn.Module):
    """Users, once a request."""

    def __init__(self, model: SharedUserCrossEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [users, joined layers, heads, size, tokens] and values [users, joined layers, heads, tokens, size].

        Args:
            ids: int64 [users, tokens].
            lengths: int64 [users]; what stands behind a user's length means nothing.
        """
        joined = list(self.model.keys_values(TokenRows(ids, lengths)))
        keys = torch.stack([keys.transpose(2, 3) for keys, _ in joined], dim=1)
        return keys, torch.stack([values for _, values in joined], dim=1)


class AdPass(nn.Module):
    """Ads, once a model version: what is kept of each."""

    def __init__(self, model: SharedUserCrossEncoder) -> None:
        super().__init__()
        self.model = model

    @property
    def keeps_keys(self) -> bool:
        """Whether keys and values of the one joined layer are kept, rather than the states below the joined ones."""
        return self.model.join_layer + 1 == len(self.model.layers)

    @property
    def width(self) -> int:
        """Numbers in each row of what is kept."""
        hidden = int(self.model.encoder.config.hidden_size)
        return 2 * hidden if self.keeps_keys else hidden

    def rows(self, tokens: int) -> int:
        """Rows that are kept of an ad of so many tokens."""
        return tokens + int(self.keeps_keys)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """What is kept, float32 [ads, rows, width].

        Args:
            ids: int64 [ads, tokens].
            lengths: int64 [ads]; what stands behind an ad's length means nothing.
        """
        rows = TokenRows(ids, lengths)
        hidden = self.model.ad_states(rows)
        if not self.keeps_keys:
            return hidden
        keys, values = self.model.projected(hidden)
        # [ads, 2 hidden] in front of [ads, tokens, 2 hidden]
        first = torch.cat([hidden[:, 0], self.model.mean_state(hidden, rows.mask)], dim=1)
        return torch.cat([first[:, None], torch.cat([keys, values], dim=2)], dim=1)


class JoinPass(nn.Module):
    """One user's candidates: the joined layers and the head."""

    def __init__(self, model: SharedUserCrossEncoder) -> None:
        super().__init__()
        self.model = model
        self._keeps_keys = AdPass(model).keeps_keys
        self._top = TopPass(model)

    def forward(self, kept: Tensor, mask: Tensor, keys: Tensor, values: Tensor, dense: Tensor) -> Tensor:
        """What the text adds to the logits, float32 [ads].

        Args:
            kept: what `AdPass` made, [ads, rows, width].
            mask: True where an ad has a row, bool [ads, rows].
            keys, values: of the user, [joined layers, heads, size, tokens] and [joined layers, heads, tokens, size].
            dense: normalised features, float32 [ads, features].
        """
        if self._keeps_keys:
            added: Tensor = self._top(*split_kept(kept), mask[:, 1:], keys, values, dense)
            return added
        user = UserStates(list(keys.unbind(0)), list(values.unbind(0)))
        return self.model.add([user], [_ALL], kept, mask, dense)[0]


def split_kept(kept: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What `AdPass` kept where `keeps_keys`, by what it is: first rows [ads, 2 hidden], keys and values.

    Keys and values are [ads, tokens, hidden]. All are made `dtype` if it is given, which copies each once.
    """
    # Row 0: [cls; mean state]; rows 1 to tokens: [keys; values], each half `hidden` wide (see `AdPass.forward`).
    hidden = kept.shape[2] // 2
    parts = kept[:, 0], kept[:, 1:, :hidden], kept[:, 1:, hidden:]
    first, keys, values = parts if dtype is None else (part.to(dtype) for part in parts)
    return first, keys, values


class TopPass(nn.Module):
    """`JoinPass` where the top layer alone is joined, of what `split_kept` made: an engine need not take it apart."""

    def __init__(self, model: SharedUserCrossEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        first: Tensor,
        ad_keys: Tensor,
        ad_values: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        dense: Tensor,
    ) -> Tensor:
        """What the text adds to the logits, float32 [ads].

        Args:
            first, ad_keys, ad_values: see `split_kept`.
            mask: True where an ad has a token, bool [ads, tokens].
            keys, values, dense: see `JoinPass`.
        """
        hidden = ad_keys.shape[2]
        user = UserStates(list(keys.unbind(0)), list(values.unbind(0)))
        cls = self.model.top(first[:, :hidden], ad_keys, ad_values, mask, user)
        added: Tensor = self.model.head(cls, first[:, hidden:], dense)
        return added
