"""User attributes, context and time of day as learned ids, made alike for training and for serving. Knows no tensors.

Each becomes a word such as ``device=phone`` or ``hour=17``; a word is hashed to the id of a learned vector (the hashing
trick, arXiv 0902.2206); how many of these there are is the model's to say, so a request carries the hashes. Numbers are
put into classes first: whether someone is 33 or 34 tells little.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.records.hashing import blake2b_hash
from adcascade.records.users import Context, UserProfile

# Learned vectors, unless a model says otherwise.
CONTEXT_BUCKETS = 4096
# Words that are read of one impression unless a model says otherwise; what is first in the alphabet goes before.
CONTEXT_WORDS = 24
# A model can read so many; hour, weekday, and all attributes of a user and of a context that limits allow are fewer.
MAX_CONTEXT_WORDS = 160
# A number is of the same class as another if they differ by less than about this factor.
_CLASS_FACTOR = 1.3


def context_hashes(
    user: UserProfile, context: Context, at: datetime | None, words: int = CONTEXT_WORDS
) -> tuple[int, ...]:
    """Hashes of what is known of an impression, 64 bits each, padded with 0 to so many `words`.

    Those of fewer words are the first of those of more.

    Args:
        at: When the ad is shown; None if nobody knows.
    """
    found = [blake2b_hash(word) for word, _ in zip(_words(user, context, at), range(words), strict=False)]
    return tuple(found) + (0,) * (words - len(found))


def context_buckets(hashes: npt.ArrayLike, buckets: int = CONTEXT_BUCKETS) -> Integers:
    """Ids of the learned vectors of what `context_hashes` made, int64 of its shape, 1 to `buckets` - 1; 0 stays 0."""
    numbers = np.asarray(hashes, np.uint64)
    return np.where(numbers == 0, 0, 1 + numbers % np.uint64(buckets - 1)).astype(np.int64)


def _words(user: UserProfile, context: Context, at: datetime | None) -> Iterator[str]:
    if at is not None:
        local = _ahead(at.astimezone(UTC), context.utc_offset_minutes)
        yield f"hour={local.hour}"
        yield f"weekday={local.weekday()}"
    for name, value in sorted(context.values.items()):
        yield f"{name}={_classed(value)}"
    for name, value in sorted(user.attributes.items()):
        yield f"user {name}={_classed(value)}"


def _ahead(at: datetime, minutes: int) -> datetime:
    """`at` on a clock that is ahead; the first and the last one that there are have none before and after them."""
    try:
        return at + timedelta(minutes=minutes)
    except OverflowError:
        return at


def _classed(value: str) -> str:
    """The value itself, or the class of a number: "33" and "34" are both "~13"."""
    try:
        number = float(value)
    except ValueError:
        return value.strip().lower()
    if not math.isfinite(number) or abs(number) <= 1:
        return value.strip().lower()
    return f"{'-' if number < 0 else ''}~{round(math.log(abs(number), _CLASS_FACTOR))}"
