"""Click logs whose true probabilities are known, to see whether a training finds them. Knows no models.

In log-odds, a click is base rate + quality of the ad (which drifts with time) + taste of the user for the ad's topic +
effect of the place on the page. A conversion after the click follows the same taste and a quality of its own, so that
those who click are not like those who do not: what ESMM (arXiv 1804.07931) is for.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.records.errors import InputError

Floats = npt.NDArray[np.float64]

TRUTH_FILE = "truth.parquet"
_START = 1_767_225_600  # 2026-01-01, in seconds since 1970
_TOPICS = {
    "running": "trail shoes marathon sprint laces stride pace medal",
    "coffee": "espresso grinder beans roast crema filter kettle mug",
    "garden": "roses spade compost seeds hedge soil pruning lawn",
    "travel": "flight beach hostel passport island tour ferry map",
    "music": "guitar vinyl concert headphones drums festival piano song",
    "cooking": "skillet recipe spices oven knife dough broth plate",
    "games": "console puzzle quest dice arcade chess level joystick",
    "pets": "puppy leash kitten litter aquarium treats collar cage",
}
_OFFERS = ("sale", "offer", "deal", "discount", "bundle", "gift", "clearance", "special")


@dataclass(frozen=True)
class SyntheticOptions:
    """What the made-up platform is like.

    Attributes:
        base_logit, conversion_logit: log-odds of a click and of a conversion given the click, of an average ad.
        quality, taste, drift: deviations, in log-odds, of ads, of users' tastes, and of an ad's change over the log.
        position_decay: log-odds lost from the first place to the second; each next place loses 0.8 times as much.
        cold_share: share of the ads that start in the last fifth of the log.
    """

    ads: int = 300
    users: int = 600
    requests: int = 15_000
    places: int = 6
    days: int = 30
    base_logit: float = -1.0
    conversion_logit: float = -1.0
    quality: float = 0.5
    taste: float = 1.0
    drift: float = 0.5
    position_decay: float = 0.5
    cold_share: float = 0.1
    seed: int = 0

    @property
    def position_effects(self) -> Floats:
        """Log-odds of each place relative to the first, float64 [places]."""
        return -self.position_decay * np.cumsum(np.r_[0.0, 0.8 ** np.arange(self.places - 1)])


def make_synthetic(target: Path, options: SyntheticOptions) -> DatasetFiles:
    """Writes ads, clicks and users as Parquet, and beside them ``truth.parquet``.

    The truth has a row for each row of the log, in the same order: ``p_click`` at the place where the ad stood,
    ``p_click_any_place`` at a place drawn by lot, and ``p_conversion`` given the click.

    Raises:
        InputError: An option leaves nothing to show.
    """
    if min(options.ads, options.users, options.requests, options.places, options.days) < 1:
        raise InputError("ads, users, requests, places and days must each be at least 1")
    if options.ads < 2 * options.places:
        raise InputError(f"{options.ads} ads do not fill {options.places} places; make at least twice as many")
    target.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(options.seed)
    topics = random.integers(0, len(_TOPICS), options.ads)
    starts = np.where(random.random(options.ads) < options.cold_share, 0.8, 0.0)
    shares = np.sort(random.random(options.requests))  # share of the log that has passed
    users = random.integers(0, options.users, options.requests)
    started = (np.flatnonzero(starts <= share) for share in shares)
    shown = np.concatenate([random.choice(ads, options.places, replace=False) for ads in started])
    user, share = np.repeat(users, options.places), np.repeat(shares, options.places)
    place = np.tile(np.arange(options.places), options.requests)

    quality, drift, conversion_quality = (
        random.normal(0, deviation, options.ads) for deviation in (options.quality, options.drift, options.quality)
    )
    tastes = random.normal(0, options.taste, (options.users, len(_TOPICS)))[user, topics[shown]]
    relevance = options.base_logit + quality[shown] + drift[shown] * (share - 0.5) + tastes
    effects = options.position_effects
    p_click = _probability(relevance + effects[place])
    p_conversion = _probability(options.conversion_logit + conversion_quality[shown] + 0.8 * tastes)
    clicks = random.random(len(shown)) < p_click
    conversions = clicks & (random.random(len(shown)) < p_conversion)

    files = DatasetFiles(target / "ads.parquet", target / "clicks.parquet", target / "users.parquet")
    pq.write_table(_ads(random, topics), files.ads)
    pq.write_table(pa.table({"user_id": [f"user-{number}" for number in range(options.users)]}), files.users)
    seconds = (_START + share * options.days * 86_400).astype(np.int64)
    log = {
        "request_id": [f"r{number}" for number in np.repeat(np.arange(options.requests), options.places)],
        "user_id": [f"user-{number}" for number in user],
        "ad_id": [f"ad-{number}" for number in shown],
        "timestamp": pa.array(seconds).cast(pa.timestamp("s", tz="UTC")),
        "position": place + 1,
        "clicks": clicks.astype(np.int64),
        "conversions": conversions.astype(np.int64),
        "impressions": np.ones(len(shown), np.int64),
    }
    pq.write_table(pa.table(log), files.clicks)
    truth = {
        "p_click": p_click,
        "p_click_any_place": np.mean([_probability(relevance + effect) for effect in effects], axis=0),
        "p_conversion": p_conversion,
    }
    pq.write_table(pa.table(truth), target / TRUTH_FILE)
    return files


def _ads(random: np.random.Generator, topics: npt.NDArray[np.int64]) -> pa.Table:
    rows = []
    for number, topic in enumerate(topics.tolist()):
        name, words = list(_TOPICS.items())[topic]
        first, second = random.choice(words.split(), 2, replace=False)
        title = f"{first} and {second} {random.choice(_OFFERS)}"
        rows.append({"ad_id": f"ad-{number}", "title": title, "category": name, "advertiser": f"shop-{number % 40}"})
    return pa.Table.from_pylist(rows)


def _probability(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float64)
