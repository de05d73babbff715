"""Users as of a moment, and the ads they clicked after it: what a retriever is judged by. Knows no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adcascade.records.clicks import ClickLog, Integers
from adcascade.records.users import Context
from adcascade.towers.training.sequences import Sequences, sequences_of


@dataclass(frozen=True)
class HeldOut:
    """Users who clicked an ad that was new to them, and what was known of them before.

    Attributes:
        users: their ids.
        clicked: numbers of the ads that each clicked later, without those met before.
        seen: numbers of the ads that each had met before.
        contexts: where and when each met the first ad later.
        sequences: events of all users before.
        of_user: place of each of `users` in `sequences`, -1 for one without events.
    """

    users: Sequence[str]
    clicked: Sequence[Integers]
    seen: Sequence[Integers]
    contexts: Sequence[Context]
    sequences: Sequences
    of_user: Integers

    def __len__(self) -> int:
        return len(self.users)

    @property
    def events(self) -> Integers:
        """How many events each user has, int64 [users]."""
        counts = np.append(np.diff(self.sequences.start), 0)  # the place -1 stands for none
        return counts[self.of_user]

    def take(self, places: Integers) -> "HeldOut":
        """The users at the given places."""
        wanted = places.tolist()
        return HeldOut(
            [self.users[place] for place in wanted],
            [self.clicked[place] for place in wanted],
            [self.seen[place] for place in wanted],
            [self.contexts[place] for place in wanted],
            self.sequences,
            self.of_user[places],
        )


def held_out(log: ClickLog, earlier: Integers, later: Integers, number_of: Mapping[str, int]) -> HeldOut:
    """Users of the `later` rows, as of the `earlier` ones; each is judged once.

    Args:
        earlier, later: Rows of the log, in order; of every user, all earlier rows come before all later ones.
        number_of: Number of each ad of the catalog; rows of other ads are left out.
    """
    sequences = sequences_of(log, earlier, number_of)
    place_of = {user: place for place, user in enumerate(sequences.users)}
    first_row = dict(zip(log.user_id[later[::-1]].tolist(), later[::-1].tolist(), strict=True))
    clicks = later[(log.clicks[later] > 0) & log.user_id[later].known]
    by_user: dict[str, set[int]] = {}
    for user, ad_id in zip(log.user_id[clicks].tolist(), log.ad_id[clicks].tolist(), strict=True):
        if ad_id in number_of:
            by_user.setdefault(user, set()).add(number_of[ad_id])
    users, clicked, seen, contexts = [], [], [], []
    for user, ads in by_user.items():
        place = place_of.get(user, -1)
        met = np.unique(sequences.ads[sequences.of(place)]) if place >= 0 else np.empty(0, np.int64)
        new = np.setdiff1d(np.array(sorted(ads)), met)
        if len(new):
            users.append(user)
            clicked.append(new)
            seen.append(met)
            contexts.append(log.context_at(first_row[user]))
    of_user = np.array([place_of.get(user, -1) for user in users], np.int64)
    return HeldOut(users, clicked, seen, contexts, sequences, of_user)
