"""Exported classifiers under onnxruntime: what anybody does who uses the files, and whether they say what sonde says.

Session      texts -> probabilities, through the exported files alone
agreement    the same texts through files and library
speed        texts per second
CHECKED      texts on which every export is compared
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from tokenizers import Tokenizer

from sonde.errors import need
from sonde.export.graph import inputs_of
from sonde.read.view import clean

BATCH = 32
"""Texts that go through the graph together: a usual number, and few enough for a laptop's memory."""
ALONE = 4
"""Texts that are compared in a batch of their own too, without any pads."""
SECONDS = 1.0
"""For how long the speed is measured, at least: a hundred batches of short texts, one of long ones."""

_SENTENCES = (
    "The parcel arrived late, and nobody could tell me why.",
    "Prices rose by 3.5% in March; analysts had expected less!",
    "good",
    "A cold wind came over the hills, and the first trains left early that morning.",
    "Was für ein schöner Tag – vielleicht der letzte in diesem Jahr? 再见 🙂",
    "She wrote three letters, burned two of them, and kept the last one in a drawer for a year.",
    "my account is locked again why",
    "The board approved the merger, said a person who is familiar with the matter, on Tuesday.",
)
CHECKED = (
    *_SENTENCES,
    "",
    *(" ".join(_SENTENCES[start:] + _SENTENCES[:start]) for start in range(4)),
    " ".join(_SENTENCES * 8),  # about 1,000 tokens: longer than most backbones read
)
"""Of 1 to about 1,000 tokens, in several scripts, one of them empty."""
TIMED = tuple(" ".join((_SENTENCES * 2)[start : start + 2]) for start in range(8)) * 16
"""128 texts of two sentences, about 35 tokens each."""


@dataclass(frozen=True)
class Agreement:
    """How far the files are from the library on some texts."""

    texts: int
    """How many."""
    difference: float
    """Largest between two probabilities."""
    changed: int
    """Texts whose labels differ."""


class Session:
    """An exported classifier.

    Parameters
    ----------
    model : bytes or str
        The ONNX file, or its path.
    tokenizers : sequence of str
        Contents of the tokenizer files, one for each backbone.
    threads : int, optional
        By default as many as torch uses.
    """

    def __init__(self, model: bytes | str, tokenizers: Sequence[str], threads: int | None = None) -> None:
        onnxruntime = need("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.tokenizers = [Tokenizer.from_str(one) for one in tokenizers]

    def probabilities(self, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """One batch."""
        feed: dict[str, np.ndarray] = {}
        for tokenizer, (ids, mask) in zip(self.tokenizers, inputs_of(len(self.tokenizers)), strict=True):
            encoded = tokenizer.encode_batch([clean(text) for text in texts])
            feed[ids] = np.array([one.ids for one in encoded], dtype=np.int64)  # row token
            feed[mask] = np.array([one.attention_mask for one in encoded], dtype=np.int64)  # row token
        found: np.ndarray = self._session.run(["probabilities"], feed)[0]
        return found

    def stream(self, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Any number of texts, the longest first; blank ones among others, for a batch may not be without tokens."""
        batches = _batches(texts)
        found = np.concatenate([self.probabilities([texts[row] for row in rows]) for rows in batches])
        out = np.empty_like(found)
        out[[row for rows in batches for row in rows]] = found
        return out


def _batches(texts: Sequence[str]) -> list[list[int]]:
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    blank = [row for row in order if not texts[row].strip()]
    told = [row for row in order if texts[row].strip()] or blank
    batches = [told[start : start + BATCH] for start in range(0, len(told), BATCH)]
    for place, row in enumerate(blank if told is not blank else ()):
        batches[place % len(batches)].append(row)
    return batches


def agreement(session: Session, classifier: Any, texts: Sequence[str]) -> Agreement:
    """Compare files and library; a few texts go through the files alone, others among longer ones."""
    expected = classifier.predict_proba(list(texts))  # row class
    found = session.stream(texts)
    difference = float(np.abs(found - expected).max())
    for text, row in zip(texts[:ALONE], expected, strict=False):
        if text:  # of an empty text some tokenizers make nothing at all, and a graph has no batch of no tokens
            difference = max(difference, float(np.abs(session.probabilities([text]) - row).max()))
    changed = (classifier.decide(found) != classifier.decide(expected)).any(axis=1)  # row
    return Agreement(len(texts), difference, int(changed.sum()))


def speed(session: Session, texts: Sequence[str] = TIMED) -> float:
    """Texts per second, tokenised and classified in batches, the best pass of `SECONDS`."""
    session.stream(texts)  # the first pass sets up buffers
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        session.stream(texts)
        best = min(best, time.perf_counter() - start)
    return len(texts) / best
