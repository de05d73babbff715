"""A user, a context and an ad as the text that the model reads; the same functions in training and in serving.

Knows no tensors. What matters most comes first, because long texts are cut at the end.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

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
    newest = user.history[: -HISTORY_EVENTS - 1 : -1]
    liked = (event_text(event, lookup) for event in newest if is_liked(event.type))
    passed = (event_text(event, lookup) for event in newest if not is_liked(event.type))
    return joined(words_of_user(user), words_of_context(context), liked, passed)


class UserWords(NamedTuple):
    """What the model reads of a user but for the history."""

    attributes: str
    interests: str


class ContextWords(NamedTuple):
    """What the model reads of where an ad would be shown."""

    values: str
    page: str


def words_of_user(user: UserProfile) -> UserWords:
    """Attributes by name, and interests."""
    interests = user.interests.strip()
    return UserWords(_pairs(user.attributes), f"interests: {interests}" if interests else "")


def words_of_context(context: Context) -> ContextWords:
    """Short values by name, and the page."""
    page = context.page_text.strip()
    return ContextWords(_pairs(context.values), f"page: {page}" if page else "")


def joined(user: UserWords, context: ContextWords, liked: Iterable[str], passed: Iterable[str]) -> str:
    """The text of a user; `liked` and `passed` are texts of events, newest first, of which some may be empty."""
    parts = [
        user.attributes,
        context.values,
        user.interests,
        _told("liked", liked, LIKED_EVENTS),
        _told("passed", passed, PASSED_EVENTS),
        context.page,
    ]
    return " | ".join(part for part in parts if part)


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _told(word: str, texts: Iterable[str], limit: int) -> str:
    """The first texts, none twice; no more are asked for than are told."""
    found: dict[str, None] = {}
    for text in filter(None, texts):
        found.setdefault(text)
        if len(found) == limit:
            break
    return f"{word}: {'; '.join(found)}" if found else ""


def event_text(event: Event, lookup: AdLookup) -> str:
    """What an event is about, in words; nothing for an ad that is not known."""
    if event.text:
        return event.text.strip()
    ad = lookup(event.ad_id)
    return (ad.title.strip() or ad.body.strip()) if ad else ""
