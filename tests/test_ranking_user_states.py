"""User states are read once a visit, and take no more memory than they may."""

import pytest
import torch

from adcascade.serving.byte_cache import ENTRY_BYTES
from ranking.model.batch import TokenRows, pad
from ranking.runtime.backends import UserKept
from ranking.runtime.user_state_cache import UserStateCache

# Of a user of `length` tokens: keys and values, one number a token, eight bytes together.
_BYTES_A_TOKEN = 8


class CountedPass:
    """A user pass that says which users it read: keys are their tokens."""

    def __init__(self):
        self.read = []

    def __call__(self, users: TokenRows) -> list[UserKept]:
        rows = [users.ids[row, :length].float() for row, length in enumerate(users.lengths.tolist())]
        self.read.append([row.int().tolist() for row in rows])
        return [UserKept(row, -row) for row in rows]


def read(cache, compute, *users):
    return [kept.keys.int().tolist() for kept in cache.read(pad(users, 0), compute)]


def test_a_user_who_asks_again_is_not_read_again():
    cache, compute = UserStateCache(10 * ENTRY_BYTES), CountedPass()
    assert read(cache, compute, [1, 2, 3], [4], [1, 2, 3]) == [[1, 2, 3], [4], [1, 2, 3]]
    assert read(cache, compute, [4], [5, 6]) == [[4], [5, 6]]
    assert compute.read == [[[1, 2, 3], [4]], [[5, 6]]]


def test_a_user_whose_history_grew_is_read_anew():
    cache, compute = UserStateCache(10 * ENTRY_BYTES), CountedPass()
    read(cache, compute, [1, 2])
    assert read(cache, compute, [1, 2, 0]) == [[1, 2, 0]]  # a token like padding is a token
    assert len(compute.read) == 2


def test_those_who_asked_longest_ago_give_way():
    cache, compute = UserStateCache(2 * ENTRY_BYTES + 5 * _BYTES_A_TOKEN), CountedPass()
    read(cache, compute, [1, 1])
    read(cache, compute, [2, 2])
    read(cache, compute, [1, 1])
    read(cache, compute, [3, 3])
    assert len(cache) == 2
    read(cache, compute, [1, 1])
    assert len(compute.read) == 3
    read(cache, compute, [2, 2])
    assert compute.read[-1] == [[2, 2]]


@pytest.mark.parametrize("tokens_kept", [0, 2])
def test_states_that_do_not_fit_are_given_and_not_kept(tokens_kept):
    room = ENTRY_BYTES + tokens_kept * _BYTES_A_TOKEN if tokens_kept else 0
    cache, compute = UserStateCache(room), CountedPass()
    for _ in range(2):
        assert read(cache, compute, [1, 2, 3], [4, 5, 6]) == [[1, 2, 3], [4, 5, 6]]
    assert len(cache) == 0
    assert len(compute.read) == 2


def test_what_is_kept_does_not_hold_the_batch_that_it_was_made_in():
    cache = UserStateCache(10 * ENTRY_BYTES)
    whole = torch.zeros(100, 3)
    (kept,) = cache.read(pad([[1, 2, 3]], 0), lambda _: [UserKept(whole[0], whole[1])])
    assert kept.keys.untyped_storage().nbytes() == 3 * 4
