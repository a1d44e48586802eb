"""When a client may try again, and when it does not ask at all: any course of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retrieval_service.budgets import CircuitBreaker, RetryBudget

EVENTS = st.lists(st.sampled_from(["failed", "succeeded", "wait"]), max_size=60)


@given(st.lists(st.booleans(), max_size=200), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 20))
def test_retries_are_never_more_than_the_burst_and_their_share(asks: list[bool], share: float, burst: int) -> None:
    budget, requests, retries = RetryBudget(share, burst), 0, 0
    for retry in asks:
        if retry:
            retries += budget.take()
        else:
            budget.requested()
            requests += 1
        assert retries <= burst + share * requests + 1e-9


@given(EVENTS, st.integers(1, 5))
def test_an_open_breaker_lets_one_probe_through_and_closes_with_the_first_success(events: list[str], failures: int) -> None:
    breaker, now, in_a_row = CircuitBreaker(failures=failures, first_pause_s=1.0, longest_pause_s=4.0), 0.0, 0
    for event in events:
        if event == "wait":
            now += 0.7
        elif event == "succeeded":
            breaker.succeeded()
            in_a_row = 0
        else:
            breaker.failed(now)
            in_a_row += 1
        assert breaker.is_open == (in_a_row >= failures)
        assert 0 <= breaker.wait_s(now) <= 4.0 + 1e-9
        if not breaker.is_open:
            assert breaker.admit(now) and breaker.admit(now)
    if breaker.is_open:
        now += breaker.wait_s(now) + 1e-9  # sums of floats may fall short
        assert [breaker.admit(now) for _ in range(3)] == [True, False, False]
        assert breaker.admit(now + breaker.wait_s(now) + 1e-9)  # a probe that never came back is followed by another


def test_the_pause_doubles_while_probes_fail_and_starts_again_small() -> None:
    breaker, pauses, now = CircuitBreaker(failures=2, first_pause_s=0.5, longest_pause_s=8.0), [], 0.0
    breaker.failed(now)
    for _ in range(7):
        breaker.failed(now)
        pauses.append(breaker.wait_s(now))
        now += pauses[-1]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0] and breaker.opened == 1
    breaker.succeeded()
    breaker.failed(now), breaker.failed(now)
    assert (breaker.wait_s(now), breaker.opened) == (0.5, 2)
