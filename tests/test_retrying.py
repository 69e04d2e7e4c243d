"""Retrying: what passes, how long to wait, when to give up."""

import email.utils
import threading
import time

import pytest

from sonde.baselines.retrying import Patience, asked_pause, is_passing
from sonde.errors import EndpointError


def test_what_passes() -> None:
    assert [status for status in (400, 401, 403, 404, 408, 422, 429, 500, 502, 503, 529) if is_passing(status)] == [
        408, 429, 500, 502, 503, 529,
    ]  # fmt: skip


def test_retry_after_in_both_spellings() -> None:
    assert asked_pause("2.5") == 2.5 and asked_pause("-3") == 0.0
    assert asked_pause(None) is None and asked_pause("soon") is None
    assert asked_pause(email.utils.formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert asked_pause(email.utils.formatdate(time.time() - 30)) == 0.0


def test_pauses_double_with_jitter_up_to_the_longest() -> None:
    patience = Patience(10, 8.0)
    for attempt, longest in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 8.0)):
        pauses = [patience.pause(attempt, None) for _ in range(200)]
        assert longest / 2 <= min(pauses) < 0.6 * longest and 0.9 * longest < max(pauses) <= longest
    assert patience.pause(0, 5.0) == 5.0


def test_a_pause_ends_when_the_work_is_stopped() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"Trouble\. It was not asked again, because the work was stopped"):
        Patience(3, 60.0).wait(2, "30", "Trouble.", stop)
    assert time.monotonic() - started < 5
