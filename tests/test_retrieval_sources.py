"""Candidate sources and their merging: each named, each with its share, and none of them missed if it is down."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adcascade.catalog.lexical import LexicalIndex
from adcascade.records.errors import InputError
from adcascade.records.users import Event, EventType, UserProfile
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version, open_store
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.merge import merge_sources
from retrieval.query import Query
from retrieval.retriever import Retriever
from retrieval.sources import (
    FAILED,
    FRESH,
    INTERESTS,
    LATE,
    LEXICAL,
    NEIGHBOURS,
    POPULARITY,
    SourcePool,
    SourceSettings,
    check_shares,
)


@pytest.fixture(scope="module")
def loaded(tower_index):
    store = open_store(tower_index)
    return load_version(store, store.current())


@pytest.fixture
def skips():
    return []


@pytest.fixture
def retriever(loaded, skips):
    settings = SourceSettings(timeout_seconds=5.0)
    index = AdIndex(loaded, "cpu")
    found = Retriever(
        index, load_encoder("hashing:64"), InterestSettings(), 100, settings, lambda *skip: skips.append(skip)
    )
    yield found
    found.close()


def ask(retriever, user, k=20, **shares):
    (answer,) = retriever.answer([Query(user, None, k, shares=shares)])
    return answer


def count(answer, source):
    return sum(candidate.source == source for candidate in answer.candidates)


RUNNER = UserProfile(history=tuple(Event(EventType.CLICK, f"running-{number}") for number in range(6)))


def test_words_find_what_interests_do_not(retriever):
    user = UserProfile(interests="compost spade", history=RUNNER.history)
    answer = ask(retriever, user, lexical=0.5)
    found = [one.ad_id for one in answer.candidates if one.source == LEXICAL]
    assert found
    assert all(ad_id.startswith("garden") for ad_id in found)
    assert count(ask(retriever, user, lexical=0.0), LEXICAL) == 0
    assert count(ask(retriever, RUNNER), LEXICAL) == 0


def test_searches_are_words_too(retriever):
    searched = UserProfile(history=(*RUNNER.history, Event(EventType.SEARCH, text="hedge soil")))
    answer = ask(retriever, searched, lexical=0.5)
    assert any(one.source == LEXICAL and one.ad_id.startswith("garden") for one in answer.candidates)


def test_newcomers_get_what_is_popular(retriever, loaded):
    answer = ask(retriever, UserProfile())
    ids = loaded.catalog.ids
    best = np.argsort(-loaded.towers.popularity.clicks(ids, 14.0), kind="stable")[:10]
    assert {ids[row] for row in best} <= {one.ad_id for one in answer.candidates}
    assert count(answer, POPULARITY) >= 5
    assert count(ask(retriever, RUNNER), POPULARITY) == 0
    assert count(ask(retriever, UserProfile(), popularity=0.0), POPULARITY) == 0


def test_scores_follow_the_order_of_what_was_merged(retriever, loaded):
    answer = ask(retriever, UserProfile())
    found = [one.score for one in answer.candidates]
    assert found == sorted(found, reverse=True)
    rows = [loaded.catalog.row_of[one.ad_id] for one in answer.candidates]
    own = (answer.interests.vectors @ np.asarray(loaded.searched_vectors)[rows].T).max(axis=0)
    assert found == pytest.approx(np.sort(own)[::-1].tolist(), rel=1e-4)
    assert own.tolist() != pytest.approx(found, rel=1e-4)  # what is popular stands higher than by its own score


def test_fresh_ads_get_their_share(loaded, skips):
    settings = SourceSettings(shares={FRESH: 0.25}, fresh_below=10_000)  # every ad of so small a platform is fresh
    retriever = Retriever(AdIndex(loaded, "cpu"), load_encoder("hashing:64"), InterestSettings(), 100, settings)
    answer = ask(retriever, RUNNER)
    retriever.close()
    assert len(answer.candidates) == 20
    alone = ask_fresh(loaded, answer.interests.vectors)
    assert {loaded.catalog.ids[row] for row in alone[:5]} <= {one.ad_id for one in answer.candidates}


def ask_fresh(loaded, interests):
    likeness = (interests[:, 1:] @ np.asarray(loaded.searched_vectors)[:, 1:].T).max(axis=0)
    return np.argsort(-likeness, kind="stable")


def test_neighbours_of_what_was_met_add_to_the_similarity(loaded):
    trained, vectors, row_of = loaded.towers, np.asarray(loaded.searched_vectors), loaded.catalog.row_of
    weight_scale = replace(trained, spec=trained.spec.model_copy(update={"neighbour_weight": 50.0}))
    loaded = replace(loaded, towers=weight_scale)
    settings = SourceSettings(shares={}, timeout_seconds=5.0)
    retriever = Retriever(AdIndex(loaded, "cpu"), load_encoder("hashing:64"), InterestSettings(), 100, settings)
    user = UserProfile(
        history=(*RUNNER.history, Event(EventType.HIDE, "garden-1"), Event(EventType.IMPRESSION, "gone"))
    )
    answer = ask(retriever, user, k=12)
    retriever.close()
    met = np.zeros(len(vectors), np.float32)
    met[[row_of[event.ad_id] for event in RUNNER.history]] = 1
    added = 50.0 * met @ trained.neighbours.over(loaded.catalog.ids).toarray()
    similarity = (answer.interests.vectors @ vectors.T).max(axis=0)
    best = np.argsort(-(similarity + added), kind="stable")[:12]
    assert [row_of[one.ad_id] for one in answer.candidates] == best.tolist()
    rows = [row_of[one.ad_id] for one in answer.candidates]
    assert [one.similarity for one in answer.candidates] == pytest.approx(similarity[rows].tolist(), abs=1e-3)
    assert [one.score for one in answer.candidates] == pytest.approx((similarity + added)[rows].tolist(), abs=1e-3)
    alone = set(np.argsort(-similarity, kind="stable")[:12].tolist())
    assert {one.source for one in answer.candidates} == {INTERESTS, NEIGHBOURS}
    assert all((one.source == INTERESTS) == (row in alone) for one, row in zip(answer.candidates, rows, strict=True))


def test_every_candidate_says_how_near_it_is(retriever, loaded):
    answer = ask(retriever, UserProfile(interests="roses"), lexical=0.4, popularity=0.2)
    vectors = np.asarray(loaded.searched_vectors)
    for one in answer.candidates:
        inner = answer.interests.vectors @ vectors[loaded.catalog.row_of[one.ad_id]]
        assert one.similarity == pytest.approx(float(inner.max()), rel=1e-4)
        assert one.interest == int(inner.argmax())
    assert len({one.ad_id for one in answer.candidates}) == len(answer.candidates) == 20


class Broken:
    def find(self, asked):
        raise RuntimeError("the disk is gone")


class Stuck:
    def __init__(self):
        self.free = threading.Event()

    def find(self, asked):
        self.free.wait(30)
        return [0]


@pytest.mark.parametrize("name", [NEIGHBOURS, LEXICAL, POPULARITY, FRESH])
@pytest.mark.parametrize(("kind", "reason"), [(Broken, FAILED), (Stuck, LATE)])
def test_a_source_that_is_down_or_late_is_left_out_and_counted(retriever, skips, name, kind, reason):
    source = kind()
    retriever._pool.close()
    retriever._pool = SourcePool({name: source}, 0.05, lambda *skip: skips.append(skip))
    user = UserProfile(interests="espresso", history=RUNNER.history)
    shares = {} if name == NEIGHBOURS else {name: 0.2}
    answers = retriever.answer([Query(user, None, 20, shares=shares) for _ in range(3)])
    assert [len(answer.candidates) for answer in answers] == [20, 20, 20]
    assert [answer.skipped for answer in answers] == [[name]] * 3
    assert skips == [(name, reason)] * 3
    if kind is Stuck:
        source.free.set()


def test_without_neighbours_the_interests_answer_alone(loaded, retriever, skips):
    alone = SourceSettings(shares={}, neighbours=False)
    other = Retriever(AdIndex(loaded, "cpu"), load_encoder("hashing:64"), InterestSettings(), 100, alone)
    want = ask(other, RUNNER)
    other.close()
    retriever._pool.close()
    retriever._pool = SourcePool({NEIGHBOURS: Broken()}, 5.0, lambda *skip: skips.append(skip))
    answer = ask(retriever, RUNNER)
    assert skips == [(NEIGHBOURS, FAILED)]
    assert answer.skipped == [NEIGHBOURS]
    assert answer.candidates == want.candidates


def test_if_the_search_by_interests_fails_the_others_answer(retriever, skips):
    class NoIndex:
        loaded, dimension = retriever.index.loaded, retriever.index.dimension

        def search(self, vectors, k, eligible):
            raise RuntimeError("the index is gone")

    retriever.index = NoIndex()
    answer = ask(retriever, UserProfile(interests="espresso roast"), fresh=0.0)
    assert answer.skipped == [INTERESTS]
    assert {one.source for one in answer.candidates} == {LEXICAL}
    assert skips == [(INTERESTS, FAILED)]


def test_merging_by_hand():
    found = {INTERESTS: [1, 2, 3, 4], LEXICAL: [9, 2]}
    merged = merge_sources(found, {INTERESTS: 0.75, LEXICAL: 0.25}, 4)
    assert [one.row for one in merged] == [2, 1, 3, 9]
    assert [one.source for one in merged] == [INTERESTS, INTERESTS, INTERESTS, LEXICAL]


@given(
    st.dictionaries(
        st.sampled_from([INTERESTS, LEXICAL, POPULARITY, FRESH]),
        st.lists(st.integers(0, 40), max_size=30, unique=True),
        min_size=1,
    ),
    st.integers(1, 20),
)
def test_merging_keeps_every_share_and_no_row_twice(found, k):
    shares = {name: 1 / len(found) for name in found}
    merged = merge_sources(found, shares, k)
    rows = [one.row for one in merged]
    everything = {row for some in found.values() for row in some}
    assert len(set(rows)) == len(rows) == min(k, len(everything))
    for name, some in found.items():
        assert set(some[: int(shares[name] * k + 1e-9)]) <= set(rows)
    assert all(one.row in found[one.source] for one in merged)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"words": 0.1}, "no candidate source 'words'"),
        ({LEXICAL: 1.5}, "0 to 1"),
        ({LEXICAL: 0.6, FRESH: 0.6}, "1.200"),
    ],
)
def test_shares_that_are_none_are_refused(shares, said):
    with pytest.raises(InputError, match=said):
        check_shares(shares)


def test_words_of_any_script_and_length(tmp_path):
    texts = ["Espresso machine X5", "コーヒー 豆", "кофе и чай", ""]
    LexicalIndex.of(texts).save(tmp_path / "lexical")
    index = LexicalIndex.load(tmp_path / "lexical")
    assert index.search("x5", 3).tolist() == [0]
    assert index.search("чай", 3).tolist() == [2]
    assert index.search("豆", 3).tolist() == [1]
    assert index.search("nothing of it", 3).tolist() == []
    assert index.search("", 3).tolist() == []


def test_a_catalog_without_a_single_word(tmp_path):
    LexicalIndex.of(["!!!", "🙂"]).save(tmp_path / "lexical")
    assert LexicalIndex.load(tmp_path / "lexical").search("a word", 3).tolist() == []
