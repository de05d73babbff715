"""How much is done in one slice follows how fast the machine is."""

import pytest

from adcascade.serving.slices import SliceBudget


def budget(**changes: int) -> SliceBudget:
    return SliceBudget(0.04, changes.get("first", 512), least=64, most=16_384)


def test_nothing_is_known_of_the_first_slice():
    assert budget().cost == 512


@pytest.mark.parametrize(("tokens_a_second", "expected"), [(5_000, 200), (100_000, 4_000)])
def test_slices_come_to_take_as_long_as_they_should_on_any_machine(tokens_a_second, expected):
    found = budget()
    for _ in range(30):
        found.took(found.cost, found.cost / tokens_a_second)
    assert found.cost == pytest.approx(expected, rel=0.02)


def test_one_slow_slice_changes_little():
    found = budget()
    for _ in range(30):
        found.took(found.cost, found.cost / 50_000)
    before = found.cost
    found.took(found.cost, 10.0)
    assert 0.7 * before < found.cost < before


@pytest.mark.parametrize(("tokens_a_second", "expected"), [(1, 64), (10**9, 16_384)])
def test_a_slice_stays_within_its_bounds(tokens_a_second, expected):
    found = budget()
    found.took(1000, 1000 / tokens_a_second)
    assert found.cost == expected


def test_a_slice_that_took_no_time_is_no_error():
    found = budget()
    found.took(1000, 0.0)
    assert found.cost == 16_384
