"""The page of `sonde bench comparison`, from its JSON alone; where sonde's default loses stands first.

to_markdown   cells -> the page
SHOTS         training rows of each class
PROMPTED      candidates that ask a language model
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from sonde.bench import machine
from sonde.bench.candidates import CANDIDATES
from sonde.bench.cells import share, table
from sonde.bench.compare import CHANCE, METRICS, bits, figure
from sonde.bench.datasets import TITLES, in_order, title
from sonde.bench.tables import unpack
from sonde.learn import metrics

DEFAULT = "auto"
"""What a user gets who chooses nothing: the page judges it against all others."""

SHOTS = (8, 32, 128, None)
"""Training rows of each class (all, where it has fewer); None = all rows."""

PROMPTED = {"io": "a language model is asked", "carp": "a language model is asked for clues and reasons"}
"""They show what prompting takes, not how good it can be: the model is small, the rows are few."""

SETFIT = "setfit"

Done = Mapping[tuple[str, str], Mapping[str, Any]]
"""(candidate, set) -> cell, of one number of rows."""


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page."""
    setting, cells, sets = content["setting"], content["cells"], content.get("sets", {})
    limit = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    parts = [
        "# Comparison",
        "Written by `sonde bench comparison`; every figure comes from `comparison.json`.",
        *machine.sentences(cells.values()),
        f"{limit}Backbone of all that read or tune one: {setting['backbone']}, in {setting['dtype']}. One seed and one "
        "draw of the training rows: intervals and tests are about the test rows alone. With 8 rows a class another "
        "draw moves the accuracy by points ([few labels](results/few.md)).",
        _sets(sets),
        *_exercise(cells),
        "## Where the default loses",
        _losses(cells),
        *_ahead(cells),
    ]
    for shots in SHOTS:
        parts += _chapter(cells, str(shots or "all"))
    return "\n\n".join([*parts, *_absent(cells, sets)]) + "\n"


def _sets(sets: Mapping[str, Any]) -> str:
    """How large the sets are, and what they hold twice."""
    lines = []
    for name in in_order(sets):
        one = sets[name]
        train, test = (share(one[f"{split}_rows"], one.get(f"of_{split}_rows", 0)) for split in ("train", "test"))
        known = f", {one['known_texts']:,} of which stand in the training rows" if one["known_texts"] else ""
        lines.append(f"- {title(name)}: {train} training and {test} test texts{known}")
    return "Rows (of long texts a seeded sample of every class):\n\n" + "\n".join(lines) if lines else ""


def _exercise(cells: Mapping[str, Any]) -> Iterator[str]:
    """What IO and CARP were asked of."""
    found = [cell for key, cell in cells.items() if key.rpartition("|")[2] in PROMPTED and "failed" not in cell]
    if not found:
        return
    stored = ""
    if any(cell.get("stored_share") for cell in found):
        stored = " Some of their answers were there before (clues of training texts that fewer rows had, too): *."
    yield (
        f"`io` and `carp` ask {', '.join(sorted({str(cell['made_with']) for cell in found}))}, with at most "
        f"{max(cell['train_rows'] for cell in found):,} training and {max(cell['n'] for cell in found):,} test rows: "
        f"an exercise of the machinery, not evidence of what a capable model reaches.{stored}"
    )


def _done(cells: Mapping[str, Any], shots: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What has finished."""
    found = {}
    for key, cell in cells.items():
        name, own, candidate = key.split("|")
        if own == shots and "failed" not in cell:
            found[candidate, name] = cell
    return found


# -------------------------------------------------------------------- losses


def _losses(cells: Mapping[str, Any]) -> str:
    """Every cell that is better than the default by more than chance; and what remains if there is none."""
    lines = [line for shots in SHOTS for line in _losses_with(_done(cells, str(shots or "all")), shots)]
    rule = f"more accurate by more than chance (McNemar, p < {CHANCE:g}, not corrected for the number of tests)"
    if not lines:
        return f"Nothing here is {rule} than `{DEFAULT}` on the same rows."
    return f"What is {rule} than `{DEFAULT}` on the same rows:\n\n" + "\n".join(lines)


def _losses_with(done: Done, shots: int | None) -> Iterator[str]:
    for candidate, name, own, other in _pairs(done):
        if other.mean() > own.mean() and (p := metrics.mcnemar(own, other)) < CHANCE:
            rows = "all rows" if shots is None else f"{shots} rows a class"
            scores = f"{figure(other.mean())} against {figure(own.mean())}"
            yield f"- {title(name)}, {rows}: `{candidate}` {scores} (p {p:.3f})"


def _pairs(done: Done) -> Iterator[tuple[str, str, Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]]:
    """Candidate, set, and which of the rows that it was asked about the default and it have right.

    Where one of them was tested on a sample that the other was not, they cannot be compared.
    """
    for (candidate, name), cell in done.items():
        own = done.get((DEFAULT, name))
        if own is None or candidate == DEFAULT or cell.get("test_rows", cell["n"]) != own["n"]:
            continue
        mine, other = bits(own), bits(cell)
        if "asked" in cell:
            mine = mine[unpack(cell["asked"], cell["test_rows"])]
        yield candidate, name, mine, other


AHEAD = {
    "macro_f1": ("macro F1", 1),
    "ece": ("ECE", -1),
    "train_seconds": ("training", -1),
    "texts_per_second": ("texts a second", 1),
    "bytes": ("size", -1),
}
"""What is compared: its name, and whether more or less is better."""


def _ahead(cells: Mapping[str, Any]) -> Iterator[str]:
    """In how many cells each candidate is ahead of the default, by however little."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for shots in SHOTS:
        done = _done(cells, str(shots or "all"))
        for candidate, name, mine, other in _pairs(done):
            own, cell = _told(done[DEFAULT, name]), _told(done[candidate, name])
            line = counts.setdefault(candidate, {"accuracy": [], **{key: [] for key in AHEAD}})
            line["accuracy"].append(bool(other.mean() > mine.mean()))
            for key, (_, sign) in AHEAD.items():
                fair = key not in ("macro_f1", "ece") or "asked" not in cell  # these are of other rows
                if fair and cell[key] is not None and own[key] is not None:
                    line[key].append(sign * (cell[key] - own[key]) > 0)
    if not counts:
        return
    heads = ["candidate", "accuracy", *(shown for shown, _ in AHEAD.values())]
    lines = [
        [f"`{one}`", *(f"{sum(found)} of {len(found)}" if found else "" for found in counts[one].values())]
        for one in _ordered(counts)
    ]
    yield f"In how many cells each is ahead of `{DEFAULT}`, by however little (F1 and ECE: on the same test rows only):"
    yield table(heads, lines)


def _told(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**cell, "train_seconds": cell["cost"]["stages"]["training"]["seconds"]}


# ------------------------------------------------------------------ chapters


def _chapter(cells: Mapping[str, Any], shots: str) -> list[str]:
    done = _done(cells, shots)
    if not done:
        return []
    names, candidates = in_order(name for _, name in done), _ordered(dict.fromkeys(one for one, _ in done))
    heads = ["candidate", *(title(name) for name in names)]

    def shown(of: Any, mean: str | None = None) -> str:
        lines = []
        for one in candidates:
            found = [done.get((one, name)) for name in names]
            line = [f"`{one}`", *("" if cell is None else of(cell) for cell in found)]
            lines.append([*line, _mean(found, mean)] if mean else line)
        return table([*heads, "mean"] if mean else heads, lines)

    parts = [
        "## All rows" if shots == "all" else f"## {shots} rows a class",
        "Accuracy with its 95% interval; in brackets the training and test rows, where they are a sample:",
        shown(_accuracy, "accuracy"),
        f"{METRICS['macro_f1'][0].upper()}{METRICS['macro_f1'][1:]}:",
        shown(lambda cell: figure(cell["macro_f1"]), "macro_f1"),
    ]
    if any(cell["ece"] is not None for cell in done.values()):
        parts += [
            "Expected calibration error; in brackets what probabilities without any error stay below in 95 of 100 "
            "such test sets (no figure: no probabilities):",
            shown(_calibration, "ece"),
        ]
    if any("failure_rate" in cell for cell in done.values()):
        parts += [
            "Share of texts whose answer names no label, which count as wrong:",
            shown(lambda cell: figure(cell["failure_rate"]) if "failure_rate" in cell else ""),
        ]
    return [
        *parts,
        "Seconds to train, in brackets those of the processor. Activations of the training texts are in a store; "
        "reading them takes as long as classifying as many. What is fine-tuned reads them itself:",
        shown(_training),
        "Texts a second, read anew; in brackets a second of the processor:",
        shown(_rates),
        "Size of what is saved, without the backbone where that is not changed, and energy of the training "
        "(~ estimated from stated watts):",
        table(SIZES, [_sizes(done, one, names) for one in candidates]),
    ]


def _ordered(candidates: Any) -> list[str]:
    return [*(name for name in CANDIDATES if name in candidates), *(one for one in candidates if one not in CANDIDATES)]


def _accuracy(cell: Mapping[str, Any]) -> str:
    fewer = ""
    if cell["train_rows"] < cell["all_rows"] or cell["n"] < cell.get("of_test_rows", 0) or "asked" in cell:
        fewer = f" ({cell['train_rows']:,}, {cell['n']:,})"
    return f"{figure(cell['accuracy'])} [{figure(cell['low'])}, {figure(cell['high'])}]{fewer}"


def _calibration(cell: Mapping[str, Any]) -> str:
    return "" if cell["ece"] is None else f"{figure(cell['ece'])} ({figure(cell['ece_95'])})"


def _training(cell: Mapping[str, Any]) -> str:
    stage = cell["cost"]["stages"]["training"]
    if stage["energy"] is None:  # elsewhere
        return ""
    star = "*" if cell.get("stored_share") else ""
    return f"{stage['seconds']:,.1f} ({cell['fit_cpu_seconds']:,.1f}){star}"


def _rates(cell: Mapping[str, Any]) -> str:
    if cell["cost"]["stages"]["training"]["energy"] is None:
        return ""
    return f"{cell['texts_per_second']:,.0f} ({cell['texts_per_cpu_second']:,.0f})"


def _mean(found: Sequence[Mapping[str, Any] | None], metric: str) -> str:
    """Over all sets; empty if one is missing."""
    values = [cell.get(metric) for cell in found if cell is not None]
    there = [value for value in values if value is not None]
    return figure(float(np.mean(there))) if len(there) == len(found) else ""


SIZES = ("candidate", "MB", "Wh of the training")


def _sizes(done: Done, candidate: str, names: Sequence[str]) -> list[str]:
    """Means over the sets; in brackets over how many, if not all."""
    cells = [done[candidate, name] for name in names if (candidate, name) in done]
    energies = [cell["cost"]["stages"]["training"]["energy"] for cell in cells]
    energies = [energy for energy in energies if energy]
    sizes = [cell["bytes"] for cell in cells if cell["bytes"] is not None]
    estimated = "~" if any(energy["estimated"] for energy in energies) else ""
    fewer = "" if len(cells) == len(names) else f" ({len(cells)})"
    return [
        f"`{candidate}`{fewer}",
        f"{np.mean(sizes) / 1e6:.1f}" if sizes else "",
        f"{estimated}{1000 * np.mean([energy['kwh'] for energy in energies]):.2g}" if energies else "",
    ]


# -------------------------------------------------------------------- absent

_WHY = {
    **dict.fromkeys(PROMPTED, "`--prompt-model` or `--prompt-url` asks it"),
    SETFIT: "`python benchmarks/setfit_comparison.py` runs it",
}


def _absent(cells: Mapping[str, Any], sets: Mapping[str, Any]) -> list[str]:
    """What was refused, and what was not measured."""
    lines = [f"- {_place(key)}: {cell['failed']}" for key, cell in cells.items() if "failed" in cell]
    rows = [str(shots or "all") for shots in SHOTS]
    for one in _ordered([*CANDIDATES, SETFIT, *PROMPTED, *(key.split("|")[2] for key in cells)]):
        missing = {own: [name for name in in_order(sets) if f"{name}|{own}|{one}" not in cells] for own in rows}
        if all(len(names) == len(sets) for names in missing.values()):
            where = "everywhere"
        else:
            where = "; ".join(
                f"{'all rows' if own == 'all' else f'{own} rows a class'} on {', '.join(map(title, names))}"
                for own, names in missing.items()
                if names
            )
        if where:
            lines.append(f"- `{one}`: not measured {where}" + (f"; {_WHY[one]}" if one in _WHY else ""))
    unknown = [name for name in TITLES if name not in sets]
    if unknown and sets:
        lines.append(f"- {', '.join(map(title, unknown))}: not measured")
    lines = list(dict.fromkeys(lines))
    return ["## Not measured", "\n".join(lines)] if lines else []


def _place(key: str) -> str:
    name, shots, candidate = key.split("|")
    return f"`{candidate}` on {title(name)}, {shots} rows{'' if shots == 'all' else ' a class'}"
