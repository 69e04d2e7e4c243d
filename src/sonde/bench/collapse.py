"""What the defects of LLMEmbed's released code cost on R52: each switched on alone, then all together.

    run        read, fit and evaluate every cell; write docs/results/collapse.{json,md}
    measure    the same -> a Collapse
    VARIANTS   the defects, as data
    Collapse   all cells, with the machine; Cell   one row of Table 1 under one defect

In the paper (Table 2) Cat of five layers scores .4217 on R52: the share of the largest class, so nothing was learned.
The defects live in this module and nowhere else: no recipe and no option of the classifier can switch them on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sonde.bench import machine
from sonde.bench.cells import write_json, write_page
from sonde.bench.datasets import DataSet, read_split
from sonde.bench.machine import Stopwatch
from sonde.errors import DataError
from sonde.learn import mlp
from sonde.learn.fusion import ROWS
from sonde.learn.head import DEFAULT, PAPER, Setting
from sonde.learn.problem import Blocks, Problem
from sonde.learn.recipes import LLMEMBED_DEPTHS
from sonde.learn.splitting import Folds, make_folds
from sonde.learn.targets import Targets, encode
from sonde.learn.training import Loss, cross_entropy
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.read.backbone import Backbone
from sonde.read.batching import TOKEN_BUDGET
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources, open_store
from sonde.read.view import filler_id, tokenise

DATA_SET = "r52"
TABLE_ROWS = (2, 4, 14, 15)  # Avg and Cat of the layers, co-occurrence alone, and the paper's best
MAX_TOKENS = 256  # the context that the small LLaMA was trained with
DEEP = "reviews-llama-8m"

Names = tuple[list[str], list[str]]
"""Blocks of the deep and of the sentence backbones."""


def softmax_first(
    logits: Float[Tensor, "row class"], indicator: Float[Tensor, "row class"], multilabel: bool
) -> Float[Tensor, " row"]:
    """Defect: cross entropy of probabilities taken for logits; its gradient vanishes as soon as one class leads."""
    return cross_entropy(logits.softmax(dim=1), indicator, multilabel)


@dataclass(frozen=True)
class Variant:
    """One way to train: the clean one, or with defects."""

    title: str
    """A line of the table."""
    setting: Setting
    """How the head is built and trained."""
    loss: Loss = cross_entropy
    """The loss of each row."""
    pads: bool = False
    """Whether the mean of the deep blocks runs over pad positions."""


# Plain steps of the paper's size: 7 an epoch on R52, for the 100 epochs of section 4.1, chosen by nothing.
_SLOW = replace(DEFAULT, learning_rates=PAPER.learning_rates, batch=PAPER.batch, averaging=0.0, patience=None)

VARIANTS: dict[str, Variant] = {
    "clean": Variant("none", DEFAULT),
    "pads": Variant("(a) mean over pad positions", DEFAULT, pads=True),
    "softmax": Variant("(b) softmax before cross entropy", DEFAULT, loss=softmax_first),
    "unscaled": Variant("(c) unscaled input", replace(DEFAULT, standardise=False, calibrated=False, normalise=False)),
    "slow": Variant("(d) learning rate 1e-4, batch 1024", _SLOW),
    "all": Variant("(e) all four, with the paper's head", PAPER, loss=softmax_first, pads=True),
}


@dataclass(frozen=True)
class Cell:
    """One fit."""

    row: int
    """Row of Table 1."""
    variant: str
    """Key of `VARIANTS`."""
    accuracy: float
    """On the test rows."""
    points_lost: float
    """Percentage points below the clean setting of the same row."""
    predicted_classes: int
    """Different labels among the predictions: 1 = the largest class everywhere."""
    seconds: float
    """To fit."""


@dataclass(frozen=True)
class Collapse:
    """The ablation."""

    cells: tuple[Cell, ...]
    """Rows x variants."""
    largest_class: float
    """Share of the most frequent training label among the test rows."""
    train_rows: int
    """Rows trained on."""
    test_rows: int
    """Rows evaluated on."""
    seconds: float
    """Reading and fitting together."""
    machine: dict[str, Any]
    """Processor, versions, date."""

    def write_results(self, folder: Path) -> list[Path]:
        """Write collapse.json and collapse.md, each at once or not at all."""
        path = Path(folder) / "collapse.json"
        write_json(path, asdict(self))
        return write_page(path, to_markdown(self))


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Measure on R52 and write the results; arguments as in `bench.tables.run` (`only` has nothing to choose)."""
    folder = (models or Path(data).parent / "models") / DEEP
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist. `sonde bench collapse` needs the folder of {DEEP}: give --models.")
    train, test = (read_split(data, DATA_SET, split).take(rows) for split in ("train", "test"))
    result = measure(train, test, str(folder), BUNDLE, cache=cache, table_rows=TABLE_ROWS, max_tokens=MAX_TOKENS)
    return result.write_results(out)


def measure(
    train: DataSet,
    test: DataSet,
    deep: str,
    sentence: str = BUNDLE,
    *,
    cache: Any = None,
    table_rows: Sequence[int] = TABLE_ROWS,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> Collapse:
    """Fit every row under every variant.

    Parameters
    ----------
    train, test : DataSet
    deep, sentence : str
        The deep backbone and the sentence backbone B.
    cache : as in `TextClassifier`
        For the clean blocks; blocks with pads are never stored.
    table_rows : sequence of int
        Rows of Table 1.
    max_tokens : int
        Of the deep backbone; defect (a) pads every text to it.
    seed : int
    """
    watch = Stopwatch()
    blocks, names = _read(train.texts + test.texts, deep, sentence, max_tokens, cache)
    targets = encode(train.labels)
    weights = np.ones(len(train.texts))
    folds = {False: make_folds(train.texts, targets, seed=seed), True: _no_folds(len(weights))}
    problems = {
        (pads, fixed): Problem(
            _part(blocks[pads], slice(len(weights))), train.texts, targets, weights, folds[fixed], "accuracy", seed
        )
        for pads in blocks
        for fixed in folds
    }
    unseen = {pads: _part(given, slice(len(weights), None)) for pads, given in blocks.items()}
    cells: list[Cell] = []
    with track("collapse", len(table_rows) * len(VARIANTS), "fits") as advance:
        for row in table_rows:
            clean = None  # the first variant
            for key, variant in VARIANTS.items():
                problem = problems[variant.pads, variant.setting.patience is None]
                cell = _cell(problem, names, row, key, unseen[variant.pads], test, clean)
                clean = cell.accuracy if clean is None else clean
                cells.append(cell)
                advance(1)
    largest, seconds = _largest(targets, test), watch.read()["seconds"]
    return Collapse(tuple(cells), largest, len(train.texts), len(test.texts), seconds, machine.describe())


def _no_folds(rows: int) -> Folds:
    """For settings that choose nothing: like the released code, they train on all rows and validate on none."""
    return Folds(np.full(rows, -1), np.ones(rows, dtype=bool), np.zeros(rows, dtype=bool), 0)


def _part(blocks: Blocks, rows: slice) -> Blocks:
    return {name: block[rows] for name, block in blocks.items()}


def _cell(
    problem: Problem, names: Names, row: int, key: str, unseen: Blocks, test: DataSet, clean: float | None
) -> Cell:
    watch, variant = Stopwatch(), VARIANTS[key]
    outcome = mlp.fit(problem, *names, row, setting=variant.setting, loss=variant.loss)
    seconds = watch.read()["seconds"]
    predicted = problem.targets.classes[outcome.model.logits(unseen, test.texts).argmax(axis=1)]  # row
    accuracy = float(np.mean(predicted == test.labels))
    lost = 0.0 if clean is None else round(100 * (clean - accuracy), 2)
    return Cell(row, key, accuracy, lost, len(set(predicted.tolist())), seconds)


def _largest(targets: Targets, test: DataSet) -> float:
    frequent = targets.classes[targets.indicator.sum(axis=0).argmax()]
    return float(np.mean(test.labels == frequent))


def _read(
    texts: Sequence[str], deep: str, sentence: str, max_tokens: int, cache: Any
) -> tuple[dict[bool, Blocks], Names]:
    """Blocks without and with the mean over pads, and the names of the deep and the sentence blocks."""
    sources = open_sources(
        {0: deep, 1: sentence}, max_tokens=(max_tokens, None), long_text="cut", dtype="auto", device="auto"
    )
    layers = expand_blocks(0, sources[0], "hidden.1:", "mean")[::-1][:LLMEMBED_DEPTHS]  # the last first
    own = expand_blocks(1, sources[1], "sentence", "")
    clean = read(texts, sources, [*layers, *own], open_store(cache)).blocks
    padded = {**clean, **padded_means(texts, sources[0], layers)}
    return {False: clean, True: padded}, ([block.name for block in layers], [block.name for block in own])


def padded_means(
    texts: Sequence[str], source: Source, layers: Sequence[Block]
) -> dict[str, Float32[np.ndarray, "row dim"]]:
    """Defect: every text padded to the longest length, no mask, so that the mean runs over the pads as well."""
    backbone, length = source.backbone, source.view.max_tokens
    pieces, pad = tokenise(texts, backbone.tokenizer, source.view), filler_id(backbone.tokenizer)
    wanted = [(block.site, block.pooling) for block in layers]
    size = max(1, TOKEN_BUDGET[backbone.device.type] // length)
    parts: list[list[np.ndarray]] = [[] for _ in layers]
    with track("reading with pads", len(texts), "texts") as advance:
        for start in range(0, len(texts), size):
            ids = [row + [pad] * (length - len(row)) for row in pieces.ids[start : start + size]]
            pooled = _pooled(backbone, ids, wanted)
            for part, want in zip(parts, wanted, strict=True):
                part.append(pooled[want].numpy())  # row dim
            advance(len(ids))
    return {block.name: np.concatenate(part) for block, part in zip(layers, parts, strict=True)}


def _pooled(backbone: Backbone, ids: list[list[int]], wanted: list[Any]) -> dict[Any, Tensor]:
    return backbone.read(torch.tensor(ids), None, None, wanted)  # no mask: every position counts


def to_markdown(collapse: Collapse) -> str:
    """The table, one line a variant, one column a row of Table 1."""
    numbers = sorted({cell.row for cell in collapse.cells})
    heads = ["defect", *(f"row {number}: {ROWS[number].title}" for number in numbers)]
    cells = {(cell.variant, cell.row): cell for cell in collapse.cells}
    lines = [
        "# What the defects of the released code cost",
        "",
        "Written by `sonde bench collapse`: R52, LLMEmbed with a small LLaMA as the deep backbone and all-MiniLM-L6-v2 "
        f"as B; {collapse.train_rows:,} training rows, {collapse.test_rows:,} test rows. Accuracy, in brackets the "
        "percentage points lost against the clean default setting.",
        "",
        f"A model that has learned nothing answers the largest class: {collapse.largest_class:.4f}.",
        "",
        machine.sentence(collapse.machine) + f" {collapse.seconds:.0f} seconds in all.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for key, variant in VARIANTS.items():
        shown = [_shown(cells[key, number]) for number in numbers]
        lines.append(f"| {variant.title} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    lost = "" if cell.variant == "clean" else f" ({-cell.points_lost:+.1f})"
    collapsed = ", one class only" if cell.predicted_classes == 1 else ""
    return f"{cell.accuracy:.4f}{lost}{collapsed}"
