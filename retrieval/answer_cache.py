"""Answers that were given lately, so that a user who sees several pages on a visit is looked for once.

What is found depends on the index version, on the ads that may be shown, and on what is asked but for the moment, so
each version has a cache of its own. Knows no wire. Thread-safe.
"""

import weakref
from threading import Lock
from typing import NamedTuple

from adcascade.catalog.schedule import Eligibility
from adcascade.serving.byte_cache import ByteBudgetCache

# Longer questions, of long texts, are not worth it: each would have to be hashed whole.
_MOST_QUESTION_BYTES = 65_536


class _Answer(NamedTuple):
    # As large as the catalog, and there are as many as moments are asked about: `Schedule` alone holds them, a few.
    eligible: "weakref.ref[Eligibility]"
    reply: bytes


class AnswerCache:
    """Least recently used answers of one index version.

    Args:
        max_bytes: of all answers together, with what finds them again; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: ByteBudgetCache[_Answer] = ByteBudgetCache(max_bytes, lambda answer: len(answer.reply))
        self._keeps = max_bytes > 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def takes(self, size: int) -> bool:
        """Whether the answer to a question of so many bytes would be kept."""
        return self._keeps and size <= _MOST_QUESTION_BYTES

    def get(self, question: bytes, eligible: Eligibility) -> bytes | None:
        """The answer to the same question among the same ads; None if it is not kept.

        Args:
            question: all that was asked but for the moment, which says no more than which ads are `eligible`.
        """
        if not self.takes(len(question)):
            return None
        with self._lock:
            answer = self._kept.get(question)
        return answer.reply if answer is not None and answer.eligible() is eligible else None

    def put(self, question: bytes, eligible: Eligibility, reply: bytes) -> None:
        """Keeps an answer in place of those that were not asked for lately."""
        if self.takes(len(question)):
            with self._lock:
                self._kept.put(question, _Answer(weakref.ref(eligible), reply))
