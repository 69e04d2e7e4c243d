"""Everything on the same backbone and the same rows: five data sets, few labels and all.

run           fit and measure every cell; write comparison.json and its page
to_markdown   the page, from the JSON alone

A cell is what `sonde compare` measures for one candidate. Where sonde's default loses, the page says so first. IO and
CARP ask a language model of their own, on few rows: they show what prompting takes, not how good it can be.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.candidates import CANDIDATES, Candidate, Setting
from sonde.bench.cells import opened, table, write_page
from sonde.bench.compare import CHANCE, METRICS, Rows, bits, figure, fit_and_measure
from sonde.bench.datasets import DataSet, chosen, in_order, read_split, read_test, title
from sonde.bench.few import draw
from sonde.bench.prompted import TEST_ROWS, TRAIN_ROWS, Prompt, numbered_names
from sonde.errors import choose
from sonde.learn import metrics
from sonde.plan import BUNDLE
from sonde.progress import track

BACKBONE = BUNDLE
DEFAULT = "auto"
"""What a user gets who chooses nothing: the page judges it against all others."""

SHOTS = (8, 32, 128, None)
"""Training rows of each class (all, where it has fewer); None = all rows."""

MOST_ROWS = {"finetune": 4000, "lora": 4000, "setfit": 4000}
"""Candidates that would take over half an hour on two cores with all rows: a seeded sample, whose size is shown."""

PROMPTED = {"io": "a language model is asked", "carp": "a language model is asked for clues and reasons"}
"""Candidates that need a language model; TRAIN_ROWS and TEST_ROWS at most."""


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
    """Fill every cell and write the page.

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
        If a candidate is unknown, or the folder holds cells of another setting.
    """
    setting = Setting((BACKBONE,), cache)
    prompt = None
    if prompt_model or prompt_url:
        prompt = Prompt(prompt_model, prompt_url, BACKBONE, cache, budget_tokens)
    made_with = {name: candidate.title for name, candidate in (more or {}).items()}
    pool = {**CANDIDATES, **(more or {})}
    if prompt:
        pool |= _asking(prompt, None)
        made_with |= dict.fromkeys(PROMPTED, prompt.name)
    names = [choose("The candidate", name, pool) for name in recipes or pool]
    cells = opened(Path(out) / "comparison.json", {"backbone": BACKBONE, "seed": setting.seed, "limit": rows})
    sets = chosen(data, only)
    with track("comparison", len(sets) * len(names) * len(SHOTS), "cells") as advance:
        for shots in SHOTS:  # the cheap ones first
            for name in sets:
                train, test = read_split(data, name, "train").take(rows), read_test(data, name).take(rows)
                if prompt:
                    pool |= _asking(prompt, numbered_names(data, name, train))
                for candidate in names:
                    key, made = f"{name}|{shots or 'all'}|{candidate}", made_with.get(candidate)
                    if cells.lacks(key) or cells.content["cells"][key].get("made_with") != made:
                        some, asked = _some(train, shots, candidate, setting.seed), test
                        if candidate in PROMPTED:
                            some, asked = some.take(TRAIN_ROWS), test.take(TEST_ROWS)
                        found = fit_and_measure(pool[candidate], _rows(some), _rows(asked), setting)
                        told = {"train_rows": len(some.texts), "processor": machine.describe()["processor"]}
                        cells.put(key, {**found, **told, **({"made_with": made} if made else {})})
                    advance(1)
    page = to_markdown(cells.content)
    return write_page(cells.path, page, Path(out).parent if Path(out).name == "results" else None)


def _asking(prompt: Prompt, names: list[str] | None) -> dict[str, Candidate]:
    """IO and CARP, told what the labels mean."""

    def asks(line: str) -> Callable[[Setting], Any]:
        return lambda _: prompt.make(line, names)

    return {line: Candidate(line, told, asks(line)) for line, told in PROMPTED.items()}


def _some(train: DataSet, shots: int | None, candidate: str, seed: int) -> DataSet:
    return train.take(MOST_ROWS.get(candidate), seed) if shots is None else draw(train, shots, seed)


def _rows(split: DataSet) -> Rows:
    return Rows(split.texts, split.labels.tolist())


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    limit = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    parts = [
        "# Comparison",
        "Written by `sonde bench comparison`; every figure comes from `comparison.json` beside this page.",
        machine.sentence(content["machine"]),
        f"{limit}Backbone of all that read or tune one: {setting['backbone']}. One seed. Test rows: all (SST-2: of "
        "both test splits). A number in brackets: training rows, where they are fewer than there are.",
        *_exercise(cells),
        "## Where the default loses",
        _losses(cells),
    ]
    for shots in SHOTS:
        parts += _chapter(cells, str(shots or "all"))
    failed = [f"- {_place(key)}: {cell['failed']}" for key, cell in cells.items() if "failed" in cell]
    if failed:
        parts += ["## Not possible", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _exercise(cells: Mapping[str, Any]) -> list[str]:
    """What IO and CARP were asked of."""
    found = [cell for key, cell in cells.items() if key.rpartition("|")[2] in PROMPTED]
    if not found:
        return []
    stored = ""
    if any(cell.get("stored_share") for cell in found):
        stored = " Some of their answers were there before (clues of training texts that fewer rows had, too): *."
    return [
        f"`io` and `carp` ask {', '.join(sorted({str(cell['made_with']) for cell in found}))}, with at most "
        f"{TRAIN_ROWS} training and {TEST_ROWS} test rows: an exercise of the machinery, not evidence of what a "
        f"capable model reaches.{stored}"
    ]


def _place(key: str) -> str:
    name, shots, candidate = key.split("|")
    return f"`{candidate}` on {title(name)}, {shots} rows{'' if shots == 'all' else ' a class'}"


def _done(cells: Mapping[str, Any], shots: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(candidate, set) -> cell, of what has finished."""
    found = {}
    for key, cell in cells.items():
        name, own, candidate = key.split("|")
        if own == shots and "failed" not in cell:
            found[candidate, name] = cell
    return found


def _losses(cells: Mapping[str, Any]) -> str:
    """Every cell that is better than the default by more than chance; and what remains if there is none."""
    lines = [line for shots in SHOTS for line in _losses_with(_done(cells, str(shots or "all")), shots)]
    rule = f"better by more than chance (McNemar, p < {CHANCE:g}, not corrected for the number of tests)"
    if not lines:
        return f"Nothing here is {rule} than `{DEFAULT}` on the same rows."
    return f"What is {rule} than `{DEFAULT}`:\n\n" + "\n".join(lines)


def _losses_with(done: Mapping[tuple[str, str], Mapping[str, Any]], shots: int | None) -> Iterator[str]:
    for (candidate, name), cell in done.items():
        own = done.get((DEFAULT, name))
        if own is None or candidate == DEFAULT or cell["accuracy"] <= own["accuracy"] or cell["n"] != own["n"]:
            continue
        p = metrics.mcnemar(bits(own), bits(cell))
        if p < CHANCE:
            rows = "all rows" if shots is None else f"{shots} rows a class"
            yield (
                f"- {title(name)}, {rows}: `{candidate}` {figure(cell['accuracy'])} against "
                f"{figure(own['accuracy'])} (p {p:.3f})"
            )


def _chapter(cells: Mapping[str, Any], shots: str) -> list[str]:
    done = _done(cells, shots)
    if not done:
        return []
    names = in_order(own for _, own in done)
    there = dict.fromkeys(candidate for candidate, _ in done)
    candidates = [*(name for name in CANDIDATES if name in there), *(name for name in there if name not in CANDIDATES)]
    whole = {name: max(cell["train_rows"] for (_, own), cell in done.items() if own == name) for name in names}
    heads = ["candidate", *(title(name) for name in names), "mean"]
    parts = ["## All rows" if shots == "all" else f"## {shots} rows a class", "Accuracy with its 95% interval:"]
    parts.append(table(heads, [_accuracies(done, one, names, whole) for one in candidates]))
    for metric, shown in {"macro_f1": METRICS["macro_f1"], "ece": "ECE"}.items():
        parts += [
            f"{shown[0].upper()}{shown[1:]}:",
            table(heads, [_values(done, one, names, metric) for one in candidates]),
        ]
    if any("failure_rate" in cell for cell in done.values()):
        asked = [one for one in candidates if any("failure_rate" in done.get((one, name), {}) for name in names)]
        parts += [
            "Share of texts whose answer names no label, which count as wrong:",
            table(heads, [_values(done, one, names, "failure_rate") for one in asked]),
        ]
    where = " or ".join(sorted({cell["processor"] for cell in done.values()}))
    parts += [
        "Cost, means over the sets (in brackets: over how many, if not all); seconds of the processor, features of "
        f"training texts taken from a store. Measured on {where}:",
        table(COSTS, [_costs(done, one, names) for one in candidates]),
    ]
    return parts


def _accuracies(
    done: Mapping[tuple[str, str], Mapping[str, Any]], candidate: str, names: Sequence[str], whole: Mapping[str, int]
) -> list[str]:
    line = []
    for name in names:
        cell = done.get((candidate, name))
        fewer = f" ({cell['train_rows']:,})" if cell and cell["train_rows"] < whole[name] else ""
        line.append(
            f"{figure(cell['accuracy'])} [{figure(cell['low'])}, {figure(cell['high'])}]{fewer}" if cell else ""
        )
    return [f"`{candidate}`", *line, _mean(done, candidate, names, "accuracy")]


def _values(
    done: Mapping[tuple[str, str], Mapping[str, Any]], candidate: str, names: Sequence[str], metric: str
) -> list[str]:
    found = [done.get((candidate, name), {}).get(metric) for name in names]
    shown = ["" if value is None else figure(value) for value in found]
    return [f"`{candidate}`", *shown, _mean(done, candidate, names, metric)]


def _mean(done: Mapping[tuple[str, str], Mapping[str, Any]], candidate: str, names: Sequence[str], metric: str) -> str:
    """Over all sets; empty if one is missing."""
    found = [done.get((candidate, name), {}).get(metric) for name in names]
    there = [value for value in found if value is not None]
    return figure(float(np.mean(there))) if len(there) == len(names) else ""


COSTS = ("candidate", "fit, CPU s", "texts a CPU s", "MB", "Wh of the fit")


def _costs(done: Mapping[tuple[str, str], Mapping[str, Any]], candidate: str, names: Sequence[str]) -> list[str]:
    cells = [done[candidate, name] for name in names if (candidate, name) in done]
    training = [cell["cost"]["stages"]["training"] for cell in cells]
    energies = [stage["energy"] for stage in training if stage["energy"]]
    sizes = [cell["bytes"] for cell in cells if cell["bytes"] is not None]
    estimated = "~" if any(energy["estimated"] for energy in energies) else ""
    fewer = "" if len(cells) == len(names) else f" ({len(cells)})"
    star = "*" if any(cell.get("stored_share") for cell in cells) else ""
    elsewhere = all(stage["energy"] is None for stage in training)
    return [
        f"`{candidate}`{star}{fewer}",
        "" if elsewhere else f"{np.mean([cell['fit_cpu_seconds'] for cell in cells]):,.1f}",
        "" if elsewhere else f"{np.mean([cell['texts_per_cpu_second'] for cell in cells]):,.0f}",
        f"{np.mean(sizes) / 1e6:.1f}" if sizes else "",
        f"{estimated}{1000 * np.mean([energy['kwh'] for energy in energies]):.2g}" if energies else "",
    ]
