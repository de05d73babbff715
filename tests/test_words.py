"""Words in any script and form: what one writes is found however another one wrote it, at a bounded cost."""

import json
import time

import bm25s
import pytest

from adcascade.artifacts.errors import CorruptVersion
from adcascade.catalog.lexical import LexicalIndex
from adcascade.catalog.words import words_of, words_of_query
from adcascade.records.users import Event, EventType, UserProfile
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import LEXICAL_FOLDER, load_version, open_store
from index_builder.build import BuildOptions, build
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.query import Query
from retrieval.retriever import Retriever
from retrieval.sources import LEXICAL, SourceSettings

FOUND = {
    "chinese word inside": ("专业键盘限时优惠送货上门", "键盘"),
    "one chinese character": ("新款绿茶上市", "茶"),
    "japanese kanji inside": ("本日限定防水加工", "防水"),
    "katakana inside": ("新作コーヒーメーカー登場", "コーヒー"),
    "hiragana": ("おいしいりんごジュース", "りんご"),
    "half-width kana": ("ｹｰｽ", "ケース"),
    "voiced half-width kana": ("ｶﾞﾗｽ", "ガラス"),
    "decomposed kana": ("カ\u3099ラス", "ガラス"),
    "latin beside kana": ("iPhoneケース", "iphone"),
    "kana beside latin": ("iPhoneケース", "ケース"),
    "traditional punctuation": ("特價！鍵盤，今天", "鍵盤"),
    "full-width letters": ("ＳＡＬＥ now", "sale"),
    "full-width digits": ("型番１２３", "123"),
    "arabic digits": ("خصم ٥٠", "50"),
    "thai inside": ("ร้านกาแฟสดใหม่", "กาแฟ"),
    "lao inside": ("ຮ້ານກາເຟໃໝ່", "ກາເຟ"),
    "khmer inside": ("ហាងកាហ្វេថ្មី", "កាហ្វេ"),
    "burmese inside": ("ကော်ဖီဆိုင်", "ကော်ဖီ"),
    "korean with an ending": ("커피를 마시다", "커피"),
    "korean syllable": ("책을 읽다", "책"),
    "decomposed korean": ("\u110f\u1165\u1111\u1175", "커피"),
    "sharp s": ("STRASSENSCHUH straße", "STRASSE"),
    "dotted capital i": ("İSTANBUL turu", "istanbul"),
    "dotless i": ("ışık", "IŞIK"),
    "combining accent": ("cafe\u0301", "café"),
    "without the accent": ("Crème brûlée", "creme brulee"),
    "final sigma": ("ΛΟΓΟΣ", "λόγος"),
    "ligature": ("ﬁne shoes", "fine"),
    "hebrew points": ("שָׁלוֹם", "שלום"),
    "arabic vowel marks": ("مُحَمَّد", "محمد"),
    "arabic stretched": ("كــتاب", "كتاب"),
    "arabic presentation forms": ("ﻛﺘﺎﺏ", "كتاب"),
    "soft hyphen": ("es\u00adpresso", "espresso"),
    "direction marks": ("\u202eespresso\u202c", "espresso"),
    "zero-width space parts words": ("cold\u200bbrew", "brew"),
    "emoji": ("best 🍕 in town", "🍕"),
    "emoji with a selector": ("I ❤\ufe0f it", "❤"),
    "flag": ("made in 🇩🇪", "🇩🇪"),
    "indic vowel signs stay": ("हिन्दी किताब", "हिन्दी"),
    "supplementary han": ("𠮷野家", "𠮷野"),
    "one letter": ("size X jeans", "x"),
}
OTHERS = ["something else", "別のもの", "다른 것", "อื่นๆ", "другое", "अन्य"]


@pytest.mark.parametrize(("text", "query"), FOUND.values(), ids=FOUND)
def test_a_word_is_found_in_whatever_form_it_was_written(tmp_path, text, query):
    LexicalIndex.of([*OTHERS, text]).save(tmp_path / "lexical")
    found = LexicalIndex.load(tmp_path / "lexical").search(query, 10)
    assert found.tolist() == [len(OTHERS)]


@pytest.mark.parametrize(
    ("text", "query"),
    [("防水吉他", "键盘"), ("東京タワー", "京都"), ("hot shoes", "hat"), ("कल", "काल"), ("cafe", "caf")],
)
def test_what_is_another_word_is_not_found(text, query):
    assert LexicalIndex.of([text, "x"]).search(query, 5).tolist() == []


def test_the_best_match_of_a_chinese_query_is_the_ad_with_all_of_it():
    texts = ["防水吉他限时优惠", "防水书包限时优惠", "复古书包限时优惠", "新款耳机"]
    assert LexicalIndex.of(texts).search("防水书包", 4).tolist()[0] == 1


def test_a_chinese_catalog_is_searched_by_words_through_the_retriever(tmp_path):
    goods = ["键盘", "吉他", "书包", "耳机", "相机", "雨伞"]
    ads = [{"ad_id": f"{good}{n}", "title": f"专业{good}限时优惠送货上门"} for good in goods for n in range(5)]
    (tmp_path / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    build(tmp_path / "ads.jsonl", tmp_path / "index", load_encoder("hashing:64"), BuildOptions())
    store = open_store(tmp_path / "index")
    index = AdIndex(load_version(store, store.current()), "cpu")
    settings = SourceSettings(timeout_seconds=30)
    retriever = Retriever(index, load_encoder("hashing:64"), InterestSettings(), 10, settings)
    for user in (UserProfile(interests="键盘"), UserProfile(history=(Event(EventType.SEARCH, text="键盘"),))):
        (answer,) = retriever.answer([Query(user, None, 5, shares={LEXICAL: 1.0})])
        assert {one.ad_id[:2] for one in answer.candidates} == {"键盘"}
    retriever.close()


HEAVY = {
    "marks on one letter": "a" + "\u0301\u0316" * 16_000,
    "marks on every letter": "a\u0301\u0316\u0301" * 8000,
    "a ligature of eighteen": "\ufdfa" * 32_768,
    "han without an end": "防水" * 16_384,
    "jamo": "\u1100\u1161" * 16_000,
    "one long word": "é" * 32_768,
    "joined emoji": "👩\u200d🍳" * 10_000,
    "nothing that shows": "\u200d\ufe0f\u202e" * 10_000,
}


@pytest.mark.parametrize("text", HEAVY.values(), ids=HEAVY)
def test_the_longest_texts_cost_little(text):
    started = time.process_time()
    indexed, asked = words_of(text), words_of_query(text)
    assert time.process_time() - started < 5  # 32,000 marks of one letter alone take 4 s as they come
    assert len(indexed) <= 8192
    assert len(asked) <= 4096 * 4
    assert max(map(len, [*indexed, *asked]), default=0) <= 200


def test_an_index_of_an_earlier_release_is_asked_with_its_own_analyzer(tmp_path):
    texts = ["Straße İzmir", "コーヒー 豆", "ÉCLAIR"]
    cut = bm25s.tokenize(texts, token_pattern=r"(?u)\b\w+\b", stopwords=None, return_ids=False, show_progress=False)
    old = bm25s.BM25()
    old.index(cut, show_progress=False)
    old.save(str(tmp_path / "lexical"), show_progress=False)
    index = LexicalIndex.load(tmp_path / "lexical")
    assert index.analyzer == 1
    for row, query in [(0, "straße"), (1, "豆"), (2, "éclair")]:
        assert index.search(query, 3).tolist() == [row]


def test_an_analyzer_that_this_release_does_not_know_is_named(tmp_path):
    LexicalIndex.of(["shoes"]).save(tmp_path / LEXICAL_FOLDER)
    (tmp_path / LEXICAL_FOLDER / "analyzer.json").write_text('{"analyzer": 9}')
    with pytest.raises(CorruptVersion, match="analyzer 9"):
        LexicalIndex.load(tmp_path / LEXICAL_FOLDER)
