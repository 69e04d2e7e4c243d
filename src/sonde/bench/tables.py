"""The results table: five data sets x every recipe, ours beside the paper's.

    run   read, fit and evaluate every cell; write docs/results/tables.{json,md}

Every finished cell is kept in the JSON file at once: a run that is stopped goes on where it was, and a cell is made
anew only when it is missing. Heads with random starts report the mean of three seeds.
"""

import base64
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sonde.bench import machine
from sonde.bench.cells import table, write_json, write_page
from sonde.bench.datasets import TITLES, DataSet, of_papers, read_split, tests_of
from sonde.bench.machine import Stopwatch
from sonde.bench.paper import SETS, TABLE_2
from sonde.classifier import TextClassifier
from sonde.errors import DataError, SondeWarning
from sonde.learn import metrics
from sonde.learn.recipes import find
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.read.blocks import Block
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources, open_store, prepare

LLAMA = "reviews-llama-8m"
STORIES = "stories260K-llama"
LLAMA_TOKENS = 256
"""The context that the larger LLaMA was trained with."""

SEEDS = (0, 1, 2)
ROWS = tuple(range(1, 16))


@dataclass(frozen=True)
class Column:
    """One recipe with its backbones: a line of the table."""

    recipe: str
    """Name of the recipe."""
    backbones: tuple[str, ...]
    """Short names: bundle, llama, stories."""
    seeds: tuple[int, ...] = (0,)
    """One fit each; the mean is reported."""

    @property
    def name(self) -> str:
        """`auto [bundle]`."""
        return f"{self.recipe} [{' + '.join(self.backbones)}]" if self.backbones else self.recipe


AUTO = Column("auto", ("bundle",))
SINGLE = (
    Column("lexical", ()),
    Column("linear", ("bundle",)),
    Column("llmembed-2", ("bundle",), SEEDS),
    Column("llmembed-15", ("bundle", "bundle"), SEEDS),
    Column("stc-hidden", ("bundle",)),
    Column("stc", ("bundle",)),
)
"""What `auto` must not be worse than; in row 15 one backbone plays both roles."""


@dataclass(frozen=True)
class Reading:
    """What is read of one backbone, once for all lines of the table."""

    place: str
    """Short name of the backbone."""
    max_tokens: int | None
    """As in `TextClassifier`."""
    sites: tuple[tuple[str, str], ...]
    """Site specifications with their poolings."""


_LAYERS = (("hidden.*", "mean"), ("hidden.*", "max"))
READINGS = (
    Reading("bundle", None, (*_LAYERS, ("sentence", ""))),
    Reading("llama", LLAMA_TOKENS, _LAYERS),
    Reading("stories", LLAMA_TOKENS, (("sentence", ""),)),
)


def columns(with_models: bool) -> list[Column]:
    """Every line of the table; without further models those of the bundle alone."""
    if not with_models:
        return [*SINGLE, AUTO]
    llama = [Column("linear", ("llama",)), Column("auto", ("llama",)), Column("auto", ("bundle", "llama"))]
    return [*SINGLE, AUTO, *llama, *(Column(f"llmembed-{row}", _roles(row), SEEDS) for row in ROWS)]


def _roles(row: int) -> tuple[str, ...]:
    """Deep, B and R: the larger LLaMA, the bundle, the smaller LLaMA."""
    return ("llama",) if row < 5 else ("llama", "bundle") if row < 8 else ("llama", "bundle", "stories")


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Fill every cell and write the tables.

    Parameters
    ----------
    data : Path
        One folder a data set, with train.csv.gz and test.csv.gz.
    models : Path or None
        Folder that holds the two small LLaMA models; None = the folder `models` beside `data`, if it is there.
    out : Path
        Where `tables.json` and `tables.md` are written.
    rows : int or None
        At most this many rows of each split, for a trial.
    only : list of str or None
        Only these data sets.
    cache : as in `TextClassifier`
    """
    folder = models or Path(data).parent / "models"
    places = {"bundle": BUNDLE, "llama": str(folder / LLAMA), "stories": str(folder / STORIES)}
    if models is not None and not (folder / LLAMA).is_dir():
        raise DataError(
            f"{folder} does not hold {LLAMA}. Give the folder of the two LLaMA models, or leave out --models."
        )
    lines = columns((folder / LLAMA).is_dir())
    results = _Results(Path(out) / "tables.json", rows)
    names = of_papers(only)
    with track("table", len(names) * len(lines), "cells") as advance:
        for name in names:
            splits = {split: read_split(data, name, split).take(rows) for split in ("train", *tests_of(data, name))}
            for reading in READINGS:
                if any(reading.place in line.backbones for line in lines):
                    _read_all(results, name, splits, reading, places[reading.place], cache)
            for line in lines:
                _fill(results, name, splits, line, places, cache)
                advance(1)
    return write_page(results.path, to_markdown(results.content))


class _Results:
    """The JSON file, written after every cell."""

    def __init__(self, path: Path, rows: int | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"rows_limit": rows, "reading": {}, "cells": {}}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("rows_limit") == rows:
                self.content = found

    def put(self, part: str, key: str, value: Any) -> None:
        self.content["machine"] = machine.describe()
        self.content[part][key] = value
        write_json(self.path, self.content)


def _read_all(
    results: _Results, name: str, splits: Mapping[str, DataSet], reading: Reading, path: str, cache: Any
) -> None:
    """Read everything that the recipes need of one backbone, timed; later fits find it in the store."""
    store = open_store(cache)
    if store is None:
        raise DataError("The tables need a store, so that texts are read once; leave out --no-cache.")
    source = open_sources({0: path}, max_tokens=reading.max_tokens, long_text="cut", dtype="auto", device="auto")
    blocks: list[Block] = [b for site, how in reading.sites for b in expand_blocks(0, source[0], site, how)]
    for split, rows in splits.items():
        key = f"{name}|{split}|{reading.place}|{source[0].view.max_tokens}"
        if key in results.content["reading"]:  # a second pass is served by the store and tells nothing
            continue
        watch = Stopwatch()
        prepare(len(rows.texts), source, blocks, store, texts=rows.texts)
        window = read(rows.texts, source, blocks, store)
        tokens = {"tokens": int(window.tokens.sum()), "lost_tokens": int(window.lost.sum())}
        results.put("reading", key, {**watch.read(), "rows": len(rows.texts), "blocks": len(blocks), **tokens})


def _fill(
    results: _Results, name: str, splits: Mapping[str, DataSet], line: Column, places: Mapping[str, str], cache: Any
) -> None:
    key = f"{name}|{line.name}"
    if key in results.content["cells"]:
        return
    fits = [_fit(splits, line, seed, places, cache) for seed in line.seeds]
    results.put("cells", key, {"seeds": fits, "train_rows": len(splits["train"].texts)})


def _fit(
    splits: Mapping[str, DataSet], line: Column, seed: int, places: Mapping[str, str], cache: Any
) -> dict[str, Any]:
    train = splits["train"]
    tokens = tuple(None if place == "bundle" else LLAMA_TOKENS for place in line.backbones) or None
    backbones = tuple(places[b] for b in line.backbones) or (BUNDLE,)
    classifier = TextClassifier(line.recipe, backbones, max_tokens=tokens, cache=cache, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # truncation and rare classes are in the tables themselves
        watch = Stopwatch()
        classifier.fit(train.texts, train.labels)
        training = watch.read()
        tests = {split: _test(classifier, rows) for split, rows in splits.items() if split != "train"}
    return {"seed": seed, "training": training, "tests": tests, "learner": _brief(classifier.summary_)}


def _test(classifier: TextClassifier, rows: DataSet) -> dict[str, Any]:
    watch = Stopwatch()
    probabilities = classifier.predict_proba(rows.texts)
    seconds = watch.read()
    correct = classifier.classes_[probabilities.argmax(axis=1)] == rows.labels
    return {
        "n": len(correct),
        "accuracy": float(correct.mean()),
        "inference": seconds,
        "correct": pack(correct),
    }


def pack(correct: Bool[np.ndarray, " row"]) -> str:
    """Which rows are right, as text: a paired test needs them."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpack(packed: str, rows: int) -> Bool[np.ndarray, " row"]:
    """The reverse of `pack`."""
    bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(bits)[:rows].astype(bool)


def _brief(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The learner's choices without its loss curves."""
    return {k: v for k, v in summary["learner"].items() if isinstance(v, int | float | str | bool | None)}


# ------------------------------------------------------------------ tables


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    parts = [
        "# Results",
        "Written by `sonde bench tables`; every figure comes from `tables.json` beside this page.",
        machine.sentence(content["machine"]),
        _notes(content),
        "## Accuracy",
        _accuracy(content),
        "## Is `auto` worse than any other recipe anywhere?",
        _significance(content),
        "## Every row of LLMEmbed's Table 1",
        _llmembed(content),
        "## Seconds",
        _seconds(content),
        "## The paper's figures, with other backbones",
        _paper(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _notes(content: Mapping[str, Any]) -> str:
    limit = content["rows_limit"]
    trial = f"**A trial: at most {limit} rows of each split.** " if limit else ""
    missing = sum(f"{name}|{line}" not in content["cells"] for name in SETS for line in _all_lines(content))
    trial += f"**{missing} cells are still empty: the same command goes on with them.** " if missing else ""
    return trial + (
        "`bundle` is all-MiniLM-L6-v2 (22M parameters), `llama` an 8M-parameter and `stories` a 0.26M-parameter LLaMA; "
        "the two are far too small to stand for a 7B model. AG News: 17,843 of the 120,000 training rows. IMDb: a "
        "seeded 40,000 / 10,000 split. SST-2: `test` are the 872 GLUE validation sentences, `test1821` the labelled "
        "test sentences of SST. Texts are cut at 512 tokens, for the two LLaMA models at 256."
    )


def _all_lines(content: Mapping[str, Any]) -> list[str]:
    """Every line of the whole table, and what else is there."""
    return list(dict.fromkeys([*(line.name for line in columns(True)), *_line_names(content)]))


def _names(content: Mapping[str, Any]) -> list[str]:
    present = {key.split("|")[0] for key in content["cells"]}
    return [name for name in SETS if name in present]


def _line_names(content: Mapping[str, Any]) -> list[str]:
    """Every line that has a cell, in the order of the table; others behind."""
    found = dict.fromkeys(key.split("|", 1)[1] for key in content["cells"])
    ordered = [line.name for line in columns(True) if line.name in found]
    return list(dict.fromkeys([*ordered, *found]))


def _score(content: Mapping[str, Any], name: str, line: str, splits: tuple[str, ...]) -> float | None:
    """Mean over seeds of the accuracy over some splits together."""
    cell = content["cells"].get(f"{name}|{line}")
    if cell is None:
        return None
    scores = []
    for fit in cell["seeds"]:
        tests = [fit["tests"][split] for split in splits]
        scores.append(sum(t["accuracy"] * t["n"] for t in tests) / sum(t["n"] for t in tests))
    return float(np.mean(scores))


def _accuracy(content: Mapping[str, Any]) -> str:
    return _score_table(content, [line for line in _line_names(content) if not _is_row(line)])


def _is_row(line: str) -> bool:
    """Whether a line is one of LLMEmbed's with the backbones of the table's own."""
    return line.startswith("llmembed") and "[llama" in line


def _llmembed(content: Mapping[str, Any]) -> str:
    lines = [line for line in _line_names(content) if _is_row(line)]
    if not lines:
        return "Not run: the LLaMA models were not given (--models)."
    titles = "L = llama, B = bundle, R = stories; means of three seeds, in brackets the largest difference.\n\n"
    return titles + _score_table(content, lines)


def _score_table(content: Mapping[str, Any], lines: list[str]) -> str:
    sets = _names(content)
    heads = ["recipe"]
    for name in sets:
        heads += ["SST-2 test", "SST-2 test1821", "SST-2 both"] if name == "sst2" else [TITLES[name]]
    heads.append("mean")
    rows = [[_title(line), *_scores(content, line, sets)] for line in lines]
    return table(heads, rows)


def _title(line: str) -> str:
    recipe = line.split(" ")[0]
    return f"`{line}` {find(recipe).title}" if recipe.startswith("llmembed") else f"`{line}`"


def _scores(content: Mapping[str, Any], line: str, sets: list[str]) -> Iterator[str]:
    means = []
    for name in sets:
        groups = [("test",), ("test1821",), ("test", "test1821")] if name == "sst2" else [("test",)]
        for splits in groups:
            score = _score(content, name, line, splits)
            yield "" if score is None else _shown(score) + _spread(content, name, line, splits)
        means.append(_score(content, name, line, ("test",)))
    whole = [mean for mean in means if mean is not None]
    yield _shown(float(np.mean(whole))) if len(whole) == len(sets) else ""


def _spread(content: Mapping[str, Any], name: str, line: str, splits: tuple[str, ...]) -> str:
    scores = [fit["tests"][splits[0]]["accuracy"] for fit in content["cells"][f"{name}|{line}"]["seeds"]]
    return f" ({max(scores) - min(scores):.3f})".replace("0.", ".") if len(scores) > 1 and len(splits) == 1 else ""


def _shown(score: float) -> str:
    return f"{score:.4f}".replace("0.", ".", 1)


def _bits(content: Mapping[str, Any], name: str, line: str) -> np.ndarray:
    """Which test rows of all splits the first seed labels right."""
    tests = content["cells"][f"{name}|{line}"]["seeds"][0]["tests"]
    return np.concatenate([unpack(t["correct"], t["n"]) for t in tests.values()])


def _significance(content: Mapping[str, Any]) -> str:
    """`auto` against every recipe that does not blend, on every set where both were run."""
    sets = [name for name in _names(content) if f"{name}|{AUTO.name}" in content["cells"]]
    p_values: dict[tuple[str, str], float] = {}
    lines = [line.name for line in SINGLE]
    for line in lines:
        for name in sets:
            if f"{name}|{line}" in content["cells"]:
                own, other = _bits(content, name, AUTO.name), _bits(content, name, line)
                p_values[line, name] = metrics.mcnemar(own, other, "less")
    corrected = dict(zip(p_values, metrics.holm(list(p_values.values())), strict=True))
    rows = []
    for line in [line for line in lines if any(key[0] == line for key in p_values)]:
        gains = [_gain(content, line, name) for name in sets if (line, name) in p_values]
        mean = f"{float(np.mean(gains)):+.2f}" if len(gains) == len(SETS) else ""
        shown = (_compared(content, line, name, p_values, corrected) for name in sets)
        rows.append([f"`{line}`", *shown, mean])
    if not rows:
        return ""
    note = (
        "By how many points `auto` with the bundle is better than each recipe that does not blend, on all test rows of "
        "a set (SST-2: both test splits); in brackets p that it is worse, by McNemar's exact test, one-sided, and that "
        "after Holm's correction for the whole table. Below .05 = worse. Recipes of three seeds: of the first.\n\n"
    )
    return note + table(["against", *(TITLES[name] for name in sets), "mean"], rows)


def _gain(content: Mapping[str, Any], line: str, name: str) -> float:
    return 100 * float(_bits(content, name, AUTO.name).mean() - _bits(content, name, line).mean())


def _compared(
    content: Mapping[str, Any],
    line: str,
    name: str,
    p_values: Mapping[tuple[str, str], float],
    corrected: Mapping[tuple[str, str], float],
) -> str:
    key = line, name
    return f"{_gain(content, *key):+.2f} ({p_values[key]:.3f}, {corrected[key]:.3f})" if key in p_values else ""


def _seconds(content: Mapping[str, Any]) -> str:
    reading = [
        [*key.split("|"), *(f"{r[n]:,}" for n in ("rows", "blocks", "tokens", "lost_tokens")), *_times(r)]
        for key, r in content["reading"].items()
    ]
    first = table(
        ["set", "split", "backbone", "max tokens", "rows", "blocks", "tokens", "lost", "wall", "CPU"], reading
    )
    fits = []
    for key, cell in content["cells"].items():
        name, line = key.split("|", 1)
        training = [fit["training"] for fit in cell["seeds"]]
        inference = [t["inference"] for fit in cell["seeds"] for t in fit["tests"].values()]
        fits.append(
            [
                TITLES[name],
                f"`{line}`",
                f"{cell['train_rows']:,}",
                *_times(*training),
                *_times(*inference, over=len(training)),
            ]
        )
    second = table(["set", "recipe", "training rows", "training", "CPU", "inference", "CPU"], fits)
    return (
        "Wall-clock and processor seconds (all threads); where a cell was made beside other work, the wall clock says "
        "nothing and processor seconds are what to compare. Reading, once for all recipes (14 blocks = every hidden "
        f"layer of the bundle, mean and max):\n\n{first}\n\nTraining (validation included) and inference on all test "
        f"rows, with activations from the store, a fit:\n\n{second}"
    )


def _times(*stages: Mapping[str, float], over: int | None = None) -> tuple[str, str]:
    """Wall and processor seconds of some stages, a fit."""
    fits = over or len(stages)
    return f"{sum(s['seconds'] for s in stages) / fits:.1f}", f"{sum(s['cpu_seconds'] for s in stages) / fits:.1f}"


def _paper() -> str:
    rows = [
        [method, backbone, *("" if s is None else _shown(s) for s in scores),
         "" if None in scores else _shown(float(np.mean([s for s in scores if s is not None])))]
        for (method, backbone), scores in TABLE_2.items()
    ]  # fmt: skip
    return table(["method", "backbone", *(TITLES[name] for name in SETS), "mean"], rows)
