"""A user, a context and an ad as the text that the model reads; the same functions in training and in serving.

Knows no tensors. What matters most comes first, because long texts are cut at the end.
"""

from collections.abc import Callable, Mapping

from adcascade.records.ads import Ad
from adcascade.records.users import Context, Event, UserProfile
from ranking.inputs.features import is_liked

# Newest events that are looked at, in training and in serving.
HISTORY_EVENTS = 200
# Of these, the newest that are written out; older ones rarely fit the token limit.
LIKED_EVENTS = 24
PASSED_EVENTS = 6

# The ads of a history by id; ids that are not in it are skipped.
AdLookup = Callable[[str], Ad | None]


def render_ad(ad: Ad) -> str:
    """Title, body, and what else tells the ad from others; parts that repeat an earlier one are left out."""
    text = ""
    for part in (ad.title, ad.body, ad.category, ad.advertiser, ", ".join(ad.keywords)):
        if part.strip() and part.lower() not in text.lower():
            text += f"{'. ' if text else ''}{part.strip()}"
    return text


def render_user(user: UserProfile, context: Context, lookup: AdLookup) -> str:
    """Attributes, context, interests, then what the user liked and passed over, newest first."""
    parts = [
        _pairs(user.attributes),
        _pairs(context.values),
        f"interests: {user.interests.strip()}" if user.interests.strip() else "",
        _events("liked", user, lookup, LIKED_EVENTS, liked=True),
        _events("passed", user, lookup, PASSED_EVENTS, liked=False),
        f"page: {context.page_text.strip()}" if context.page_text.strip() else "",
    ]
    return " | ".join(part for part in parts if part)


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _events(word: str, user: UserProfile, lookup: AdLookup, limit: int, *, liked: bool) -> str:
    """The newest events that speak for (or not for) what they are about, without repeating a text."""
    texts: dict[str, None] = {}
    for event in reversed(user.history[-HISTORY_EVENTS:]):
        if is_liked(event.type) == liked:
            text = _event_text(event, lookup)
            if text:
                texts.setdefault(text)
        if len(texts) == limit:
            break
    return f"{word}: {'; '.join(texts)}" if texts else ""


def _event_text(event: Event, lookup: AdLookup) -> str:
    if event.text:
        return event.text.strip()
    ad = lookup(event.ad_id)
    return (ad.title.strip() or ad.body.strip()) if ad else ""
