"""Users who do not exist: their pasts, and who of them calls when. Knows no servers.

They come for a visit of several calls; so of ten calls one is of a user, and mostly of ads, that nobody has met.
"""

from collections.abc import Sequence

import numpy as np

from adcascade.records.users import Event, EventType, UserProfile

_USERS = 2000
_HISTORIES = (3, 10, 30, 60)
# So many users are there at a time, and each leaves after so many calls.
PRESENT, _VISIT = 20, 10


def user_of_call(number: int) -> int:
    """Who makes a call: the users who are there take turns, and each time some of them make place for new ones."""
    turn, place = divmod(number, PRESENT)
    return (turn + place % _VISIT) // _VISIT * PRESENT + place


def made_users(ad_ids: Sequence[str], interests: Sequence[str], seed: int = 0) -> list[UserProfile]:
    """With pasts of different lengths, of ads that they clicked; half of them say what they like, too.

    An ad is clicked in inverse proportion to its rank (Zipf's law): of a million, half the clicks go to a thousand.
    """
    random = np.random.default_rng(seed)
    return [
        UserProfile(
            user_id=f"user-{number}",
            interests=str(random.choice(interests)) if random.random() < 0.5 else "",
            attributes={"age": "33", "occupation": "writer"},
            history=tuple(
                Event(EventType.CLICK, ad_ids[int(len(ad_ids) ** share) - 1])
                for share in random.random(_HISTORIES[number % len(_HISTORIES)])
            ),
        )
        for number in range(_USERS)
    ]
