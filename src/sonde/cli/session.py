"""What stands around every command: progress, warnings, the result, sentences for mistakes.

session      shows progress, gathers warnings, prints the result
complain     a mistake, in at most three lines
"""

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sonde.errors import SondeWarning

SAID_OF_A_KIND = 3
"""Warnings of one kind that are printed: a long file is judged stretch by stretch and would repeat them."""

LONGEST_LINE = 4000
"""Characters of a line of an error: what a stranger's file holds is repeated no further."""


@contextmanager
def session(shown: str, as_json: bool) -> Iterator[dict[str, Any]]:
    """Show progress and gather warnings; then print the result, by a function of `show.results` or as JSON."""
    from sonde.show import results, terminal

    logging.basicConfig(level=logging.WARNING, handlers=[terminal.log_lines()])
    result: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SondeWarning)
        try:
            with terminal.progress():
                yield result
        finally:
            counts = _tell(caught)
    if as_json:
        sys.stdout.write(json.dumps({**result, "warnings": counts}, ensure_ascii=True, default=str) + "\n")
        sys.stdout.flush()  # a service is not done yet
        return
    getattr(results, shown)(result)
    if counts:
        terminal.say("warnings: " + ", ".join(f"{code} {count:,}" for code, count in counts.items()))


def complain(sentence: str) -> None:
    """At most three lines, none of them longer than what names of files and labels need."""
    from sonde.show.terminal import say

    lines = [line for line in sentence.splitlines() if line.strip()]
    lines = [*lines[:2], " ".join(lines[2:])] if len(lines) > 3 else lines
    say("error: " + "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in lines))


def _tell(caught: list[warnings.WarningMessage]) -> dict[str, int]:
    """Print each different warning once, at most three of a kind; count them by code."""
    from sonde.show import terminal

    counts: Counter[str] = Counter()
    said: dict[str, set[str]] = {}
    for entry in caught:
        message = entry.message
        if isinstance(message, SondeWarning):
            counts[message.code] += message.count
            known = said.setdefault(message.code, set())
            if str(message) not in known and len(known) < SAID_OF_A_KIND:
                terminal.say(f"warning: {message}")
                known.add(str(message))
        else:
            logging.getLogger("sonde").debug("%s", message)
    return dict(counts)
