"""Disputed rows, as they are shown: the surest mistakes, and labels that are likely wrong.

Disputed   Subject -> both lists, with reasons
"""

from sonde.show.report.cautions import shortened
from sonde.show.report.doubts import Doubt, mislabelled, mistakes
from sonde.show.report.markup import Markup, count, element, joined, percent
from sonde.show.report.reasons import Reasons
from sonde.show.report.subject import Subject

LEGEND = "Underlined in solid blue: speaks for the model's label; in dashed orange: against it. The stronger, the more."
LEGEND_OF_SETS = LEGEND.replace("the model's label", "the label that is wrong or missing")

HOW = (
    "By confident learning (Northcutt, Jiang and Chuang 2021): a class is believed of a row if its probability "
    "reaches the mean that rows of this class have for it; a row is doubted if the most probable class that is "
    "believed is more probable than the given one, the more so the further these lie apart. The model may be wrong as "
    "well: look at the rows before you change a label."
)


class Disputed:
    """Both lists of one subject; a row that stands in both is explained once."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.reasons = subject, Reasons(subject)
        self.wrong = mistakes(subject)
        self.doubted, self.doubted_in_all = mislabelled(subject)
        self.cards: dict[tuple[int, int], str] = {}

    def mistakes(self) -> Markup:
        """The wrong answers of the highest probability."""
        if not self.wrong:
            return element("p", "The model makes no mistake on these rows.")
        what, legend = "answers", LEGEND
        if self.subject.multilabel:
            what, legend = "decisions", LEGEND_OF_SETS
        start = f"The {count(len(self.wrong))} wrong {what} of the highest probability. "
        why = "Either the model is sure of something untrue, or the given label is. "
        items = [self._card(doubt, f"mistake-{i}") for i, doubt in enumerate(self.wrong, 1)]
        return joined([element("p", start, why, legend), element("ol", items, class_="rows")])

    def mislabelled(self) -> Markup:
        """Rows whose label should be looked at again."""
        known, shown = int(self.subject.judged.known.sum()), len(self.doubted)
        rows = f" {count(known, 'row')} whose texts the model was trained or chosen on are not judged."
        left_out = rows if known else ""
        what = "given labels" if self.subject.multilabel else "rows"
        said = f"{count(self.doubted_in_all)} {what} are doubted"
        said += f"; the likeliest {shown} are shown." if shown < self.doubted_in_all else "."
        if not self.doubted:
            return element("p", f"No given label is doubted.{left_out} ", HOW)
        items = [self._card(doubt, f"doubt-{i}") for i, doubt in enumerate(self.doubted, 1)]
        return joined([element("p", f"{said}{left_out} ", HOW), element("ol", items, class_="rows")])

    def _card(self, doubt: Doubt, key: str) -> Markup:
        """A row with its reasons, or a link to where they stand."""
        number = element("strong", f"Row {self.subject.number(doubt.row):,}: ")
        head = element("p", number, self._said(doubt))
        before = self.cards.setdefault((doubt.row, doubt.claimed), key)
        if before == key:
            return element("li", head, self.reasons.of(doubt), id=key)
        link = element("a", f"mistake {before.rpartition('-')[2]}", href=f"#{before}")
        start = element("span", shortened(self.subject.judged.texts[doubt.row]), dir="auto")
        return element("li", head, element("p", start, " – see ", link, class_="hint"), id=key, class_="brief")

    def _said(self, doubt: Doubt) -> Markup:
        name, classes = self.subject.classes[doubt.claimed], self.subject.classes
        if doubt.given is None:
            way = "gives" if doubt.present else "does not give"
            first = [f"the model {way} ", element("b", name), f" ({percent(doubt.probability)} sure); "]
            return joined([*first, f"given: {self.subject.given(doubt.row)}"])
        said = ["model ", element("b", name), f" ({percent(doubt.probability)}), given "]
        return joined([*said, element("b", classes[doubt.given]), f" ({percent(doubt.given_probability)})"])
