"""Where the n-grams of a text stand in it: what `ngrams` counts, one at a time and with places.

    occurrences   text, kind -> n-gram -> the characters that it covers, each time that it stands there

For one text that is to be explained; `ngrams` counts whole corpora without a loop over the n-grams, and forgets where
they stood. A test holds the two to the same counts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from sonde.learn.ngrams import Kind
from sonde.learn.tokens import WORD, placed

Places = tuple[tuple[int, ...], ...]


def occurrences(text: str, kind: Kind) -> Mapping[str, Places]:
    """Every n-gram of a text, as `Vocabulary.strings` writes it, with the indices of the characters it covers.

    Blanks are covered by nothing: an n-gram of characters that begins or ends at one covers its word alone.
    """
    read, spans = placed(text[: kind.max_chars])  # of one letter in the text there may be several, or of several one
    found: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
    grams = _words(read, kind) if kind.name == "word" else _characters(read, kind)
    for gram, places in grams:
        found[gram].append(tuple(dict.fromkeys(origin for place in places for origin in range(*spans[place]))))
    return {gram: tuple(places) for gram, places in found.items()}


def _words(text: str, kind: Kind) -> Iterator[tuple[str, list[int]]]:
    tokens = [(match[0], range(match.start(), match.end())) for match in WORD.finditer(text)]
    for length in range(kind.shortest, kind.longest + 1):
        for first in range(len(tokens) - length + 1):
            some = tokens[first : first + length]
            yield " ".join(word for word, _ in some), [place for _, places in some for place in places]


def _characters(text: str, kind: Kind) -> Iterator[tuple[str, list[int]]]:
    """N-grams within a word and the blank on either side."""
    end = 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        padded = f" {word} "
        for length in range(kind.shortest, kind.longest + 1):
            for first in range(len(padded) - length + 1):
                last = first + length
                yield padded[first:last], list(range(start + max(first - 1, 0), start + min(last - 1, len(word))))
