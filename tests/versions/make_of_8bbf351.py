"""Makes the files of this folder with the code of commit 8bbf351, whose modules had other names (see README.md).

Run from a checkout of that commit: ``PYTHONPATH=.:tests python make_of_8bbf351.py OUT``.
"""

import json
import random
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from artifacts.store import VersionStore
from conftest import save_tiny_bert, tiny_options, tiny_towers
from google.protobuf.json_format import ParseDict
from index_builder.encoder import load_encoder
from index_builder.tower_artifact import load_published_towers
from index_builder.towers import EVENT_TYPES, UserEvents, attribute_buckets, gap_class
from index_builder.training.data import load_retrieval_data
from index_builder.training.train import train_and_save as train_towers
from protos.convert import context_from_wire, user_from_wire
from protos.ranking_pb2 import RankRequest
from ranking.candidates import prepare
from ranking.engine import EngineSettings, RankingEngine
from ranking.training.dataset import load_dataset
from records.ads import Ad
from records.counters import CounterSnapshot
from transformers import AutoTokenizer, BertConfig, BertModel

from index_builder.artifact import AdCatalog, write_ads
from ranking.artifact import load_version, save_version
from ranking.service import _candidates, _fresher
from ranking.store import open_store
from ranking.training.train import train

TOPICS = {"running": "trail shoes", "coffee": "espresso beans", "garden": "rose spade"}


def ads_of(each: int) -> list[dict[str, str]]:
    """So many ads of each topic."""
    return [
        {"ad_id": f"{topic}-{n}", "title": f"{words} {n}", "body": topic, "advertiser": f"shop {n % 3}"}
        | {"category": topic}
        for topic, words in TOPICS.items()
        for n in range(each)
    ]


ADS = ads_of(6)
START = 1_700_000_000


def write_log(folder: Path, catalog: list[dict[str, str]], requests: int) -> tuple[Path, Path, Path]:
    """Ads, twelve users and their clicks, with conversions, places on the page and devices."""
    drawn = random.Random(0)
    ads, clicks, users = folder / "ads.jsonl", folder / "clicks.csv", folder / "users.jsonl"
    ads.write_text("".join(json.dumps(ad) + "\n" for ad in catalog))
    people = [{"user_id": f"u{n}", "age": str(20 + n), "interests": list(TOPICS)[n % 3]} for n in range(12)]
    users.write_text("".join(json.dumps(person) + "\n" for person in people))
    lines = ["request_id,ad_id,user_id,timestamp,clicks,impressions,conversions,position,device"]
    for request in range(requests):
        user = request % 12
        for place, ad in enumerate(drawn.sample(catalog, 4), start=1):
            liked = ad["category"] == list(TOPICS)[user % 3]
            clicked = int(drawn.random() < (0.8 if liked else 0.15) - 0.03 * place)
            bought = int(clicked and drawn.random() < 0.3)
            device = drawn.choice(["phone", "tv"])
            when = START + 900 * request
            lines.append(f"r{request},{ad['ad_id']},u{user},{when},{clicked},1,{bought},{place},{device}")
    clicks.write_text("\n".join(lines) + "\n")
    return ads, clicks, users


def small_bert(folder: Path) -> Path:
    """The tests' tiny BERT with less of everything."""
    save_tiny_bert(folder, layers=2, width=16)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def moment(seconds: int) -> str:
    """As JSON of a protobuf Timestamp, some time after the log's end."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(START + 900 * 240 + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def requests() -> list[dict[str, object]]:
    """A known user with a history, a new one with a text, nobody at all, and one with fresher counters."""
    by_id = [{"ad_id": ad["ad_id"]} for ad in ADS]
    new = {"ad": {"ad_id": "new", "title": "trail beans for garden runs", "category": "coffee"}}
    clicked = {"type": "EVENT_TYPE_CLICK", "timestamp": moment(-50)}
    bought = {"type": "EVENT_TYPE_CONVERSION", "timestamp": moment(-90_000)}
    shown = {"type": "EVENT_TYPE_IMPRESSION"}
    counter = {"kind": "COUNTER_KIND_AD", "id": "coffee-1", "impressions": 90, "clicks": 60, "last": moment(0)}
    phone = {"device": "phone", "timestamp": moment(60), "utc_offset_minutes": 60}
    return [
        {
            "user": {
                "user_id": "u1",
                "interests": "coffee",
                "attributes": {"age": "21"},
                "history": [
                    bought | {"ad_id": "coffee-2"},
                    shown | {"ad_id": "garden-1"},
                    clicked | {"ad_id": "coffee-0"},
                ],
            },
            "context": phone,
            "candidates": [*by_id, new],
        },
        {
            "user": {"user_id": "stranger", "history": [clicked | {"text": "running shoes"}]},
            "context": {"device": "tv", "timestamp": moment(86_400)},
            "candidates": by_id[:8],
        },
        {"user": {}, "context": {"timestamp": moment(0)}, "candidates": by_id[4:9]},
        {"user": {"user_id": "u4"}, "context": phone, "candidates": by_id[5:10], "counters": [counter]},
    ]


def make_model(folder: Path, out: Path) -> None:
    """A model version, and what it says."""
    data = load_dataset(*write_log(folder, ADS, 240))
    options = tiny_options(
        small_bert(folder / "bert"),
        epochs=4,
        min_text_gain=-9.0,
        train_layers="all",
        learning_rate=1e-3,
        head_learning_rate=5e-3,
        validate_every=2,
        patience=20,
        behaviour_epochs=1,
        behaviour_min_steps=20,
    )
    trained = train(data, options)
    assert not trained.model.adds_nothing
    store = open_store(folder / "model")
    with store.begin() as draft:
        counters = CounterSnapshot.of(data.log, data.keys)
        options_of_it = trained.spec.training | {"base": "a tiny BERT"}  # not a path of the machine that made it
        spec = trained.spec.model_copy(update={"base": "a tiny BERT", "training": options_of_it})
        save_version(store, draft, spec, trained.model, trained.tokenizer, counters)
    store.publish(draft.version)
    write_ads(((Ad(**ad), bytes(16)) for ad in ADS), folder / "ads.parquet")
    catalog = AdCatalog(folder / "ads.parquet")
    settings = EngineSettings(device="cpu", precision="float32")
    engine = RankingEngine(load_version(store, draft.version), settings)
    found = []
    for plain in requests():
        request = ParseDict(plain, RankRequest())
        user, context = user_from_wire(request.user), context_from_wire(request.context)
        asked = prepare(user, context, _candidates(request), catalog, skip_unknown=False, fresher=_fresher(request))
        answer = engine.rank([asked.query])[0]
        found.append(
            {"request": plain, "p_click": answer.p_click.tolist(), "p_conversion": answer.p_conversion.tolist()}
        )
    (out / "model.json").write_text(json.dumps({"ads": ADS, "answers": found}, indent=1) + "\n")
    pack(store, out / "model.tar.gz")


def make_towers(folder: Path, out: Path) -> None:
    """A tower version, and its vectors."""
    encoder = load_encoder("hashing:16")
    ads, clicks, users = write_log(folder, ads_of(20), 120)
    data = load_retrieval_data(ads, clicks, users, encoder)
    options = tiny_towers(width=8, history=10, epochs=10, layers=1)
    train_towers(data, encoder, folder / "towers", options, publish_anyway=True)
    towers = load_published_towers(folder / "towers")
    texts = {ad["ad_id"]: f"{ad['title']} {ad['body']}" for ad in ADS[::3]} | {"unknown": "an ad nobody has seen"}
    vectors = encoder.encode(list(texts.values()))
    events = [("CLICK", None), ("IMPRESSION", 5.0), ("CONVERSION", 90_000.0)]
    kinds = {kind.name: place for place, kind in enumerate(EVENT_TYPES)}
    event_vectors = towers.event_vectors(list(texts), vectors)
    attributes, context = {"age": "21"}, {"device": "phone"}
    with torch.no_grad():
        interests = towers.towers.users.interests(
            UserEvents(
                torch.from_numpy(event_vectors[None, : len(events)]),
                torch.tensor([[kinds[name] for name, _ in events]]),
                torch.tensor([[gap_class(seconds) for _, seconds in events]]),
                torch.tensor([len(events)]),
                torch.from_numpy(attribute_buckets([attributes])),
            ),
            torch.from_numpy(attribute_buckets([context])),
        )
    document = {
        "texts": texts,
        "ad_vectors": towers.ad_vectors(list(texts), vectors).tolist(),
        "event_vectors": event_vectors.tolist(),
        "user": {"events": events, "attributes": attributes, "context": context},
        "interests": interests[0].tolist(),
    }
    (out / "towers.json").write_text(json.dumps(document, indent=1) + "\n")
    from index_builder.tower_store import open_store as open_tower_store

    pack(open_tower_store(folder / "towers"), out / "towers.tar.gz")


def pack(store: VersionStore, path: Path) -> None:
    """The published version and the file that names it."""
    version = store.current_path()
    with tarfile.open(path, "w:gz", compresslevel=9) as archive:
        for place in (store.root / "CURRENT", version):
            archive.add(place, str(place.relative_to(store.root)), filter=_of_nobody)


def _of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Writes into the folder that the command line names."""
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as towers:
        make_model(Path(model), out)
        make_towers(Path(towers), out)


if __name__ == "__main__":
    main()
