"""How long one place to run may be silent before the next one has its chance: arithmetic over what is left.

May live here: seconds left and targets left -> a limit. May not: which targets there are (routes.py), what
follows from silence (jobs.py, the ladder).

A fixed timeout fits one promise: 120 s are right for a 60 s one whose model may have to be loaded, and leave
nothing of a 3 s one. So the time that is left is shared equally among the targets that are left, and the last
one has all of it: its limit is the backend's own first_token_timeout_s.
"""

from __future__ import annotations

LEAST_MS = 50
"""Less is no chance at all."""


def first_token_ms(left_s: float, reserve_s: float, further: int) -> int:
    """JobHeader.first_token_ms of a job with `left_s` until its deadline, of which `reserve_s` are kept for
    lesser answers, when `further` other targets could be tried after this one. 0: no limit of its own."""
    if further <= 0:
        return 0
    return max(LEAST_MS, int((left_s - reserve_s) * 1000 / (further + 1)))
