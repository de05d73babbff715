"""A made-up click log shaped like an ad platform's, in memory: many users with a few rows each. Knows no models."""

from dataclasses import dataclass

import numpy as np

from adcascade.records.ads import Ad
from adcascade.records.clicks import ClickLog, Integers, LogReport, Texts
from adcascade.records.splits import split_by_time
from ranking.data.dataset import Dataset

_WORDS = (
    *("trail", "shoes", "marathon", "espresso", "grinder", "beans", "roses", "spade", "compost", "flight", "beach"),
    *("hostel", "guitar", "vinyl", "concert", "skillet", "recipe", "spices", "console", "puzzle", "quest", "puppy"),
    *("leash", "litter", "mortgage", "laptop", "charger", "sofa", "curtain", "perfume", "jacket", "helmet"),
)
_DEVICES, _PLACEMENTS, _COUNTRIES = (
    ("phone", "desktop", "tablet"),
    ("feed", "story", "search"),
    ("de", "fr", "pl", "es"),
)
_START_US, _DAY_US, _DAYS = 1_767_225_600_000_000, 86_400_000_000, 14
_ADVERTISERS, _CATEGORIES = 2_000, 40


@dataclass(frozen=True)
class AdLogShape:
    """How large a log is, and how skewed.

    Attributes:
        shown_together: rows of a request, which share its user and moment.
        zipf: how often the ad of rank r is shown: 1 / r ** zipf.
    """

    rows: int = 1_000_000
    users: int = 200_000
    ads: int = 20_000
    shown_together: int = 2
    zipf: float = 1.0
    base_logit: float = -3.0
    seed: int = 0


def make_ad_log(shape: AdLogShape) -> Dataset:
    """A log of that shape, split by time. A click depends on the ad and on the user's taste for its category."""
    random = np.random.default_rng(shape.seed)
    requests = -(-shape.rows // shape.shown_together)
    weights = np.arange(1, shape.ads + 1) ** -shape.zipf
    shown = random.choice(shape.ads, shape.rows, p=weights / weights.sum())
    request = np.arange(shape.rows) // shape.shown_together
    user = random.integers(0, shape.users, requests)[request]
    moment = np.sort(random.integers(0, _DAYS * _DAY_US, requests))[request]
    category = random.integers(0, _CATEGORIES, shape.ads)
    taste = random.normal(0, 1.0, (shape.users, 4))
    likes = (taste[user] * random.normal(0, 0.5, (_CATEGORIES, 4))[category[shown]]).sum(axis=1)
    logit = shape.base_logit + random.normal(0, 0.7, shape.ads)[shown] + likes
    clicks = (random.random(shape.rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    log = ClickLog(
        request_id=_names("r", request),
        ad_id=_names("ad-", shown),
        user_id=_names("user-", user),
        time=_START_US + moment,
        utc_offset=np.zeros(shape.rows, np.int64),
        clicks=clicks,
        impressions=np.ones(shape.rows, np.int64),
        conversions=np.zeros(shape.rows, np.int64),
        position=np.arange(shape.rows) % shape.shown_together + 1,
        context={
            "device": _drawn(random, _DEVICES, requests)[request],
            "placement": _drawn(random, _PLACEMENTS, requests)[request],
            "country": _drawn(random, _COUNTRIES, shape.users)[user],
        },
    )
    return _dataset(log, _catalog(random, category), shown, category)


def _dataset(log: ClickLog, ads: dict[str, Ad], shown: Integers, category: Integers) -> Dataset:
    of_advertiser = _names("shop-", np.arange(len(ads)) % _ADVERTISERS)[shown]
    of_category = _names("category-", category)[shown]
    keys = {
        "ad": log.ad_id,
        "advertiser": of_advertiser,
        "category": of_category,
        "user": log.user_id,
        "user_category": log.user_id + "\x1f" + of_category,
        "user_advertiser": log.user_id + "\x1f" + of_advertiser,
    }
    return Dataset(log, LogReport(len(log), len(log), {}, {}), ads, {}, keys, split_by_time(log), "time")


def _catalog(random: np.random.Generator, category: Integers) -> dict[str, Ad]:
    words = np.array(_WORDS, object)[random.integers(0, len(_WORDS), (len(category), 5))]
    return {
        f"ad-{number}": Ad(
            f"ad-{number}",
            title=" ".join(words[number]),
            advertiser=f"shop-{number % _ADVERTISERS}",
            category=f"category-{category[number]}",
        )
        for number in range(len(category))
    }


def _names(prefix: str, numbers: Integers) -> Texts:
    """Each number with a prefix; equal ones are one object."""
    names = np.array([f"{prefix}{number}" for number in range(int(numbers.max()) + 1)], object)
    return names[numbers]


def _drawn(random: np.random.Generator, values: tuple[str, ...], count: int) -> Texts:
    return np.array(values, object)[random.integers(0, len(values), count)]
