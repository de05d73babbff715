"""Encoders for many texts: whatever runs the model, the vectors are the same."""

import logging
import sys

import numpy as np
import pytest

from adcascade.serving.slices import run_through
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.vectors.encoder import HashingEncoder, SentenceTransformerEncoder
from adcascade.vectors.errors import BuildError
from adcascade.vectors.openvino_encoder import OpenVinoEncoder

TEXTS = ["running shoes", "espresso at home, all day long, for a price that nobody beats", "x", "", "roses " * 400] * 20


def test_openvino_makes_the_vectors_of_torch():
    source = SentenceTransformerEncoder("embedded:all-MiniLM-L6-v2", "cpu")
    fast = load_bulk_encoder(engine="openvino")
    assert isinstance(fast, OpenVinoEncoder)
    assert (fast.name, fast.sha256, fast.dimension) == (source.name, source.sha256, source.dimension)
    found = fast.encode(TEXTS)
    assert found.dtype == np.float32
    assert (found * source.encode(TEXTS)).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert fast.encode([]).shape == (0, fast.dimension)


def test_engines_that_do_not_exist_are_refused_and_hashing_needs_none():
    with pytest.raises(BuildError, match="engine must be auto, torch or openvino"):
        load_bulk_encoder(engine="jax")
    assert isinstance(load_bulk_encoder("hashing:32", "openvino"), HashingEncoder)
    assert isinstance(load_bulk_encoder(engine="torch"), SentenceTransformerEncoder)


class Broken(SentenceTransformerEncoder):
    """Vectors that no other engine will make."""

    def encode(self, texts):
        return -super().encode(texts)


def test_an_engine_with_other_vectors_is_refused_and_auto_says_so(monkeypatch, caplog):
    monkeypatch.setattr("adcascade.vectors.encoder.SentenceTransformerEncoder", Broken)
    with pytest.raises(BuildError, match="are others"):
        load_bulk_encoder(engine="openvino")
    caplog.set_level(logging.WARNING)
    assert isinstance(load_bulk_encoder(), Broken)
    assert "embedding in torch" in caplog.text


def test_without_openvino_auto_takes_torch_and_asking_for_it_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BuildError, match=r"pip install 'adcascade\[fast\]'"):
        load_bulk_encoder(engine="openvino")


def test_an_encoder_can_be_paused_between_its_layers_and_others_encode_meanwhile():
    encoder = SentenceTransformerEncoder("embedded:all-MiniLM-L6-v2", "cpu")
    long, short = ["roses and shoes " * 200, "espresso"], ["trail shoes"]
    want_long, want_short = encoder.encode(long), encoder.encode(short)
    np.testing.assert_array_equal(run_through(encoder.encode_in_slices(long)), want_long)
    slices, pauses = encoder.encode_in_slices(long), 0
    while True:
        try:
            next(slices)
        except StopIteration as done:
            np.testing.assert_array_equal(done.value, want_long)
            break
        pauses += 1
        np.testing.assert_array_equal(encoder.encode(short), want_short)
        np.testing.assert_array_equal(run_through(encoder.encode_in_slices(short)), want_short)
    assert pauses == 6  # layers
    left_off = encoder.encode_in_slices(long)
    next(left_off)
    left_off.close()
    np.testing.assert_array_equal(run_through(encoder.encode_in_slices(short)), want_short)
    with pytest.raises(TypeError):
        run_through(encoder.encode_in_slices([7]))
