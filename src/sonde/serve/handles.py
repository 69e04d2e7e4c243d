"""How many connections the process has files for.

most_connections   and room for them, as far as the system gives it
"""

from contextlib import suppress

MOST = 2048
"""Past it requests are refused, and their connections closed: idle ones cost memory and file handles too."""

SPARE = 128
"""Connections past that bound which are still told so, in JSON; later ones are closed without a word."""

OWN_FILES = 128
"""Of the process itself: models, libraries, the log."""


def most_connections() -> int:
    """`MOST`, or fewer where the system allows fewer files, which are raised to what the process may have.

    A service without a free file accepts nobody, neither probes nor those who would be told to come again.
    """
    with suppress(ImportError, OSError, ValueError):  # Windows; a bound that may not be moved
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = MOST + SPARE + OWN_FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY:
            return max(min(MOST, soft - SPARE - OWN_FILES), 1)
    return MOST
