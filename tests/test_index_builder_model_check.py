"""Broken models: each is refused as it is loaded, as an encoder and as a base of either ranker, by what is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import save_tiny_bert
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5EncoderModel,
)

from adcascade.vectors.encoder import HashingEncoder, load_encoder
from adcascade.vectors.errors import BuildError
from index_builder.build import BuildOptions, build
from ranking.artifact import load_base
from ranking.errors import ModelError
from ranking.model.shape import ModelShape

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def model(whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    return folder


def rename(folder, change):
    weights = {change(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def change_weight(folder, name, change):
    weights = load_file(folder / WEIGHTS)
    weights[name] = change(weights[name].clone())
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def one_infinity(weight):
    weight[1, 1] = torch.inf
    return weight


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def no_padding(folder):
    document = json.loads((folder / "tokenizer_config.json").read_text())
    del document["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(document))


def keeps_capitals(folder):
    """A vocabulary of small letters, whose tokenizer has forgotten to make letters small."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))


def larger_vocabulary(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save(str(folder / "tokenizer.json"))


def sharded(folder, *, lose_one):
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    (folder / WEIGHTS).unlink()
    parts = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, folder / file, {"format": "pt"})
    where = {name: file for file, some in parts.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if lose_one:
        (folder / "model-00002-of-00002.safetensors").unlink()


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def lying_header(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + data[8:])


WORDS = "embeddings.word_embeddings.weight"
LAYER = "encoder.layer.1.attention.self.query.weight"
BROKEN = {
    "prefix module": (lambda d: rename(d, lambda name: f"module.{name}"), r"missing .*embeddings\."),
    "prefix module.bert": (lambda d: rename(d, lambda name: f"module.bert.{name}"), "missing .*drawn at random"),
    "other names": (lambda d: rename(d, lambda name: name.replace("attention", "attn")), "missing .*unexpected"),
    "a layer less": (lambda d: rename(d, lambda name: name.replace("layer.2.", "layer.7.")), r"missing \(.*layer\.2\."),
    "fewer layers configured": (lambda d: change_json(d / "config.json", num_hidden_layers=2), "unexpected .*layer.2"),
    "another width": (lambda d: change_json(d / "config.json", hidden_size=64), "shape|size"),
    "fewer positions": (lambda d: change_json(d / "config.json", max_position_embeddings=128), "shape|size"),
    "NaN": (lambda d: change_weight(d, LAYER, lambda w: w.fill_(float("nan"))), f"{LAYER} has NaN"),
    "one infinity": (lambda d: change_weight(d, LAYER, one_infinity), "NaN"),
    "zeros": (lambda d: change_weight(d, LAYER, torch.zero_), "layer.1.attention.self.query.weight is all zero"),
    "zero words": (lambda d: change_weight(d, WORDS, torch.zero_), f"{WORDS} is all zero"),
    "no tokenizer": (no_tokenizer, r"knows no ordinary word: all become \[UNK\]"),
    "capitals": (keeps_capitals, "capital Latin letters"),
    "no padding token": (no_padding, "no padding token"),
    "larger vocabulary": (larger_vocabulary, "tokens up to number 148, its word embeddings only 99 rows"),
    "a shard missing": (lambda d: sharded(d, lose_one=True), "cannot load|missing"),
    "a pickle": (pickled, "pickle .*save_pretrained"),
    "cut weights": (cut, "cannot load"),
    "a lying header": (lying_header, "cannot load"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "cannot load"),
    "no config": (lambda d: (d / "config.json").unlink(), r"no config\.json"),
    "config of garbage": (lambda d: change_json(d / "config.json", vocab_size="x"), "cannot load"),
    "tokenizer of garbage": (lambda d: (d / "tokenizer.json").write_text("{"), "cannot load|knows no"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_refused_by_name_wherever_it_is_used(model, name):
    damage, said = BROKEN[name]
    damage(model)
    with pytest.raises(BuildError, match=said) as as_encoder:
        load_encoder(str(model), "cpu")
    assert str(model) in str(as_encoder.value)
    for architecture in ("shared_user", "joint"):
        with pytest.raises(ModelError, match=said) as as_base:
            load_base(str(model), architecture, 0, ModelShape(id_buckets=256))
        assert str(model) in str(as_base.value)


@pytest.mark.parametrize("lose_one", [False])
def test_a_whole_model_is_taken_in_one_file_and_in_shards(model, lose_one):
    want = load_encoder(str(model), "cpu").encode(["running shoes"])
    sharded(model, lose_one=lose_one)
    np.testing.assert_array_equal(load_encoder(str(model), "cpu").encode(["running shoes"]), want)
    for architecture in ("shared_user", "joint"):
        load_base(str(model), architecture, 0, ModelShape(id_buckets=256))


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PUBLISHED = {
    "bert with a language head": BertForMaskedLM(BertConfig(**SMALL)),
    "roberta with a language head": RobertaForMaskedLM(
        RobertaConfig(**SMALL, max_position_embeddings=130, pad_token_id=0, type_vocab_size=1)
    ),
    "electra with its discriminator": ElectraForPreTraining(ElectraConfig(**SMALL, embedding_size=16)),
    "bert that classifies": BertForSequenceClassification(BertConfig(**SMALL, num_labels=1)),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_heads_and_poolers_of_published_checkpoints_are_no_damage_and_prefixes_are(model, kind):
    PUBLISHED[kind].save_pretrained(model)
    load_encoder(str(model), "cpu")
    for architecture in ("shared_user", "joint"):
        load_base(str(model), architecture, 0, ModelShape(id_buckets=256))
    rename(model, lambda name: f"module.{name}")
    for architecture in ("shared_user", "joint"):
        with pytest.raises(ModelError, match="missing"):
            load_base(str(model), architecture, 0, ModelShape(id_buckets=256))
    with pytest.raises(BuildError, match="missing"):
        load_encoder(str(model), "cpu")


def test_a_reranker_without_its_own_head_is_refused(model):
    PUBLISHED["bert that classifies"].save_pretrained(model)
    weights = {name: one for name, one in load_file(model / WEIGHTS).items() if not name.startswith("classifier")}
    save_file(weights, model / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing \(classifier\.bias, classifier\.weight\)"):
        load_base(str(model), "joint", 0, ModelShape(id_buckets=256))


def test_a_model_without_a_position_limit_is_refused(model):
    config = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    T5EncoderModel(config).save_pretrained(model)
    with pytest.raises(BuildError, match="names no largest number of positions"):
        load_encoder(str(model), "cpu")


def test_a_limit_of_tokens_beyond_the_positions_is_refused_and_roberta_gets_what_it_has(model):
    encoder = SentenceTransformer(str(model), device="cpu")
    encoder.save(str(model / "saved"))
    load_encoder(str(model / "saved"), "cpu")
    change_json(model / "saved" / "sentence_bert_config.json", max_seq_length=5000)
    with pytest.raises(BuildError, match=r"up to 5000 tokens \(max_seq_length\), but has 512 positions"):
        load_encoder(str(model / "saved"), "cpu")
    PUBLISHED["roberta with a language head"].save_pretrained(model)
    loaded = load_encoder(str(model), "cpu")
    assert loaded.model.max_seq_length == 129  # positions begin after the padding token's
    assert np.isfinite(loaded.encode(["shoes " * 500])).all()


@pytest.mark.parametrize("below", [False, True])
def test_a_sentence_transformers_folder_is_checked_like_a_bare_one(model, below):
    folder = model / "saved"
    SentenceTransformer(str(model), device="cpu").save(str(folder))
    network = folder
    if below:
        network = folder / "0_Transformer"
        network.mkdir()
        for name in ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
            if (folder / name).exists():
                (folder / name).rename(network / name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (folder / "modules.json").write_text(json.dumps(modules))
    load_encoder(str(folder), "cpu")
    rename(network, lambda name: f"module.{name}")
    with pytest.raises(BuildError, match=r"Take the prefix 'module\.' off"):
        load_encoder(str(folder), "cpu")


def test_a_folder_of_something_else_and_a_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    for place in (tmp_path, tmp_path / "notes.txt", tmp_path / "nothing"):
        with pytest.raises(BuildError, match="encoder"):
            load_encoder(str(place), "cpu")
        with pytest.raises(ModelError, match=r"cannot load|is broken"):
            load_base(str(place), "shared_user", 0, ModelShape(id_buckets=256))


# ---- vectors that do not tell texts apart


class FewVectors(HashingEncoder):
    """Sees only so many words."""

    def __init__(self, different):
        super().__init__(64)
        self._different = different

    def encode(self, texts):
        noise = np.random.default_rng(len(texts)).normal(0, 1e-8, (len(texts), self.dimension))
        known = super().encode([f"word{hash(text) % self._different}" for text in texts])
        return (known + noise).astype(np.float32)


def write_catalog(path, count):
    rows = [{"ad_id": f"a{number}", "title": f"title {number}"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_encoder_that_makes_few_vectors_of_many_texts_is_refused_by_name(tmp_path):
    ads = write_catalog(tmp_path / "ads.jsonl", 60)
    with pytest.raises(BuildError, match=r"'hashing:64' made \d+ different vectors of 60 different texts"):
        build(ads, tmp_path / "index", FewVectors(20), BuildOptions())
    assert not list((tmp_path / "index" / "versions").iterdir()) if (tmp_path / "index" / "versions").exists() else True


def test_an_encoder_that_makes_fewer_vectors_than_texts_is_warned_of(tmp_path, caplog):
    ads = write_catalog(tmp_path / "ads.jsonl", 60)
    build(ads, tmp_path / "index", FewVectors(100), BuildOptions())
    assert "different vectors of 60 different texts: ads that share a vector" in caplog.text


def test_ads_of_the_same_text_are_no_fault_of_the_encoder(tmp_path, caplog):
    rows = [{"ad_id": f"a{number}", "title": f"{'SHOES' if number % 2 else 'shoes'}!"} for number in range(60)]
    (tmp_path / "ads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(tmp_path / "ads.jsonl", tmp_path / "index", load_encoder("hashing:64"), BuildOptions())
    assert "different vectors" not in caplog.text
