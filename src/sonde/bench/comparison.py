"""Everything on the same backbone and the same rows: five data sets, few labels and all.

run   fit and measure every cell; write comparison.json and its page (`comparison_page`)

A cell is what `sonde compare` measures for one candidate. All read the backbone in float32, so that cells of different
machines are of the same values. Texts are read before the first candidate that needs them is fitted: no fit pays for
what the next one finds in the store.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.candidates import CANDIDATES, NEIGHBOURS, Candidate, Setting, nearest
from sonde.bench.cells import Cells, opened, write_page
from sonde.bench.compare import Rows, fit_and_measure
from sonde.bench.comparison_page import PROMPTED, SHOTS, to_markdown
from sonde.bench.datasets import DataSet, affordable, chosen, read_split, read_test
from sonde.bench.few import draw
from sonde.bench.prompted import TEST_ROWS, TRAIN_ROWS, Prompt, numbered_names
from sonde.bench.reading import holds, read_all
from sonde.bench.tables import pack
from sonde.errors import choose
from sonde.learn.splitting import text_keys
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.read.sources import expand_blocks, open_sources

BACKBONE = BUNDLE
DTYPE = "float32"
SITES = (("hidden.*", "mean"), ("hidden.*", "max"), ("ffn.*", "mean"), ("sentence", ""))
"""What the candidates read of it."""

MOST_ROWS = {"finetune": 4000, "lora": 4000, "setfit": 4000, "io": TRAIN_ROWS, "carp": TRAIN_ROWS}
"""Candidates that would take over half an hour on two cores with all rows: a seeded sample of every class."""
MOST_TEST_ROWS = {"finetune": 4000, "lora": 4000, "setfit": 4000, "io": TEST_ROWS, "carp": TEST_ROWS}
"""And of the test rows; they are compared with others on these."""


def run(
    *,
    data: Path,
    models: Path | None,
    out: Path,
    rows: int | None,
    only: list[str] | None,
    cache: Any,
    recipes: Sequence[str] | None = None,
    prompt_model: str | None = None,
    prompt_url: str | None = None,
    budget_tokens: int | None = None,
    more: Mapping[str, Candidate] | None = None,
) -> list[Path]:
    """Fill every cell and write the page, also when it is stopped.

    Parameters
    ----------
    data, out, only, cache : as in `bench.tables.run`; `models` is not needed
        In a folder named `results`, the page stands one folder above: `docs/comparison.md`.
    rows : int or None
        At most this many rows of each split, for a trial.
    recipes : sequence of str or None
        Names of candidates; by default all. Cells of others stay in the table.
    prompt_model, prompt_url : str or None
        A causal language model for IO and CARP, or an OpenAI-compatible endpoint (and what it calls the model).
    budget_tokens : int, optional
        What the endpoint may cost, in all.
    more : mapping of str to Candidate, optional
        Further candidates; their titles tell one making from another.

    Raises
    ------
    ArgumentError
        If a candidate is unknown, the folder holds cells of another setting, or there is no store.
    """
    setting = Setting((BACKBONE,), cache, dtype=DTYPE)
    prompt = None
    if prompt_model or prompt_url:
        prompt = Prompt(prompt_model, prompt_url, BACKBONE, cache, budget_tokens)
    made_with = {name: candidate.title for name, candidate in (more or {}).items()}
    pool = {**CANDIDATES, **(more or {})}
    if prompt:
        pool |= _asking(prompt, None)
        made_with |= dict.fromkeys(PROMPTED, prompt.name)
    names = [choose("The candidate", name, pool) for name in recipes or pool]
    about = {"backbone": BACKBONE, "dtype": DTYPE, "seed": setting.seed, "limit": rows}
    cells = opened(Path(out) / "comparison.json", about)
    sets = chosen(data, only)
    page = Path(out).parent if Path(out).name == "results" else None
    try:
        with track("comparison", len(sets) * len(names) * len(SHOTS), "cells") as advance:
            for shots in SHOTS:  # the cheap ones first
                for name in sets:
                    whole = read_split(data, name, "train").take(rows), read_test(data, name).take(rows)
                    sizes = tuple(len(split.texts) for split in whole)
                    train, test = affordable(name, *whole)
                    # written with the next cell
                    cells.content.setdefault("sets", {})[name] = _about(train, test, sizes)
                    pool |= {"knn": nearest(min(NEIGHBOURS, shots or NEIGHBOURS))} if "knn" in pool else {}
                    pool |= _asking(prompt, numbered_names(data, name, train)) if prompt else {}
                    drawn, place = draw(train, shots, setting.seed) if shots else train, f"{name}|{shots or 'all'}"
                    wanted = {one: {"made_with": made_with.get(one), **_counts(one, drawn, test)} for one in names}
                    left = [one for one in names if _lacks(cells, f"{place}|{one}", wanted[one])]
                    if any(pool[one].reads for one in left):
                        _read(train.texts + test.texts, setting)
                    for candidate in names:
                        if candidate in left:
                            cell = _cell(pool[candidate], drawn, test, setting)
                            of = {"all_rows": len(drawn.texts) if shots else sizes[0], "of_test_rows": sizes[1]}
                            told = {"made_with": made_with[candidate]} if candidate in made_with else {}
                            cells.put(f"{place}|{candidate}", {**cell, **of, **told})
                        advance(1)
    finally:
        written = write_page(cells.path, to_markdown(cells.content), page) if cells.content["cells"] else []
    return written


def _lacks(cells: Cells, key: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a cell is to be made; one by another maker or on other rows is."""
    return cells.lacks(key) or any(cells.content["cells"][key].get(name) != one for name, one in wanted.items())


def _counts(candidate: str, train: DataSet, test: DataSet) -> dict[str, int]:
    """On how many of these rows a candidate is fitted and tested."""
    all_train, all_test = len(train.texts), len(test.texts)
    n = min(MOST_TEST_ROWS.get(candidate, all_test), all_test)
    few = {"test_rows": all_test} if n < all_test else {}
    return {"train_rows": min(MOST_ROWS.get(candidate, all_train), all_train), "n": n, **few}


def _asking(prompt: Prompt, names: list[str] | None) -> dict[str, Candidate]:
    """IO and CARP, told what the labels mean."""

    def asks(line: str) -> Callable[[Setting], Any]:
        return lambda _: prompt.make(line, names)

    return {line: Candidate(line, told, asks(line)) for line, told in PROMPTED.items()}


def _about(train: DataSet, test: DataSet, sizes: tuple[int, ...]) -> dict[str, int]:
    """How many rows are used of how many, and how many of the test texts stand in the training rows."""
    known = np.isin(text_keys(test.texts), text_keys(train.texts))
    used = {"train_rows": len(train.texts), "test_rows": len(test.texts), "known_texts": int(known.sum())}
    return {**used, "of_train_rows": sizes[0], "of_test_rows": sizes[1]}


def _read(texts: Sequence[str], setting: Setting) -> None:
    """Into the store, what it does not hold yet of what candidates read."""
    sources = open_sources(
        dict(enumerate(setting.backbones)), max_tokens=None, long_text="cut", dtype=setting.dtype, device="auto"
    )
    blocks = [block for site, how in SITES for block in expand_blocks(0, sources[0], site, how)]
    if not holds(texts, sources, blocks, setting.cache):
        read_all(texts, sources, blocks, setting.cache)


def _cell(candidate: Candidate, train: DataSet, test: DataSet, setting: Setting) -> dict[str, Any]:
    """One cell, with the rows that it is of."""
    counts = _counts(candidate.name, train, test)
    some, asked = train.sampled(counts["train_rows"], setting.seed), test.sampled(counts["n"], setting.seed)
    found = fit_and_measure(candidate, _rows(train.at(some)), _rows(test.at(asked)), setting)
    bits = {"asked": pack(np.isin(np.arange(len(test.texts)), asked))} if "test_rows" in counts else {}
    return {**counts, **found, **bits, "machine": machine.describe()}


def _rows(split: DataSet) -> Rows:
    return Rows(split.texts, split.labels.tolist())
