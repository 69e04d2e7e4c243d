"""Retrying: when a request is sent again, and after which pause.

is_passing    whether a status says that the same request may succeed later
Patience      how often, and how long at most
asked_pause   what `Retry-After` asks for, in seconds
"""

import datetime
import email.utils
import random
import threading
from dataclasses import dataclass

from sonde.errors import ArgumentError, EndpointError

PASSING = {408, 409, 425, 429}
"""Beside all 5xx: time-out, conflict, too early, too many requests."""
FIRST_PAUSE_SECONDS = 0.5
"""Doubled at each attempt, as all clients of such endpoints do."""

_JITTER = random.Random()  # its own, so that the user's generator is not drawn from


def is_passing(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in PASSING or status >= 500


@dataclass(frozen=True)
class Patience:
    """How a request is repeated."""

    retries: int
    """How often it is sent again."""
    longest_wait_seconds: float
    """Longest pause before that."""

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ArgumentError(f"retries is {self.retries!r}; it must be a whole number, 0 or more.")
        if not self.longest_wait_seconds >= 0:
            raise ArgumentError(f"longest_wait_seconds is {self.longest_wait_seconds!r}; it must be 0 or more.")

    def wait(self, attempt: int, asked: str | None, trouble: str, stop: threading.Event) -> None:
        """Pause after the failed attempt number `attempt` (from 0), or give up.

        Raises
        ------
        EndpointError
            If this was the last attempt, the endpoint asks for a longer pause, or the work was stopped meanwhile.
        """
        if attempt >= self.retries:
            raise EndpointError(f"{trouble} It was asked {attempt + 1} times.")
        least = asked_pause(asked)
        if least is not None and least > self.longest_wait_seconds:
            raise EndpointError(
                f"{trouble} It asks to wait {least:.0f} seconds, more than longest_wait_seconds "
                f"({self.longest_wait_seconds:g})."
            )
        if stop.wait(self.pause(attempt, least)):
            raise EndpointError(f"{trouble} It was not asked again, because the work was stopped.")

    def pause(self, attempt: int, least: float | None) -> float:
        """Seconds: doubled each time, half of it drawn at random so that clients do not come back together."""
        doubled = min(FIRST_PAUSE_SECONDS * 2.0**attempt, self.longest_wait_seconds)
        return max(least or 0.0, doubled * (0.5 + 0.5 * _JITTER.random()))


def asked_pause(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for, given as a number or as a date; None if it says nothing."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
