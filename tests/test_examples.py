"""The bring-your-own-data example is what the README says it is, and goes through the whole job."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from conftest import EXAMPLES, tiny_options

from adcascade.records.ads import Ad, read_ads
from adcascade.records.users import read_users
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version, open_store
from index_builder.build import BuildOptions, build
from ranking.data.dataset import load_dataset
from ranking.evaluation.results import RANKER
from ranking.training.run import train_and_save


def test_the_example_catalog_has_ten_categories_and_three_languages():
    ads = list(read_ads(EXAMPLES / "ads.jsonl"))
    assert all(isinstance(ad, Ad) for ad in ads)
    assert len(ads) == 60
    assert len({ad.category for ad in ads}) == 10
    assert set(Counter(ad.language for ad in ads)) == {"en", "de", "es"}


def test_the_example_builds_trains_and_is_searched(tmp_path: Path, tiny_bert: Path):
    report = build(EXAMPLES / "ads.jsonl", tmp_path / "index", load_encoder("hashing:64"), BuildOptions())
    assert report.rejected == {}
    loaded = load_version(open_store(tmp_path / "index"), report.version)
    assert loaded.catalog.ads([0])[0].ad_id == json.loads((EXAMPLES / "ads.jsonl").read_text().splitlines()[0])["ad_id"]
    data = load_dataset(EXAMPLES / "ads.jsonl", EXAMPLES / "clicks.csv", EXAMPLES / "users.jsonl")
    assert data.report.rejected == {}
    assert {user.user_id for user in read_users(EXAMPLES / "users.jsonl")} >= set(data.log.user_id)
    trained = train_and_save(data, tmp_path / "model", tiny_options(tiny_bert, epochs=0.5))
    assert trained.evaluation.metrics[RANKER]["auc"].value > 0.4


def test_the_generator_writes_the_same_examples_again(tmp_path: Path):
    for name in ("make_clicks.py", "ads.jsonl"):
        shutil.copy(EXAMPLES / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_clicks.py"], check=True)
    for name in ("clicks.csv", "users.jsonl"):
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes()
