"""Cutting: texts on one line, with at most so many words.

first_words   the beginning of a text, and whether something was cut off
"""

import re

from sonde.learn.tokens import UNSPACED

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def first_words(text: str, most: int) -> tuple[str, bool]:
    """(the first `most` words on one line, whether there are more).

    A word is what stands between blanks; where a script puts none (Chinese, Japanese, Thai, ...), a character. One
    line, because prompts mark their parts by lines: a text cannot pretend to be one.
    """
    line = " ".join(text.split())
    end = 0
    for count, found in enumerate(_WORD.finditer(line)):
        if count == most:
            return line[:end], True
        end = found.end()
    return line, False
