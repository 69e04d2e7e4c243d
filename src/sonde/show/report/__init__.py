"""The report: everything that is known of a classifier on labelled rows, on one page that needs nothing else.

report   classifier, texts, labels -> an HTML file

The parts: `subject` what it is about; `headline cautions confusion classes calibration coverage disputed depth neurons
losses costs` one part each; `doubts` and `reasons` the rows that are disputed; `intervals charts markup page` what all
of them use.
"""

from pathlib import Path
from typing import Any

from sklearn.utils.validation import check_is_fitted

from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError
from sonde.show.report.page import page
from sonde.show.report.subject import describe
from sonde.tables import write_atomically

__all__ = ["report"]

ENDINGS = (".html", ".htm")
"""What browsers open; anything else is more likely a slip that would replace the user's data."""


def report(classifier: TextClassifier, texts: Any, labels: Any, out: Path | str, *, name: str = "") -> dict[str, Any]:
    """Measure a fitted classifier on labelled rows and show it on one page.

    Parameters
    ----------
    classifier : TextClassifier
    texts, labels : as in `sonde.evaluation.evaluate`
    out : path
        The file to write, `.html`; it appears when it is whole. It holds up to 40 of the texts.
    name : str
        What the model is called there; by default its recipe.

    Returns
    -------
    dict
        What `evaluate` returns, and `out` and `bytes` of the file.

    Raises
    ------
    ArgumentError
        If `out` does not end in `.html`.
    DataError
        If the folder of `out` does not exist or may not be written, or as in `evaluate`.

    Warns
    -----
    SondeWarning
        As `evaluate`.
    """
    check_is_fitted(classifier, "classes_")
    if Path(out).suffix.lower() not in ENDINGS:
        raise ArgumentError(f"The report {str(out)!r} must end in .html, as it is a page for a browser.")
    with write_atomically(out) as file:  # opened first: what cannot be written is refused before hours of work
        subject = describe(classifier, texts, labels, name or str(classifier.summary_["recipe"]))
        content = page(subject)
        file.write(content)
    return {"out": str(out), "bytes": len(content.encode()), **subject.measured}
