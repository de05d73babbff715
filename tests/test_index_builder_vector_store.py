"""Text vectors are computed once: by any command, by several at a time, after a kill and with a damaged file."""

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import save_tiny_bert
from counting_encoder import Encoder, texts
from typer.testing import CliRunner

from adcascade.vectors import vector_store
from adcascade.vectors.encoder import SentenceTransformerEncoder, load_encoder
from adcascade.vectors.vector_store import VectorStore, default_folder, fingerprint, remembering
from index_builder.build import BuildOptions, build
from pipeline.cli import app


def encoded(folder, wanted, encoder=None):
    """Vectors, and how many texts were embedded and reused."""
    with remembering(encoder or Encoder(), folder) as kept:
        return kept.encode(wanted), kept.embedded, kept.reused


def shards(folder):
    return sorted(folder.glob("*/*.npy"))


def test_a_text_is_embedded_once_and_comes_back_to_the_last_bit(tmp_path):
    first = encoded(tmp_path, texts(50))
    again = encoded(tmp_path, texts(60)[::-1])
    assert first[1:] == (50, 0)
    assert again[1:] == (10, 50)
    np.testing.assert_array_equal(again[0], Encoder().encode(texts(60)[::-1]))
    assert again[0].dtype == np.float32


def test_a_text_that_stands_twice_is_embedded_once(tmp_path):
    encoder = Encoder()
    vectors, embedded, reused = encoded(tmp_path, ["a", "b", "a"], encoder)
    assert (encoder.made, embedded, reused) == (["a", "b"], 2, 1)
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_what_is_kept_is_of_one_encoder_alone(tmp_path):
    encoded(tmp_path, texts(5))
    for other in (Encoder("other"), Encoder(variant="openvino"), Encoder(dimension=16)):
        vectors, embedded, _ = encoded(tmp_path, texts(5), other)
        assert embedded == 5
        np.testing.assert_array_equal(vectors, type(other)(other.name, other.dimension).encode(texts(5)))


def test_more_than_a_shard_and_none(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_store, "_ROWS", 16)
    assert encoded(tmp_path, [])[1:] == (0, 0)
    assert not tmp_path.joinpath(fingerprint(Encoder())).exists()
    encoded(tmp_path, texts(50))
    assert len(shards(tmp_path)) == 4
    found = encoded(tmp_path, texts(50))
    assert found[1:] == (0, 50)
    np.testing.assert_array_equal(found[0], Encoder().encode(texts(50)))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "another shape"])
def test_a_damaged_shard_is_refused_and_its_texts_are_embedded_again(tmp_path, damage, caplog):
    encoded(tmp_path, texts(20))
    (shard,) = shards(tmp_path)
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    shard.write_bytes(
        {"flip": bytes(content), "cut": bytes(content[:-9]), "empty": b"", "foreign": b"PK\3\4" * 100}.get(
            damage, content
        )
    )
    if damage == "another shape":  # its name is right, but no store wrote it
        import hashlib
        import io

        with io.BytesIO() as buffer:
            np.save(buffer, np.zeros(5))
            shard.unlink()
            shard.with_name(f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.npy").write_bytes(buffer.getvalue())
    with caplog.at_level(logging.WARNING):
        vectors, embedded, _ = encoded(tmp_path, texts(20))
    assert embedded == 20
    assert "is damaged and removed" in caplog.text
    np.testing.assert_array_equal(vectors, Encoder().encode(texts(20)))
    assert encoded(tmp_path, texts(20))[1:] == (0, 20)


def test_a_shard_that_goes_while_it_is_read_is_embedded_again(tmp_path):
    encoded(tmp_path, texts(20))
    with remembering(Encoder(), tmp_path) as kept:
        for path in shards(tmp_path):
            path.unlink()
        vectors = kept.encode(texts(20))
    assert kept.embedded == 20
    np.testing.assert_array_equal(vectors, Encoder().encode(texts(20)))


def test_vectors_that_are_no_numbers_are_not_kept(tmp_path):
    class Broken(Encoder):
        def of(self, text):
            return np.full(self.dimension, np.nan)

    assert np.isnan(encoded(tmp_path, texts(3), Broken())[0]).all()
    assert shards(tmp_path) == []


EMBEDS = """
import sys
from pathlib import Path
from counting_encoder import Encoder, texts
from adcascade.vectors import vector_store
vector_store._ROWS = 32
with vector_store.remembering(Encoder(), Path({folder!r})) as kept:
    for first in range({first}, {end}, 32):
        kept.encode(texts(32, first))
        print("made", flush=True)
"""


def embedding(folder, first, end):
    """A process that embeds these texts, 32 at a time, and says so."""
    script = EMBEDS.format(folder=str(folder), first=first, end=end)
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )


def test_processes_write_side_by_side(tmp_path):
    started = [embedding(tmp_path, first, first + 320) for first in (0, 160, 320)]
    for process in started:
        process.communicate()
        assert process.returncode == 0
    vectors, embedded, reused = encoded(tmp_path, texts(640))
    assert (embedded, reused) == (0, 640)
    np.testing.assert_array_equal(vectors, Encoder().encode(texts(640)))


def test_a_kill_in_the_middle_leaves_what_was_written(tmp_path):
    process = embedding(tmp_path, 0, 10**6)
    for _ in range(5):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    vectors, embedded, reused = encoded(tmp_path, texts(128))
    assert (embedded, reused) == (0, 128)
    np.testing.assert_array_equal(vectors, Encoder().encode(texts(128)))


def test_what_a_killed_writer_left_is_cleared_away_later(tmp_path):
    encoded(tmp_path, texts(3))
    (shard,) = shards(tmp_path)
    young, old = (shard.with_name(f".writing-1-{name}") for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 10**6,) * 2)
    encoded(tmp_path, texts(4))
    assert (young.exists(), old.exists()) == (True, False)


def test_many_small_shards_become_few(tmp_path):
    for first in range(40):
        encoded(tmp_path, texts(2, 2 * first))
    assert len(shards(tmp_path)) < 20
    assert encoded(tmp_path, texts(80))[1:] == (0, 80)


def test_room_is_bounded_and_what_was_used_least_lately_goes_first(tmp_path):
    for number, name in enumerate(("old", "used", "new")):
        encoded(tmp_path, texts(100), Encoder(name))
        (path,) = tmp_path.glob(f"{fingerprint(Encoder(name))}/*.npy")
        os.utime(path, (1000.0 + number,) * 2)
    assert encoded(tmp_path, texts(100), Encoder("old"))[1:] == (0, 100)  # used again
    size = shards(tmp_path)[0].stat().st_size
    VectorStore(tmp_path, Encoder("old"), max_bytes=2 * size).close()
    left = {name: encoded(tmp_path, texts(100), Encoder(name))[2] for name in ("old", "new")}
    assert left == {"old": 100, "new": 100}
    assert encoded(tmp_path, texts(100), Encoder("used"))[2] == 0


def test_files_are_readable_by_the_owners_group_at_most(tmp_path):
    before = os.umask(0)
    try:
        encoded(tmp_path / "vectors", texts(3))
    finally:
        os.umask(before)
    (shard,) = shards(tmp_path / "vectors")
    assert stat.S_IMODE(shard.stat().st_mode) == 0o640
    assert stat.S_IMODE(shard.parent.stat().st_mode) == 0o750


def test_where_nothing_can_be_kept_the_work_goes_on_and_it_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vector_store, "_ROWS", 8)
    (tmp_path / "vectors").write_text("a file, not a folder")
    vectors, embedded, _ = encoded(tmp_path / "vectors", texts(50))
    assert embedded == 50
    np.testing.assert_array_equal(vectors, Encoder().encode(texts(50)))
    assert caplog.text.count("cannot be kept") == 1
    assert "--vectors" in caplog.text


def test_hashed_vectors_are_not_kept(tmp_path):
    assert encoded(tmp_path / "vectors", texts(5), load_encoder("hashing:64"))[1:] == (5, 0)
    assert not (tmp_path / "vectors").exists()


def test_another_tokenizer_or_pooling_is_another_encoder(tmp_path):
    """With the same weights."""
    folder = save_tiny_bert(tmp_path / "one")
    one = SentenceTransformerEncoder(str(folder), "cpu")
    one.encode(["a call sets how the tokenizer cuts and pads", "x"])
    assert fingerprint(SentenceTransformerEncoder(str(folder), "cpu")) == fingerprint(one)
    other = SentenceTransformerEncoder(str(folder), "cpu")
    other.model[1].pooling_mode_mean_tokens, other.model[1].pooling_mode_cls_token = False, True
    written = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    third = SentenceTransformerEncoder(str(folder), "cpu")
    assert one.sha256 == third.sha256
    assert fingerprint(third) != fingerprint(one)


@pytest.fixture(scope="module")
def shared(world, tmp_path_factory):
    """What each command says of its text vectors, one after the other, as an owner would run them."""
    root = tmp_path_factory.mktemp("owner")
    encoder = ["--encoder", str(save_tiny_bert(root / "encoder"))]
    files = ["--ads", str(world.ads), "--clicks", str(world.clicks), "--users", str(world.users)]
    sizes = ["--width", "16", "--heads", "2", "--epochs", "1", "--history", "20"]
    commands = {
        "train-retrieval": [*files, "--out", str(root / "towers"), *encoder, *sizes, "--publish-anyway"],
        "build": ["--ads", str(world.ads), "--out", str(root / "index"), "--towers", str(root / "towers"), *encoder],
        "evaluate-retrieval": [*files, "--index", str(root / "index"), "--no-baselines"],
        "evaluate-pipeline": [
            *files,
            "--index",
            str(root / "index"),
            "--model",
            str(world.model),
            "--no-baselines",
            "--candidates",
            "20",
        ],
    }
    said = {}
    for name, arguments in commands.items():
        ran = CliRunner().invoke(app, [name, *arguments])
        assert ran.exit_code == 0, (name, ran.output, ran.exception)
        said[name] = " ".join(ran.output.split())
    return root, said


def test_no_command_embeds_what_another_has(shared):
    root, said = shared
    assert "Text vectors: 60 embedded, 0 reused." in said["train-retrieval"]
    assert "60 (0 embedded, 60 reused)" in said["build"]
    for name in ("evaluate-retrieval", "evaluate-pipeline"):
        assert f"Text vectors: 0 embedded, 60 reused from {default_folder(root / 'index')}" in said[name].replace(
            "\n", ""
        )
    assert len(list((root / "vectors").glob("*/*.npy"))) == 1


def test_a_build_says_of_what_it_reuses_the_same_whoever_embedded_it(world, tmp_path):
    """The store first, then the published version; a text in neither is embedded."""
    encoder = Encoder()
    with remembering(encoder, tmp_path / "vectors") as kept:
        first = build(world.ads, tmp_path / "index", kept, BuildOptions()).manifest
    assert (first.embedded, first.reused) == (60, 0)
    rows = world.ads.read_text().splitlines()
    (tmp_path / "ads.jsonl").write_text("\n".join([*rows, json.dumps({"ad_id": "new", "title": "one more"})]))
    for index, folder in (("other", "vectors"), ("index", "elsewhere")):  # from the store, from the published version
        with remembering(Encoder(), tmp_path / folder) as kept:
            found = build(tmp_path / "ads.jsonl", tmp_path / index, kept, BuildOptions()).manifest
        assert (found.embedded, found.reused) == (1, 60)
