"""The ad cache: what was computed of an ad comes back whole, whoever had to give way for it, on whatever pages."""

import random

import numpy as np
import pytest
import torch

from adcascade.serving.byte_cache import ENTRY_BYTES
from ranking.runtime.ad_state_cache import AdStateCache

WIDTH, MAX_ROWS, PAGE_ROWS = 3, 10, 4


def rows_of(text: str) -> int:
    """1 to 10 rows, by the text alone."""
    return 1 + int(text) * 7 % MAX_ROWS


def states_of(text: str) -> torch.Tensor:
    """Numbers that no other text has."""
    rows = torch.arange(rows_of(text), dtype=torch.float32)[:, None]
    return 1000.0 * int(text) + 10 * rows + torch.arange(WIDTH)


class Computed:
    """Makes states, and notes of which texts."""

    def __init__(self, texts):
        self.texts, self.made = texts, []

    def __call__(self, places):
        made = [self.texts[place] for place in places]
        self.made += made
        lengths = torch.tensor([rows_of(text) for text in made])
        states = torch.full((len(made), int(lengths.max()), WIDTH), float("nan"))  # padding must not be read
        for row, text in enumerate(made):
            states[row, : rows_of(text)] = states_of(text)
        return lengths, states


def make_cache(max_ads=4, request_ads=0):
    device = torch.device("cpu")
    return AdStateCache(max_ads, MAX_ROWS, WIDTH, device, page_rows=PAGE_ROWS, request_ads=request_ads)


def gather(cache, texts):
    """The texts that had to be computed; checks that all of them came back as they are."""
    compute = Computed(texts)
    states, mask, found = cache.gather(texts, compute)
    assert found == sum(text not in compute.made for text in texts)
    assert len(set(compute.made)) == len(compute.made)
    assert mask.sum(dim=1).tolist() == [rows_of(text) for text in texts]
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(states[row, : rows_of(text)].numpy(), states_of(text).numpy())
    assert torch.isfinite(states[mask]).all()
    return compute.made


def check_pages(cache):
    """Every page is free, or of exactly one ad that is kept."""
    taken = [page for slot in cache._slots.values() for page in cache._tables[slot].tolist() if page]
    assert sorted([*taken, *cache._free_pages]) == list(range(1, len(cache._slab)))
    assert sorted([*cache._slots.values(), *cache._free_slots]) == list(range(len(cache._tables)))
    assert not cache._slab[0].any()  # the page that stands for none
    assert sorted([*cache._probation, *cache._protected]) == sorted(cache._slots)
    on_probation = [np.count_nonzero(cache._tables[cache._slots[key]]) for key in cache._probation]
    assert cache._pages_on_probation == sum(on_probation)
    for slot in cache._slots.values():
        assert np.count_nonzero(cache._tables[slot]) == -(-cache._lengths[slot] // PAGE_ROWS)


def test_the_ad_that_was_not_asked_for_longest_gives_way():
    cache = make_cache(max_ads=3)
    large = ["7", "17", "27"]  # of ten rows each: three fill the cache
    assert [rows_of(text) for text in large] == [10, 10, 10]
    gather(cache, large)
    assert gather(cache, ["7"]) == []  # asked for again, so that 17 is now the oldest
    assert gather(cache, ["37"]) == ["37"]
    assert gather(cache, ["7", "27", "37"]) == []
    assert gather(cache, ["17"]) == ["17"]
    check_pages(cache)


def test_a_long_ad_takes_the_pages_of_as_many_short_ones_as_it_needs():
    cache = make_cache(max_ads=1)  # three pages
    short = ["0", "10", "20"]
    assert [rows_of(text) for text in short] == [1, 1, 1]
    gather(cache, short)
    assert len(cache) == 3
    assert gather(cache, ["7"]) == ["7"]
    assert len(cache) == 1
    assert gather(cache, short) == short
    check_pages(cache)


def test_pages_of_an_ad_that_gave_way_are_used_again_without_what_stood_on_them():
    cache = make_cache(max_ads=2)
    for number in range(40):
        texts = [str(number), str(number + 1)]
        gather(cache, texts)
        check_pages(cache)
    states, mask, _ = cache.gather(["40", "7"], Computed(["40", "7"]))
    assert not states[~mask][..., 0].isnan().any()


def test_what_stands_behind_a_short_ad_on_its_last_page_is_masked():
    cache = make_cache(max_ads=2)
    gather(cache, ["7"])  # fills all its rows
    gather(cache, ["17", "27"])  # 7 gives way
    _, mask, _ = cache.gather(["0"], Computed(["0"]))
    assert mask.tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_asked_for_comes_back_and_no_page_is_lost(seed):
    cache, choice = make_cache(max_ads=6), random.Random(seed)
    for _ in range(150):
        texts = [str(choice.randrange(25)) for _ in range(choice.randint(1, 6))]
        gather(cache, texts)
        check_pages(cache)
    assert len(cache) >= 6


def test_ads_of_the_request_itself_do_not_give_way_for_each_other():
    cache = make_cache(max_ads=3)
    gather(cache, ["7", "17", "27"])
    assert gather(cache, ["7", "37", "17"]) == ["37"]  # 27 gave way, which was asked for later than 7 before
    check_pages(cache)


def test_ads_that_nobody_asks_for_twice_do_not_push_out_those_that_somebody_does():
    cache = make_cache(max_ads=10)  # thirty pages
    catalog = [f"{number}7" for number in range(7)]  # of ten rows each: three pages
    gather(cache, catalog)
    gather(cache, catalog)
    for number in range(100, 200):
        gather(cache, [f"{number}7"])
        check_pages(cache)
    assert gather(cache, catalog) == []


def test_ads_that_were_read_before_anybody_asked_are_not_pushed_out_either():
    cache = make_cache(max_ads=10)
    catalog = [f"{number}7" for number in range(7)]
    gather(cache, catalog)
    cache.protect(catalog)
    for number in range(100, 200):
        gather(cache, [f"{number}7"])
    assert gather(cache, catalog) == []


def test_a_request_that_is_read_part_by_part_does_not_push_out_its_own_parts():
    cache = make_cache(max_ads=10, request_ads=6)
    catalog = [f"{number}7" for number in range(9)]
    gather(cache, catalog)
    cache.protect(catalog)
    new = [f"{number}7" for number in range(100, 106)]
    for first in range(0, 6, 2):
        gather(cache, new[first : first + 2])
    assert gather(cache, new) == []
    check_pages(cache)


def test_what_is_asked_for_now_takes_the_place_of_what_was_asked_for_often_once():
    cache = make_cache(max_ads=5)
    once = [f"{number}7" for number in range(5)]
    now = [f"{number}7" for number in range(10, 14)]
    gather(cache, once)
    gather(cache, once)
    for _ in range(6):
        for text in now:
            gather(cache, [text])
            gather(cache, [text])
    assert gather(cache, now) == []
    check_pages(cache)


def test_there_is_room_until_the_pages_are_taken():
    cache = make_cache(max_ads=3)
    assert cache.has_room(3)
    gather(cache, ["7", "0"])
    assert cache.has_room(1)
    assert not cache.has_room(2)


def test_long_texts_are_not_kept_as_keys_and_each_slot_is_paid_for():
    cache = make_cache()
    text = "1" + "0" * 4000
    lengths, states = torch.tensor([2]), torch.zeros(1, 2, WIDTH)
    cache.gather([text], lambda _: (lengths, states))
    assert text in cache
    assert all(len(key) == 16 for key in cache._slots)
    assert AdStateCache.bytes_per_ad(MAX_ROWS, WIDTH, page_rows=PAGE_ROWS) == 3 * (PAGE_ROWS * WIDTH * 4 + ENTRY_BYTES)
