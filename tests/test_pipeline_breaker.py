"""The circuit breaker alone, on a clock of its own."""

import threading

import pytest

from pipeline.breaker import CircuitBreaker, Outcome, Permit, State

SUCCESS, FAILURE, NEUTRAL = Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(failures=3, open_seconds=1.0, clock=clock)


def call(breaker, outcome):
    permit = breaker.permit()
    assert permit is not None
    breaker.record(permit, outcome)


def opened(breaker):
    for _ in range(3):
        call(breaker, FAILURE)
    assert breaker.state is State.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_any_success_between_them_does_not(breaker):
    for outcome in (FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE):
        call(breaker, outcome)
    assert breaker.state is State.CLOSED
    call(breaker, FAILURE)
    assert breaker.state is State.OPEN
    assert breaker.permit() is None


def test_what_says_nothing_of_the_server_neither_opens_nor_resets_it(breaker):
    for outcome in (FAILURE, NEUTRAL, NEUTRAL, NEUTRAL, FAILURE):
        call(breaker, outcome)
    assert breaker.state is State.CLOSED
    call(breaker, FAILURE)
    assert breaker.state is State.OPEN


def test_after_its_time_one_trial_alone_is_let_through_and_closes_it(breaker, clock):
    opened(breaker)
    clock.now += 0.9
    assert breaker.permit() is None
    clock.now += 0.2
    assert breaker.state is State.HALF_OPEN
    trial = breaker.permit()
    assert trial == Permit(trial=True)
    assert breaker.permit() is None
    breaker.record(trial, SUCCESS)
    assert breaker.state is State.CLOSED
    assert breaker.permit() == Permit(trial=False)


def test_a_trial_that_fails_doubles_the_time_up_to_eight_seconds(breaker, clock):
    opened(breaker)
    for seconds in (1, 2, 4, 8, 8, 8):
        clock.now += seconds - 0.01
        assert breaker.permit() is None
        clock.now += 0.02
        call(breaker, FAILURE)
    clock.now += 8.1
    call(breaker, SUCCESS)
    opened(breaker)
    clock.now += 1.1
    assert breaker.state is State.HALF_OPEN


def test_a_trial_whose_caller_left_leaves_room_for_another(breaker, clock):
    opened(breaker)
    clock.now += 1.1
    call(breaker, NEUTRAL)
    assert breaker.state is State.HALF_OPEN
    call(breaker, SUCCESS)
    assert breaker.state is State.CLOSED


def test_while_health_checks_fail_there_is_no_trial_and_with_the_first_good_one_there_is(breaker, clock):
    opened(breaker)
    breaker.told(healthy=False)
    clock.now += 120
    assert breaker.permit() is None
    breaker.told(healthy=True)
    call(breaker, SUCCESS)
    assert breaker.state is State.CLOSED


def test_a_bad_health_check_alone_does_not_keep_calls_back(breaker):
    breaker.told(healthy=False)
    call(breaker, SUCCESS)
    assert breaker.state is State.CLOSED


def test_late_failures_of_calls_from_before_it_opened_are_no_trial(breaker, clock):
    late = [breaker.permit() for _ in range(2)]
    opened(breaker)
    clock.now += 1.1
    trial = breaker.permit()
    breaker.record(late[0], FAILURE)
    breaker.record(late[1], NEUTRAL)
    assert breaker.permit() is None  # the trial still runs
    breaker.record(trial, SUCCESS)
    assert breaker.state is State.CLOSED


def test_whoever_watches_is_told_each_time_it_opens(clock):
    times = []
    breaker = CircuitBreaker(failures=1, open_seconds=1.0, clock=clock, on_open=lambda: times.append(clock.now))
    call(breaker, FAILURE)
    clock.now += 1.5
    call(breaker, FAILURE)
    assert times == [100.0, 101.5]


def test_of_many_threads_one_gets_the_trial(breaker, clock):
    opened(breaker)
    clock.now += 1.1
    permits, start = [], threading.Barrier(16)

    def ask():
        start.wait()
        permits.append(breaker.permit())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [permit for permit in permits if permit is not None] == [Permit(trial=True)]
