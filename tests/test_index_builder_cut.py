"""Texts are cut before they are split into tokens, and what a model reads stays the same."""

import time

import numpy as np
import pytest
from conftest import EXAMPLES

from adcascade.catalog.ad_text import embedding_text
from adcascade.records.ads import read_ads
from adcascade.vectors.encoder import CHARS_PER_TOKEN, EMBEDDED, estimated_tokens, load_encoder
from ranking.model.batch import tokenize

RUNNING = {
    "english": "The quick brown fox jumps over the lazy dog while internationalization specialists deliberate. ",
    "german": "Donaudampfschifffahrtsgesellschaftskapitäne und Rechtsschutzversicherungsgesellschaften tagen. ",
    "russian": "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "chinese": "我能吞下玻璃而不伤身体。",
    "japanese": "いろはにほへと ちりぬるを。",
    "arabic": "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ",
    "emoji": "🙂🚀 sale!!! 50% off 🎉 ",
    "addresses": "https://example.org/a/long/path?with=parameters&and=more#fragments info@example.org ",
    "numbers": "1234567890 3.14159 +49-170-1234567 #42 ",
    "table": "price  |   9.99 |\n\t size  |   XL   |\n",
}


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(EMBEDDED)


@pytest.mark.parametrize("max_tokens", [24, 48, 256])
@pytest.mark.parametrize("language", RUNNING)
def test_the_tokens_of_running_text_are_those_without_the_cut(encoder, language, max_tokens):
    tokenizer = encoder.model.tokenizer
    text = (RUNNING[language] * 2000)[:32_768]
    whole = tokenizer([text], truncation=True, max_length=max_tokens)["input_ids"]
    assert tokenize(tokenizer, [text], max_tokens) == [list(whole[0])]
    assert len(whole[0]) == max_tokens  # else nothing was cut


def test_ads_of_a_catalog_are_read_whole(encoder):
    texts = [embedding_text(ad) for ad in read_ads(EXAMPLES / "ads.jsonl")]
    whole = encoder.model.tokenizer(texts, truncation=True, max_length=48)["input_ids"]
    assert tokenize(encoder.model.tokenizer, texts, 48) == [list(ids) for ids in whole]


@pytest.mark.parametrize("name", [EMBEDDED, "hashing:64"])
def test_what_stands_behind_the_cut_changes_no_vector(name):
    encoder = load_encoder(name)
    text = ("trail running shoes " * 2000)[: encoder.max_chars]
    np.testing.assert_array_equal(encoder.encode([text]), encoder.encode([text + " and a villa in Spain" * 500]))


def test_a_long_text_costs_no_more_than_one_that_is_read_whole():
    encoder = load_encoder("hashing:64")  # whose time grows with each character that it reads
    text = "word running " * 3000

    def seconds(read):
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            encoder.encode([read])
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(text * 30) < 4 * seconds(text[: encoder.max_chars])


def test_the_estimate_of_tokens_has_an_end_and_counts_scripts_without_spaces():
    assert estimated_tokens("x" * 100_000, 256) == 256
    assert estimated_tokens("", 256) == 2
    assert estimated_tokens("我能吞下玻璃而不伤身体" * 10, 256) > 80
    assert CHARS_PER_TOKEN >= 8
