"""Reasons: texts with what each token said for a label.

Reasons    explains doubted rows, or says why it cannot
shaded     a text and its tokens -> pieces of markup
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from sonde.errors import SondeError, SondeWarning
from sonde.explanation import Explanation, Token, explain
from sonde.explanation.records import EXACT
from sonde.show.report.doubts import Doubt
from sonde.show.report.markup import Markup, count, element, joined, signed
from sonde.show.report.subject import Subject

SHOWN_CHARACTERS = 1200
"""Of a text: about a screen; forty of them are read through."""

EXPLAINED_CHARACTERS = 50_000
"""Longer texts are shown without reasons: in windows they would take minutes and gigabytes each."""

STEPS = (0.05, 0.2, 0.4, 0.65)
"""A piece gets shade 1 to 4 from these fractions of the text's largest contribution on."""

NAMED = 5
"""Tokens that are named below the text, for and against."""


class Reasons:
    """Explains doubted rows."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def of(self, doubt: Doubt) -> Markup:
        """The text, shaded, and its strongest tokens; or the text and a sentence why there are no reasons."""
        text = self.subject.judged.texts[doubt.row]
        found = self._ask(doubt)
        if isinstance(found, str):
            return joined([_text([text[:SHOWN_CHARACTERS]], text), element("p", found, class_="hint")])
        return joined([_text(shaded(text, found.tokens), text), element("p", self._strongest(found), class_="hint")])

    def _ask(self, doubt: Doubt) -> Explanation | str:
        """Why the class that is claimed, and not the one that is given."""
        text, classes = self.subject.judged.texts[doubt.row], self.subject.classifier.classes_
        if not text.strip():
            return "The text is blank: nothing in it speaks for a label."
        if len(text) > EXPLAINED_CHARACTERS:
            return f"The text has {len(text):,} characters and is not explained."
        against = None if doubt.given is None or doubt.given == doubt.claimed else classes[doubt.given]
        asked = {"label": classes[doubt.claimed], "against": against, "top": 0}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SondeWarning)  # the rows were warned about when they were judged
                (found,) = explain(self.subject.classifier, [text], **asked)
        except SondeError as error:
            return str(error)
        return found

    def _strongest(self, found: Explanation) -> Markup:
        """The strongest tokens in words, for whoever sees no shades."""
        other = "against it" if found.against is None else f"for {found.against}"
        said = [f"For {found.label}: ", _named(found.tokens, 1), f"; {other}: ", _named(found.tokens, -1)]
        rough = "" if found.method == EXACT else f", by {found.method}"
        whole = f"{signed(found.score)}: {signed(found.bias)} of the average text, the rest of the tokens{rough}"
        return joined([*said, f". Log-odds {whole}."])


def shaded(text: str, tokens: Sequence[Token]) -> Iterator[Markup]:
    """The beginning of a text in pieces, each as dark as what the tokens that cover it say."""
    says, edges = np.zeros(len(text) + 1), {0, len(text)}
    for token in tokens:
        if token.start is not None and token.stop is not None and token.start < token.stop:
            edges |= {token.start, token.stop}
            says[token.start : token.stop] += token.contribution / (token.stop - token.start)
    ends = sorted(edges)
    pieces = [(a, b, float(says[a]) * (b - a)) for a, b in pairwise(ends)]
    most = max((abs(said) for *_, said in pieces), default=0.0) or 1.0
    for start, stop, said in pieces:
        if start >= SHOWN_CHARACTERS:
            return
        yield _piece(text[start : min(stop, SHOWN_CHARACTERS)], said, most)


def _piece(text: str, said: float, most: float) -> Markup:
    level = sum(abs(said) >= step * most for step in STEPS)
    if not level:
        return joined([text])
    return element("span", text, class_=f"{'pro' if said > 0 else 'con'} s{level}", title=signed(said))


def _text(pieces: object, text: str) -> Markup:
    rest = len(text) - SHOWN_CHARACTERS
    more = element("span", f" … and {count(rest, 'character')} more", class_="hint") if rest > 0 else None
    return element("p", pieces, more, class_="said", dir="auto")


def _named(tokens: Sequence[Token], way: int) -> Markup:
    """The strongest tokens of one sign, with their contributions; the same words together."""
    together: dict[str, float] = {}
    for token in tokens:
        together[token.text.strip()] = together.get(token.text.strip(), 0.0) + token.contribution
    least = STEPS[0] * max((abs(said) for said in together.values()), default=0.0)
    strong = [(said * way, word) for word, said in together.items() if said * way > least]
    first = sorted(strong, key=lambda pair: -pair[0])[:NAMED]
    words = [joined([element("b", element("bdi", word or "␣")), f" {signed(said * way)}"]) for said, word in first]
    return Markup(", ".join(words) or "nothing")
