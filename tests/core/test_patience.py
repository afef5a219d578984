"""How the time of a request is shared among its targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.patience import LEAST_MS, first_token_ms


@pytest.mark.parametrize(
    ("left_s", "further", "limit_ms"), [(3.0, 1, 1375), (60.0, 1, 29_875), (60.0, 2, 19_916), (3.0, 0, 0)]
)
def test_a_promise_of_3_s_and_one_of_60(left_s: float, further: int, limit_ms: int) -> None:
    assert first_token_ms(left_s, 0.25, further) == limit_ms


@given(st.floats(0.0, 3600.0), st.floats(0.0, 0.5), st.integers(1, 15))
def test_silent_targets_leave_the_last_one_its_share(left_s: float, reserve_s: float, further: int) -> None:
    share_s = (left_s - reserve_s) / (further + 1)
    for silent in range(further):
        left_s -= first_token_ms(left_s, reserve_s, further - silent) / 1000
    if share_s > LEAST_MS / 1000:
        assert left_s - reserve_s >= share_s * 0.99
