"""Costs: how long it took, and how large it is.

costs   Subject -> a table of seconds, speed and sizes
"""

import copy
import time
import warnings

import numpy as np

from sonde.cost import parameters_of
from sonde.errors import SondeError, SondeWarning
from sonde.show.report.markup import Markup, count, table
from sonde.show.report.subject import Subject

TIMED = 128
"""Rows that are timed without the store: a few batches, a second or two on two cores."""


def costs(subject: Subject) -> Markup:
    """What training took, what these rows took, what a row takes that nobody has read before."""
    summary = subject.summary
    seconds = summary["seconds"]
    parts = f"{seconds['reading']:,.1f} s reading, {seconds['training']:,.1f} s learning"
    here = f"{count(subject.rows, 'row')}; activations that the store held were not read anew"
    rows = [
        ["Training", f"{sum(seconds.values()):,.1f} s", f"{parts}; {count(summary['rows'], 'row')}"],
        ["This test", f"{subject.judged.seconds:,.1f} s", here],
        _speed(subject),
        *_sizes(subject),
    ]
    return table("Seconds of wall-clock time, and sizes", ["what", "how much", "of what"], rows, words=3, kind="facts")


def _speed(subject: Subject) -> list[str]:
    """Rows a second of some rows of the test, nothing of which comes from the store."""
    rows = np.random.default_rng(0).permutation(subject.rows)[:TIMED].tolist()
    texts = [subject.judged.texts[row] for row in rows]
    unaided = copy.copy(subject.classifier).set_params(cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        started = time.perf_counter()
        for _ in unaided.stream(texts):
            pass
        seconds = time.perf_counter() - started
    return [
        "Speed",
        f"{len(rows) / seconds:,.0f} rows/s",
        f"{count(len(rows), 'row')} of the test, without the store, on this machine",
    ]


def _sizes(subject: Subject) -> list[list[str]]:
    """Of what training made, and of the frozen models that it reads."""
    own = sum(array.nbytes for array in subject.classifier.arrays().values())
    try:
        known = parameters_of(subject.classifier)
    except SondeError as error:  # a checkpoint whose weights are elsewhere
        return [["Model", _bytes(own), str(error)]]
    rows = [["Model", _bytes(own), f"{count(known.trained, 'number')} were trained; the backbones are not copied"]]
    for about in subject.classifier.backbones_.values():
        view = f"{about['dtype']}, at most {about['max_tokens']:,} tokens a text"
        rows.append(["Backbone", str(about["id"]), view])
    if known.backbone:
        stored = "stored in the backbones; layers that are not needed are not run"
        rows.append(["Parameters", f"{known.backbone:,}", stored])
    return rows


def _bytes(n: int) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"
