"""Ads in any number with texts that read like real ones, and users who clicked them. Knows no models."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from adcascade.records.ads import Ad, read_ads
from adcascade.records.errors import InputError
from adcascade.records.users import Context, Event, EventType, UserProfile
from ranking.inputs.text import render_ad, render_user

_AT_ONCE = 4096


def recombined_ads(sources: Sequence[Ad], count: int, seed: int = 0) -> Iterator[Ad]:
    """`count` ads of different texts: the words of two titles crossed over, and the body of a third.

    Vectors of such texts, unlike random noise, lie as close and as unevenly as real ones do; rankings of indexes differ
    a lot between the two.

    Args:
        sources: Real ads; at least two.

    Raises:
        InputError: There are too few sources for so many different texts.
    """
    if len(sources) < 2:
        raise InputError("texts cannot be recombined from fewer than two ads")
    random = np.random.default_rng(seed)
    seen: set[int] = set()
    fruitless = 0
    while len(seen) < count:
        before = len(seen)
        for first, second, third in random.integers(0, len(sources), (_AT_ONCE, 3)).tolist():
            ad = _crossed(sources[first], sources[second], sources[third], len(seen))
            text = hash((ad.title, ad.body))
            if text not in seen:
                seen.add(text)
                yield ad
            if len(seen) == count:
                return
        fruitless = fruitless + 1 if len(seen) == before else 0
        if fruitless == 10:
            raise InputError(f"{len(sources)} ads make no {count:,} different texts")


def _crossed(first: Ad, second: Ad, third: Ad, number: int) -> Ad:
    words, others = first.title.split(), second.title.split()
    title = " ".join([*words[: (len(words) + 1) // 2], *others[len(others) // 2 :]])
    return Ad(ad_id=f"made-{number}", title=title, body=third.body, category=third.category)


def real_ads(path: Path) -> list[Ad]:
    """The usable ads of a catalog."""
    return [ad for ad in read_ads(path) if isinstance(ad, Ad)]


def user_of_tokens(tokens: int, sources: Sequence[Ad], tokenizer: PreTrainedTokenizerBase) -> UserProfile:
    """A user who clicked so many ads that their text has about so many tokens."""
    user = UserProfile(attributes={"age": "33", "occupation": "writer"})
    for ad in sources:
        more = replace(user, history=(Event(EventType.CLICK, text=render_ad(ad)), *user.history))
        if len(tokenizer(render_user(more, Context(), lambda _: None))["input_ids"]) > tokens:
            break
        user = more
    return user
