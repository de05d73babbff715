"""What the model reads of the users of many rows at once, as `ranking.inputs.text.render_user` says it of each.

A context, a user and an ad are put into words once, however many rows they have. Knows no tensors.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from adcascade.records.ads import Ad
from adcascade.records.clicks import ClickLog, Integers
from adcascade.records.coded import combinations
from adcascade.records.history import kinds_of
from adcascade.records.users import Event, EventType, UserProfile
from adcascade.records.users_by_id import who_tell
from ranking.inputs.features import is_liked
from ranking.inputs.text import ContextWords, UserWords, event_text, joined, words_of_context, words_of_user

_NO_WORDS = UserWords("", "")


def user_texts(
    log: ClickLog,
    rows: Integers,
    history: tuple[ClickLog, Integers, Integers],
    users: Mapping[str, UserProfile],
    ads: Mapping[str, Ad],
) -> list[str]:
    """The text of the user of each of some rows, just before its impression.

    Args:
        history: a log of events, and as `Spans.recent` returns them, offsets [rows + 1] and rows of events: what row i
            looks back on, oldest first.
    """
    events, offsets, places = history
    liked, titles = _told(events, places, ads)
    telling = who_tell(users)
    words: dict[str | None, UserWords] = {}
    contexts, ids = _contexts(log, rows), log.user_id[rows].tolist()
    texts = []
    ends = zip(ids, contexts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    for user_id, context, first, last in ends:
        if user_id not in words:
            user = telling.get(user_id)
            words[user_id] = _NO_WORDS if user is None else words_of_user(user)
        newest = range(last - 1, first - 1, -1)
        likes = (titles[place] for place in newest if liked[place])
        passes = (titles[place] for place in newest if not liked[place])
        texts.append(joined(words[user_id], context, likes, passes))
    return texts


def _told(events: ClickLog, places: Integers, ads: Mapping[str, Ad]) -> tuple[list[bool], list[str]]:
    """Of each event: whether it speaks for its ad, and the ad in words."""
    liked_kinds = {kind for kind in EventType if is_liked(kind)}
    liked = [kind in liked_kinds for kind in kinds_of(events, places)]
    distinct, which = np.unique(events.ad_id.codes[places], return_inverse=True)
    first = np.zeros(len(distinct), np.int64)
    first[which] = places  # any event of each ad
    names = events.ad_id[first].tolist()
    titles = [event_text(Event(EventType.CLICK, ad_id=name), ads.get) for name in names]
    return liked, [titles[number] for number in which.tolist()]


def _contexts(log: ClickLog, rows: Integers) -> Sequence[ContextWords]:
    """The context of each row in words."""
    if not log.context:
        return [words_of_context(log.context_at(int(rows[0])))] * len(rows) if len(rows) else []
    first, kind = combinations([column.codes[rows] for column in log.context.values()])
    words = [words_of_context(log.context_at(int(row))) for row in rows[first]]
    return [words[number] for number in kind.tolist()]
