"""A text -> its words, or its characters, in any script.

    words        lower-case words and punctuation marks; single characters where a script puts no blanks between words
    characters   lower-case text with single blanks, one before and one behind
    spelled      the text with one spelling for what reads the same, where a script has several
    placed       the same in lower case, and from where in the text each of its characters comes
    TOKEN, WORD  what a word is in ASCII, and in any spelled text

In scripts without blanks between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) a run of letters is a clause, not
a word, and hardly ever stands in two texts. There every character is a word, so that word 1- and 2-grams are what
search engines index (Nie et al. 2000, "On the use of words and n-grams for Chinese information retrieval"). A
character is a letter with the signs that are written above, below or around it.

Texts in Latin, Greek or Cyrillic letters, composed as keyboards compose them, are read as they are.
"""

import re
import unicodedata

# A word of any length, or one punctuation mark: "!" and "?" tell about tone, and languages have words of one letter.
TOKEN = re.compile(r"\w+|[^\w\s]")

# Thai and Lao; Burmese; Khmer; the iteration and closing marks of Japanese, its two syllabaries with phonetic
# extensions; Chinese characters with their extensions.
UNSPACED = (
    "\u0e00-\u0e4f\u0e80-\u0ecf\u1000-\u103f\u1050-\u108f\u1780-\u17dd"
    "\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Signs that Unicode does not count as letters although words go on behind them: without them Hindi falls into pieces.
# From the blocks of Hebrew to those of Myanmar's extensions, where scripts write vowels as such signs.
SIGNS = "".join(chr(code) for code in range(0x0590, 0xABFF) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
WORD = re.compile(rf"[{UNSPACED}][{SIGNS}]*|[^\W{UNSPACED}](?:[^\W{UNSPACED}]|[{SIGNS}])*|[^\w\s]")

# Arabic: the stroke that stretches a word, and the vowel signs, which most writers leave out.
_UNWRITTEN = re.compile("[\u0640\u064b-\u0652\u0670]+")
# Letters followed by combining accents (an umlaut of two parts, as some systems store it); Arabic letters in the forms
# of old files; letters and marks in full width, katakana (with its voicing mark) and Korean letters in half width.
_SPELLINGS = re.compile(
    r"\w[\u0300-\u036f\u3099\u309a]+|[\uffa0-\uffdc]+|[\ufb50-\ufdff\ufe70-\ufefc\uff01-\uffee][\uff9e\uff9f]?"
)
_UNIT = re.compile(f"{_SPELLINGS.pattern}|.", re.DOTALL)


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    if text.isascii():
        return TOKEN.findall(text.lower())
    return WORD.findall(spelled(text).lower())


def characters(text: str) -> str:
    """Lower-case text, runs of white space as one blank, with a blank at either end."""
    return " ".join(["", *spelled(text).lower().split(), ""])


def spelled(text: str) -> str:
    """NFKC where one text has several spellings, without Arabic vowel signs; all else is left as it is."""
    if text.isascii():
        return text
    return _UNWRITTEN.sub("", _SPELLINGS.sub(_composed, text))


def placed(text: str) -> tuple[str, list[tuple[int, int]]]:
    """`spelled` in lower case, and of each of its characters the start and the stop of what it was in the text."""
    spans: list[tuple[int, int]] = []
    for unit in _UNIT.finditer(text):
        spans += [unit.span() for _ in spelled(unit[0]).lower()]
    return spelled(text).lower(), spans


def _composed(found: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", found[0])
