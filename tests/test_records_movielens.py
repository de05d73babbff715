"""MovieLens-100k in the product's formats, from the real files of the installed wheel."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from adcascade.records.ads import Ad, read_ads
from adcascade.records.clicks import read_clicks
from adcascade.records.datasets.movielens import export_movielens, find_movielens
from adcascade.records.users import read_users


@pytest.fixture(scope="module")
def source():
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("recbole, the wheel that carries MovieLens-100k, is not installed")
    return find_movielens()


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
    return export_movielens(source, tmp_path_factory.mktemp("movielens") / "made")


@pytest.fixture(scope="module")
def log(files):
    return read_clicks(files.clicks, {ad.ad_id for ad in read_ads(files.ads)}, max_rejected=0)[0]


def raw_ratings(source):
    lines = (source / "ml-100k.inter").read_text().splitlines()[1:]
    return [line.split("\t") for line in lines]


def test_every_film_is_a_usable_ad(files):
    ads = list(read_ads(files.ads))
    assert len(ads) == 1682
    assert all(isinstance(ad, Ad) for ad in ads)
    toy_story = ads[0]
    assert (toy_story.ad_id, toy_story.title, toy_story.category) == ("1", "Toy Story (1995)", "Animation")
    assert (toy_story.body, toy_story.language) == ("Animation, Children's, Comedy", "en")


def test_every_user_is_there_with_what_is_known_of_them(files):
    users = list(read_users(files.users))
    assert len({user.user_id for user in users}) == len(users) == 943
    assert (users[0].user_id, set(users[0].attributes)) == ("1", {"age", "gender", "occupation"})


def test_every_rating_is_one_impression_and_four_stars_are_a_click(source, log):
    stars = [float(rating[2]) for rating in raw_ratings(source)]
    assert len(log) == len(stars) == 100_000
    assert log.impressions.tolist() == [1] * 100_000
    assert log.ctr == pytest.approx(sum(star >= 4 for star in stars) / len(stars))
    assert log.has_time


def test_users_films_and_times_belong_together(source, log):
    want = Counter((user, film, int(float(stars) >= 4), int(time)) for user, film, stars, time in raw_ratings(source))
    seconds = (log.time // 1_000_000 - 17 * 365 * 86_400 - 4 * 86_400).tolist()  # 17 years later, four with a leap day
    assert Counter(zip(log.user_id, log.ad_id, log.clicks.tolist(), seconds, strict=True)) == want


def test_a_request_is_one_sitting_of_one_user_and_at_most_twenty_films(log):
    assert max(Counter(log.request_id).values()) == 20
    assert len({*zip(log.request_id, log.user_id, strict=True)}) == len({*log.request_id})
    last = {}
    for request, time in zip(log.request_id, log.time.tolist(), strict=True):
        assert time - last.get(request, time) <= 30 * 60 * 1_000_000
        last[request] = time


def test_a_smaller_export_keeps_the_first_users_and_their_ratings(source, log, tmp_path):
    files = export_movielens(source, tmp_path, max_users=25)
    kept = [user.user_id for user in read_users(files.users)]
    assert kept == [str(number) for number in range(1, 26)]
    small, _ = read_clicks(files.clicks, None)
    assert set(small.user_id) == set(kept)
    assert len(small) == sum(user in set(kept) for user in log.user_id)
    assert len(list(read_ads(files.ads))) == 1682


def test_without_the_wheel_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['recbole'] = None; from adcascade.records.datasets import movielens; "
        "movielens.find_movielens()"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 1
    assert "InputError: MovieLens-100k was not found; install" in done.stderr
    assert "pip install --no-deps recbole" in done.stderr
