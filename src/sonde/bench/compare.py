"""Many ways to classify, side by side on one's own data: what `sonde compare` runs.

compare           train and test rows -> a table that grows as candidates finish, and a recommendation
fit_and_measure   one candidate
measure           something fitted, on the test rows
recommend         finished cells -> which to take, and why
to_markdown       the page, from the JSON alone

Every finished candidate is kept in the JSON file at once: stopped by a time limit, a key or a power cut, the same
command goes on with what is missing.
"""

import hashlib
import logging
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

from sonde.bench import machine
from sonde.bench.candidates import CANDIDATES, Candidate, Setting
from sonde.bench.cells import Cells, table, write_page
from sonde.bench.tables import pack, unpack
from sonde.cost import Meter
from sonde.errors import ArgumentError, DataError, SondeError, SondeWarning, choose, warn
from sonde.evaluation import warn_known_texts
from sonde.inputs import as_texts, present
from sonde.learn import metrics
from sonde.learn.splitting import text_keys
from sonde.learn.targets import encode, encode_against, unseen
from sonde.progress import tracked
from sonde.rows import warn_unseen
from sonde.tables.atomic import check_writable

logger = logging.getLogger(__name__)

LONGEST_SECONDS = 366 * 24 * 3600
"""Clocks take no more than some thousand years; nobody compares for longer than one."""

SPEED_ROWS = 1000
"""Test texts on which the rate is measured, read anew: a second or more of work, not minutes."""

WARM_ROWS = 16
"""Texts that are classified before the clock starts."""

SPEED_SECONDS, PASSES = 2.0, 5
"""What is faster than that is asked again, at most so often: the clock of a machine with other work is coarse."""

CHANCE = 0.05
"""A difference whose p value is larger may be chance."""

AGAIN_SECONDS = 1.0
"""After which a time limit that somebody has swallowed rings again."""

NOTABLY_FASTER = 3.0
"""Worth a sentence: so many times as many texts a second."""

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}


@dataclass(frozen=True)
class Rows:
    """Texts with their labels; rows without a label are left out."""

    texts: list[str]
    """In their order."""
    labels: list[Any]
    """One a text, or a list of them."""

    @classmethod
    def of(cls, texts: Any, labels: Any) -> "Rows":
        """Check them; rows without a label are dropped."""
        kept, here = as_texts(texts), present(labels, len(texts))
        if missing := int((~here).sum()):
            warn(f"{missing} rows have no label and are left out.", "missing_labels", missing)
        rows = cls(
            [text for text, keep in zip(kept, here, strict=True) if keep],
            [label for label, keep in zip(labels, here, strict=True) if keep],
        )
        if not rows.texts:
            raise DataError("There are no labelled rows to compare on.")
        return rows

    def digest(self) -> str:
        """What tells these rows from others."""
        told = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            told.update(repr((text, label)).encode("utf-8", "backslashreplace"))
        return told.hexdigest()


def compare(
    train: Rows,
    test: Rows,
    setting: Setting,
    out: str | Path,
    *,
    names: Sequence[str] | None = None,
    time_limit: float | None = None,
) -> dict[str, Any]:
    """Fit and measure candidates, best guesses first.

    Parameters
    ----------
    train, test : Rows
    setting : Setting
    out : path
        The JSON file; a Markdown page of the same name is written beside it.
    names : sequence of str, optional
        Of `CANDIDATES`; by default all. They are tried in the order given.
    time_limit : float, optional
        Seconds after which no candidate goes on; the one that runs then is given up.

    Returns
    -------
    dict
        `cells` (name -> figures, or `failed` and a sentence), `metric`, `missing` (names), `interrupted` (whether by
        Ctrl+C), `recommended`, `reason`, `written`.

    Raises
    ------
    ArgumentError
        For an unknown candidate, a time limit that is not above 0 or longer than a year, or a file that holds
        something else.
    """
    asked = [choose("The candidate", name, CANDIDATES) for name in names or CANDIDATES]
    if time_limit is not None and not 0 < time_limit <= LONGEST_SECONDS:
        raise ArgumentError(f"The time limit is {time_limit:g} s; it must be above 0, and {LONGEST_SECONDS:,} at most.")
    about = {**asdict(setting), "cache": None, "train": train.digest(), "test": test.digest()}
    cells = _opened(Path(out), {**about, "train_rows": len(train.texts), "test_rows": len(test.texts)})
    _warn_of_test_rows(train, test)
    until = None if time_limit is None else time.monotonic() + time_limit
    said: set[str] = set()
    interrupted = False
    try:
        for name in tracked([name for name in asked if cells.lacks(name)], "comparing", "candidates"):
            with _until(until), _once(said):
                cell = fit_and_measure(CANDIDATES[name], train, test, setting)
            cells.put(name, cell)
    except (_OutOfTimeError, KeyboardInterrupt) as stop:  # what is done is kept, and shown
        interrupted = isinstance(stop, KeyboardInterrupt)
    found = {name: cells.content["cells"][name] for name in asked if name in cells}
    best = recommend(found, setting.metric)
    written = write_page(cells.path, to_markdown(cells.content)) if found else []
    return {
        "cells": found,
        "metric": setting.metric,
        "missing": [name for name in asked if name not in found],
        "interrupted": interrupted,
        **best,
        "written": [str(path) for path in written],
    }


def _warn_of_test_rows(train: Rows, test: Rows) -> None:
    """Say which labels nobody can give, and how many texts everybody has seen."""
    targets = encode(train.labels)
    warn_unseen(unseen(test.labels, targets.classes, targets.multilabel, targets.matrix), targets.classes)
    warn_known_texts(np.isin(text_keys(test.texts), text_keys(train.texts)))


def _opened(path: Path, setting: dict[str, Any]) -> Cells:
    """The file of the figures; neither another comparison in it nor a page beside it that is none is written over."""
    beside = path.with_suffix(".md")
    if path.suffix != ".json":
        raise ArgumentError(
            f"{path} is no name for the figures; give one that ends in .json, such as {path.stem}.json."
        )
    if beside.exists() and not path.exists():
        raise ArgumentError(
            f"{beside} stands where the page would be written. Give --out another name, or move it away."
        )
    check_writable(path)
    try:
        cells = Cells(path, setting)
    except ValueError as error:
        raise ArgumentError(f"{path} is no comparison: {error}. Give --out another name.") from error
    if path.is_file() and not cells.content["cells"]:
        raise ArgumentError(
            f"{path} holds a comparison of other rows, backbones or settings. Give --out another name, or delete it."
        )
    return cells


def fit_and_measure(candidate: Candidate, train: Rows, test: Rows, setting: Setting) -> dict[str, Any]:
    """The figures of one candidate, as in `measure`, with its cost; what it refuses, or breaks on, is a figure too."""
    meter = Meter()
    try:
        classifier = candidate.make(setting)
        work = _work(classifier)
        watch = machine.Stopwatch()
        with meter.stage("training", **work):
            classifier.fit(train.texts, train.labels)
        fit_cpu_seconds = watch.read()["cpu_seconds"] + _cpu_elsewhere(classifier)
        asked = _asked_tokens(classifier)
        meter.add_tokens("training", *asked)
        found = measure(classifier, test, meter)
        meter.add_tokens(
            "inference_on_all_rows", *(now - then for now, then in zip(_asked_tokens(classifier), asked, strict=True))
        )
    except SondeError as error:
        return {"title": candidate.title, "failed": str(error)}
    except Exception as error:  # such as a lack of memory: the others are compared all the same
        logger.exception("the candidate %s failed", candidate.name)
        said = next(iter(str(error).splitlines()), "")
        return {"title": candidate.title, "failed": f"{type(error).__name__}: {said}"}
    return {"title": candidate.title, **found, "fit_cpu_seconds": fit_cpu_seconds, "cost": meter.cost().to_dict()}


def _asked_tokens(classifier: Any) -> tuple[int, int]:
    """(in, out) tokens that a language model has taken for it so far."""
    usage = list(classifier.summary_["usage"].values()) if hasattr(classifier, "asks_elsewhere") else []
    return sum(one["prompt_tokens"] for one in usage), sum(one["new_tokens"] for one in usage)


def _work(classifier: Any) -> dict[str, Any]:
    """What the meter must know of the work of a language model: what an endpoint draws nobody knows."""
    if not hasattr(classifier, "asks_elsewhere"):
        return {}
    return {"elsewhere": classifier.asks_elsewhere}


def _cpu_elsewhere(classifier: Any) -> float:
    """Seconds of the processor that another process has worked for it so far."""
    return float(getattr(classifier, "worker_cpu_seconds_", 0.0))


def measure(classifier: Any, test: Rows, meter: Meter) -> dict[str, Any]:
    """Quality, speed and size of something fitted.

    Returns
    -------
    dict
        `n`, `accuracy` with its 95% interval `low`, `high` (Wilson 1927), `macro_f1`, `correct` (packed bits of the
        rows), `ece` and `ece_95` (None without probabilities), `texts_per_second` and `texts_per_cpu_second` (the model
        read anew; for what asks an endpoint, the processor here), `bytes` (of the saved artifact; None where there is
        none).
    """
    multilabel = bool(getattr(classifier, "multilabel_", False))
    matrix = bool(getattr(classifier, "matrix_labels_", False))
    targets = encode_against(test.labels, classifier.classes_, multilabel, matrix)
    truth = targets.indicator
    watch, work = machine.Stopwatch(), _work(classifier)
    with meter.stage("inference_on_all_rows", **work):
        decided, probabilities = _answers(classifier, test.texts)
    took = watch.read()
    right = metrics.is_right(truth, decided, targets.strange)
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    calibration = (
        {"ece": None, "ece_95": None} if probabilities is None else _calibration(truth, probabilities, multilabel)
    )
    return {
        "n": len(right),
        "accuracy": float(right.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "macro_f1": metrics.macro_f1(truth, decided, foreign=targets.foreign),
        "correct": pack(right),
        **calibration,
        **_asked(classifier),
        # What a language model has answered is kept: asked again, it would take no time.
        **(_rate(len(right), took) if work else _rates(classifier, test.texts, meter)),
        "bytes": _bytes(classifier),
    }


def _asked(classifier: Any) -> dict[str, float]:
    """Of what asks a language model: the share of texts without an answer that names a label, and that of the answers
    that were there before.
    """
    if not hasattr(classifier, "asks_elsewhere"):
        return {}
    usage = classifier.summary_["usage"].values()
    answers, asked = (sum(stage[name] for stage in usage) for name in ("answers", "asked"))
    return {"failure_rate": classifier.failure_rate_, "stored_share": round(1 - asked / max(answers, 1), 3)}


def _calibration(truth: np.ndarray, probabilities: np.ndarray, multilabel: bool) -> dict[str, float]:
    return {
        "ece": metrics.expected_calibration_error(truth, probabilities, multilabel=multilabel),
        "ece_95": metrics.calibrated_error(probabilities, multilabel=multilabel),
    }


def _answers(classifier: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Decisions (row, class), and probabilities where there are any; sonde's own read the texts once."""
    if hasattr(classifier, "judged"):
        decided, probabilities = classifier.judged(texts)
        return decided, probabilities
    probabilities = classifier.predict_proba(texts) if hasattr(classifier, "predict_proba") else None
    if probabilities is not None and hasattr(classifier, "decide"):
        return classifier.decide(probabilities), probabilities
    form = (classifier.classes_, bool(getattr(classifier, "multilabel_", False)))
    return encode_against(classifier.predict(texts), *form).indicator, probabilities


def _rates(classifier: Any, texts: list[str], meter: Meter) -> dict[str, float]:
    """Texts a second, and a second of the processor, without a store of what was read before."""
    some = texts[:SPEED_ROWS]
    stores = [(part, name, value) for part in _readers(classifier) for name, value in part.get_params().items()]
    stores = [(part, name, value) for part, name, value in stores if name.rpartition("__")[2] == "cache"]
    try:
        for part, name, _ in stores:
            part.set_params(**{name: None})
        classifier.predict(some[:WARM_ROWS])  # the first pass makes what later ones find
        watch, before, passes = machine.Stopwatch(), _cpu_elsewhere(classifier), 0
        with meter.stage("inference"):
            while not passes or (passes < PASSES and watch.read()["seconds"] < SPEED_SECONDS):
                classifier.predict(some)
                passes += 1
        took = watch.read()
        took["cpu_seconds"] += _cpu_elsewhere(classifier) - before
        return _rate(passes * len(some), took)
    finally:
        for part, name, value in stores:
            part.set_params(**{name: value})


def _rate(texts: int, took: Mapping[str, float]) -> dict[str, float]:
    least = 1e-3  # what a stopwatch shows
    return {
        "texts_per_second": texts / max(took["seconds"], least),
        "texts_per_cpu_second": texts / max(took["cpu_seconds"], least),
    }


def _readers(classifier: Any) -> Iterator[Any]:
    """Whatever of a fitted classifier may take features from a store: itself, and what it retrieves by."""
    yield classifier
    for fitted in vars(classifier).values():
        if hasattr(fitted, "retriever"):
            yield fitted.retriever


def _bytes(classifier: Any) -> int | None:
    """Of the saved artifact, backbones not counted: they are referenced. What is fine-tuned is a model of its own."""
    write = getattr(classifier, "save", None) or getattr(classifier, "export", None)
    if write is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        write(place)
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


@contextmanager
def _once(said: set[str]) -> Iterator[None]:
    """Pass on what is warned of inside, but for what was said before: every candidate sees the same data."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SondeWarning)
        yield
    for message in (one.message for one in caught):
        if str(message) not in said:
            said.add(str(message))
            warnings.warn(message, stacklevel=2)


class _OutOfTimeError(BaseException):
    """The time limit has passed; no `except Exception` on the way may take it for an error of its own."""


@contextmanager
def _until(moment: float | None) -> Iterator[None]:
    """Give up the work inside when a moment of the monotonic clock has come.

    By a timer signal where there is one, so that a long fit is cut short; elsewhere before the work starts.
    """
    left = None if moment is None else moment - time.monotonic()
    if left is not None and left <= 0:
        raise _OutOfTimeError
    if left is None or not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN_SECONDS)  # until it is heard
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ----------------------------------------------------------- recommendation


def recommend(cells: Mapping[str, Mapping[str, Any]], metric: str = "accuracy") -> dict[str, str | None]:
    """Which candidate to take: the best by the metric, the fastest of equals; and what stands close to it.

    Returns
    -------
    dict
        `recommended`: a name, None if nothing has finished; `reason`: sentences.
    """
    done = {name: cell for name, cell in cells.items() if "failed" not in cell}
    if not done:
        return {"recommended": None, "reason": "No candidate has finished."}
    best = max(done, key=lambda name: (done[name][metric], done[name]["texts_per_second"]))
    own = done[best]
    among = (
        f"the highest {METRICS[metric]} of {len(done)}"
        if len(done) > 1
        else f"the only one that has finished: {METRICS[metric]}"
    )
    chosen = " (chosen on these rows, so a little too good)" if len(done) > 1 else ""
    sentences = [f"{best}: {among} on {own['n']:,} test rows, {figure(own[metric])}{chosen}."]
    if metric != "accuracy" and len(done) > 1:  # McNemar's test counts rows: it knows nothing of F1
        sentences.append(f"Whether its lead is chance is not tested for {METRICS[metric]}.")
        return {"recommended": best, "reason": " ".join(sentences)}
    close = {name: p for name in done if name != best and (p := _p_value(own, done[name])) >= CHANCE}
    if close:
        listed = ", ".join(f"{name} ({figure(done[name][metric])}, p {p:.2f})" for name, p in close.items())
        sentences.append(f"Its lead may be chance over {listed}.")
        fastest = max(close, key=lambda name: done[name]["texts_per_second"])
        times = done[fastest]["texts_per_second"] / own["texts_per_second"]
        if times >= NOTABLY_FASTER:
            sentences.append(f"If speed counts, take {fastest}: {times:,.0f} times as many texts a second.")
    elif len(done) > 1:
        sentences.append("No other is within chance of it (McNemar, p < .05).")
    return {"recommended": best, "reason": " ".join(sentences)}


def _p_value(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return metrics.mcnemar(bits(one), bits(other))


def bits(cell: Mapping[str, Any]) -> Bool[np.ndarray, " row"]:
    """Which test rows a cell labels right."""
    return unpack(cell["correct"], cell["n"])


def figure(value: float) -> str:
    """.812"""
    return f"{value:.3f}".removeprefix("0")


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    failed = [f"- `{name}`: {cell['failed']}" for name, cell in cells.items() if "failed" in cell]
    parts = [
        "# Comparison",
        f"Written by `sonde compare`: {setting['train_rows']:,} training rows, {setting['test_rows']:,} test rows, "
        f"backbone {', '.join(setting['backbones'])}.",
        machine.sentence(content["machine"]),
        str(recommend(cells, setting["metric"])["reason"]),
        table(("candidate", *HEADS), [(f"`{name}`", *line) for name, line in lines(cells, setting["metric"]).items()]),
        NOTE,
        *(["Not possible:\n\n" + "\n".join(failed)] if failed else []),
    ]
    return "\n\n".join(parts) + "\n"


HEADS = ("accuracy [95%]", "macro F1", "ECE", "fit s", "texts/s", "MB", "Wh")
NOTE = (
    "ECE: 15 bins of equal mass. fit s: wall clock; what a candidate before it has read is not read again. texts/s: "
    "reading included. MB: the saved model without its backbones. Wh: energy of the fit, ~ where it is estimated from "
    "stated watts."
)


def lines(cells: Mapping[str, Mapping[str, Any]], metric: str = "accuracy") -> dict[str, list[str]]:
    """Name -> the cells of its line under `HEADS`, of what has finished; the best by the metric first."""
    done = {name: cell for name, cell in cells.items() if "failed" not in cell}
    return {name: _line(done[name]) for name in sorted(done, key=lambda name: -done[name][metric])}


def _line(cell: Mapping[str, Any]) -> list[str]:
    training = cell["cost"]["stages"]["training"]
    energy = training["energy"]
    watt_hours = "" if energy is None else f"{'~' if energy['estimated'] else ''}{1000 * energy['kwh']:.2g}"
    return [
        f"{figure(cell['accuracy'])} [{figure(cell['low'])}, {figure(cell['high'])}]",
        figure(cell["macro_f1"]),
        "" if cell["ece"] is None else figure(cell["ece"]),
        f"{training['seconds']:.1f}",
        f"{cell['texts_per_second']:,.0f}",
        "" if cell["bytes"] is None else f"{cell['bytes'] / 1e6:.1f}",
        watt_hours,
    ]
