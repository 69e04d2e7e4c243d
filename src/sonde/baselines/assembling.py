"""Assembling: a frame, demonstrations and a text -> a prompt that keeps a limit of tokens.

Assembled   a prompt, and what did not fit
assemble    as many of the last demonstrations as fit
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sonde.baselines.cutting import first_words
from sonde.baselines.templates import Template
from sonde.errors import ArgumentError


@dataclass(frozen=True)
class Assembled:
    """A prompt."""

    prompt: str
    """What is asked."""
    demonstrations: int
    """How many of the demonstrations fit."""
    cut: bool
    """Whether words of the text were left out."""


def assemble(
    frame: Template,
    fixed: dict[str, str],
    demonstrations: Sequence[str],
    text: str,
    *,
    max_words: int,
    max_tokens: int | None,
    count_tokens: Callable[[str], int],
) -> Assembled:
    """Fill a frame; demonstrations are dropped from the front, where the least similar stand, until the prompt fits.

    If it does not fit without any, the text loses half of its words, as often as needed, and then of the characters of
    the first: there are words of thousands.

    Raises
    ------
    ArgumentError
        If not even one character fits.
    """

    def prompt(start: int, shown: str) -> str:
        block = "".join(f"{one}\n\n" for one in demonstrations[start:])
        return frame.fill(**fixed, demonstrations=block, text=shown)

    def fits(start: int, shown: str) -> bool:
        return max_tokens is None or count_tokens(prompt(start, shown)) <= max_tokens

    total = len(demonstrations)
    shown, cut = first_words(text, max_words)
    start = _first_true(lambda at: fits(at, shown), total)
    if start is not None:
        return Assembled(prompt(start, shown), total - start, cut)
    words = max_words
    while len(shown) > 1:
        words //= 2
        shown = first_words(text, words)[0] if words else shown[: len(shown) // 2]
        if fits(total, shown):
            return Assembled(prompt(total, shown), 0, True)
    assert max_tokens is not None
    raise ArgumentError(
        f"The prompt {frame.name!r} takes {count_tokens(prompt(total, shown)):,} tokens beside the text, but "
        f"{max_tokens:,} is all that the model's context and max_prompt_tokens allow. Use shorter prompts "
        "(prompts=...) or label names, a lower max_new_tokens, or a model with a longer context."
    )


def _first_true(holds: Callable[[int], bool], last: int) -> int | None:
    """The smallest number from 0 to `last` for which it holds, if it holds from there on; None if it never does."""
    if not holds(last):
        return None
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
