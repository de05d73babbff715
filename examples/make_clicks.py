"""Invents the users and the click log of this folder: ``python examples/make_clicks.py``. Seeded: always the same.

Each user likes two categories, mostly clicks ads of these in the own language, and most say what they like in words of
their own. Some ads are better than others. Nothing here is real.
"""

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
USERS, REQUESTS, ADS_PER_REQUEST = 120, 900, 6
LIKES = {
    "outdoor": ("trail running shoes", "hiking and tents", "mountain tours"),
    "coffee": ("espresso at home", "coffee beans", "pour-over coffee"),
    "travel": ("train journeys", "weekend trips", "cabins by the sea"),
    "finance": ("saving money", "first investments", "home loans"),
    "pets": ("dog food", "my two cats", "puppy school"),
    "home": ("interior design", "plants in pots", "lamps and sofas"),
    "learning": ("learning Italian", "python programming", "piano lessons"),
    "fitness": ("yoga", "dumbbells at home", "marathon training"),
    "food": ("cooking curry", "fresh vegetables", "olive oil and cheese"),
    "electronics": ("headphones", "mechanical keyboards", "laptops I can repair"),
}
LANGUAGES, AGES, DEVICES = (
    ("en", "de", "es"),
    ("18-24", "25-34", "35-44", "45-54", "55+"),
    ("phone", "desktop", "tablet"),
)


def make_users(random: np.random.Generator) -> list[dict[str, str]]:
    """Users with two liked categories each, under "likes"."""
    users = []
    for number in range(1, USERS + 1):
        likes = [str(name) for name in random.choice(list(LIKES), 2, replace=False)]
        language = str(random.choice(LANGUAGES, p=(0.6, 0.25, 0.15)))
        user = {"user_id": f"user-{number:02d}", "age_band": str(random.choice(AGES)), "language": language}
        if random.random() < 0.7:
            user["interests"] = ", ".join(str(random.choice(LIKES[name])) for name in likes)
        users.append({**user, "likes": ",".join(likes)})
    return users


def click_probability(user: dict[str, str], ad: dict[str, str], quality: float) -> float:
    """Logistic in: a liked category, the own language, the quality of the ad."""
    logit = -3.0 + 2.8 * (ad["category"] in user["likes"]) + 0.8 * (ad["language"] == user["language"]) + quality
    return 1 / (1 + float(np.exp(-logit)))


def main() -> None:
    """Writes users.jsonl and clicks.csv beside this file."""
    random = np.random.default_rng(7)
    ads = [json.loads(line) for line in (HERE / "ads.jsonl").read_text(encoding="utf-8").splitlines()]
    quality = random.normal(0, 0.4, len(ads))
    users = make_users(random)
    shown = [{name: value for name, value in user.items() if name != "likes"} for user in users]
    (HERE / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in shown), encoding="utf-8")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    with (HERE / "clicks.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["request_id", "user_id", "ad_id", "timestamp", "clicks", "impressions", "device"])
        for request in range(1, REQUESTS + 1):
            moment += timedelta(minutes=float(random.exponential(90)))
            user, device = users[random.integers(USERS)], str(random.choice(DEVICES))
            for place in random.choice(len(ads), ADS_PER_REQUEST, replace=False):
                clicked = int(random.random() < click_probability(user, ads[place], quality[place]))
                time = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
                rows.writerow([f"r{request:03d}", user["user_id"], ads[place]["ad_id"], time, clicked, 1, device])


if __name__ == "__main__":
    main()
