"""Small real stand-ins shared by the tests: a tiny random BERT, a hashing encoder, the example catalog."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from adcascade.artifacts.errors import VersionNotFound
from adcascade.records.errors import InputError
from adcascade.serving.channel import open_channel
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings
from adcascade.towers.artifact import load_published_towers
from adcascade.towers.training.data import RetrievalData, load_retrieval_data
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.train import train_and_save as train_and_save_towers
from adcascade.vectors.encoder import load_encoder
from index_builder.build import BuildOptions, build
from ranking.data.dataset import Dataset, load_dataset
from ranking.inputs.features import FEATURES, Features
from ranking.training.options import TrainOptions
from ranking.training.run import train_and_save

EXAMPLES = Path(__file__).parent.parent / "examples"

# Models this small gain nothing from threads, which on a busy machine wait for each other; processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# A shell's background job ignores Ctrl-C, and so would every process that tests start in one.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


def save_tiny_bert(directory: Path, *, layers: int = 3, width: int = 32, seed: int = 0) -> Path:
    """A BERT with random weights and a tokenizer of characters, as a Hugging Face directory."""
    torch.manual_seed(seed)
    characters = [chr(code) for code in range(33, 127)]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*specials, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


def writable(path: Path) -> Path:
    """The same path: a file of a version, which is read-only, to be damaged."""
    path.chmod(0o640)
    return path


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class World:
    """A small made-up platform: its files, a published index version and a published model version."""

    folder: Path
    ads: Path
    clicks: Path
    users: Path
    index: Path
    model: Path


TOPICS = {
    "running": ["trail", "shoes", "marathon", "sprint", "laces", "stride"],
    "coffee": ["espresso", "grinder", "beans", "roast", "crema", "filter"],
    "garden": ["roses", "spade", "compost", "seeds", "hedge", "soil"],
}


def write_world_files(folder: Path, *, ads_per_topic: int = 20, users: int = 40, seed: int = 0) -> None:
    """Ads of three topics; each user clicks mostly on one of them."""
    random = np.random.default_rng(seed)
    ads = [
        {
            "ad_id": f"{topic}-{number}",
            "title": f"{' '.join(random.choice(words, 3, replace=False))} offer {number}",
            "body": f"all about {topic}",
            "category": topic,
        }
        for topic, words in TOPICS.items()
        for number in range(ads_per_topic)
    ]
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    people = [{"user_id": f"u{number}", "age": str(20 + number)} for number in range(users)]
    (folder / "users.jsonl").write_text("".join(json.dumps(person) + "\n" for person in people))
    lines = ["request_id,ad_id,user_id,timestamp,clicks,impressions,device"]
    for request in range(users * 5):
        user = request % users
        favourite = list(TOPICS)[user % 3]
        for ad in random.choice(np.array(ads, object), 6, replace=False):
            clicked = int(random.random() < (0.85 if ad["category"] == favourite else 0.15))
            lines.append(f"r{request},{ad['ad_id']},u{user},{1_700_000_000 + 600 * request},{clicked},1,phone")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> World:
    folder = tmp_path_factory.mktemp("world")
    write_world_files(folder)
    found = World(
        folder, folder / "ads.jsonl", folder / "clicks.csv", folder / "users.jsonl", folder / "index", folder / "model"
    )
    build(found.ads, found.index, load_encoder("hashing:64"), BuildOptions())
    train_and_save(load_dataset(found.ads, found.clicks, found.users), found.model, tiny_options(tiny_bert))
    return found


def every_feature(data: Dataset, ctr: float, names: Sequence[str] = FEATURES) -> Features:
    """The named features of every row by what it may look back on, float32 [rows, features]."""
    return data.feature_table(data.past, ctr, names)[np.arange(len(data.log))]


def every_context_hash(data: Dataset) -> npt.NDArray[np.uint64]:
    """What each row has of context, uint64 [rows, words]."""
    hashes, kind = data.context_kinds
    return hashes[kind]


def tiny_options(base: Path, **changes: object) -> TrainOptions:
    """Options that train the tiny BERT in a second or two."""
    defaults = {
        "behaviour_min_steps": 100,
        "behaviour_line": "none",
        "text_prior": "none",
        "min_text_gain": 0.0,
        "max_user_tokens": 48,
        "max_ad_tokens": 24,
        "validate_every": 5,
        "pairs_per_step": 48,
        "device": "cpu",
        "precision": "float32",
        "export": False,
    }
    return TrainOptions.of(**{"base": str(base), **defaults, **changes})


def tiny_towers(**changes: object) -> TowerOptions:
    """Options that train towers on the made-up platform in seconds."""
    defaults = {
        "width": 32,
        "heads": 2,
        "history": 40,
        "epochs": 50,
        "moments_per_step": 100,
        "learning_rate": 5e-3,
        "dropout": 0.2,
        # Impressions of that platform are drawn at random.
        "impression_weight": 0.0,
    }
    return TowerOptions(**{**defaults, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tower_data(world: World) -> RetrievalData:
    """The made-up platform as the towers learn it."""
    return load_retrieval_data(world.ads, world.clicks, world.users, load_encoder("hashing:64"))


@pytest.fixture(scope="session")
def towers_root(world: World, tower_data: RetrievalData) -> Path:
    """Root of a published tower version."""
    # Nineteen users choose: whether the likeness of texts finds more on them is a matter of the seed.
    root, encoder = world.folder / "towers", load_encoder("hashing:64")
    train_and_save_towers(tower_data, encoder, root, tiny_towers(), publish_anyway=True)
    return world.folder / "towers"


@pytest.fixture(scope="session")
def tower_index(world: World, towers_root: Path) -> Path:
    """Root of a published index version with towers."""
    root = world.folder / "tower-index"
    towers = load_published_towers(towers_root)
    build(world.ads, root, load_encoder("hashing:64"), BuildOptions(), towers=towers)
    return root


@contextmanager
def serving_server(
    name: str, register: Callable[[grpc.Server], None], **settings: object
) -> Iterator[tuple[Server, grpc.Channel]]:
    """A real server on a free port with one service, and a channel to it."""
    server = Server(
        ServerSettings(port=0, **settings),  # type: ignore[arg-type]
        caller_errors=(InputError,),
        unready_errors=(VersionNotFound,),
    )
    server.add(name, register)
    server.start()
    server.set_serving(True)
    with open_channel(server.address) as channel:
        yield server, channel
    server.stop(0)
