"""The page of Sparsify-then-Classify's tables: last layer against stc, from the JSON alone.

to_markdown   accuracy, macro F1, cost, depth, where stc loses, empty cells with their reasons, commands
curves        accuracy against depth, an SVG a set
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.curves import Line, draw
from sonde.bench.datasets import TITLES
from sonde.bench.paper import SETS, STC_CLAIMS, STC_FIGURES
from sonde.bench.tables import unpack
from sonde.learn import metrics

Content = Mapping[str, Any]

KINDS = {"pretrained": "pretrained", "finetuned": "fine-tuned", "lora": "LoRA"}
NAMES = {
    "linear": "last layer",
    "stc-hidden": "stc, hidden",
    "stc-ffn": "stc, feed-forward",
    "stc": "stc, both",
}
DEPTHS = {"depth-hidden": "hidden", "depth-ffn": "feed-forward"}
CHANCE = 0.05
"""A difference whose p value is larger may be chance."""


def to_markdown(content: Content) -> str:
    """The whole page."""
    cells, setting = content["cells"], content["setting"]
    trial = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    parts = [
        "# Sparsify-then-Classify: the paper's tables",
        "Written by `sonde bench stc`; every figure comes from `stc.json` beside this page.",
        machine.sentence(content["machine"]) if "machine" in content else "",
        f"{trial}Pretrained: {setting['backbone']}. *Last layer* is a logistic regression on the mean of the last "
        "hidden layer; *stc* takes the neurons that matter of every layer. One seed. Test rows in brackets (SST-2: "
        "both test splits).",
        f"The paper (arXiv 2311.15983) claims: {'; '.join(STC_CLAIMS)}.",
        "## Where stc loses to the last layer",
        _losses(cells),
        "## Accuracy",
        _scores(cells, "accuracy"),
        "## Macro F1",
        _scores(cells, "macro_f1"),
        "## What it takes",
        _costs(cells),
        "## Accuracy against depth",
        _depths(cells, setting["loss"]),
        "## Empty cells",
        "\n".join(f"- {line}" for line in _reasons(cells)),
        "## Each cell again",
        "\n".join(["```text", *dict.fromkeys(c["command"] for c in cells.values() if "command" in c), "```"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(cells: Content, name: str, kind: str, line: str) -> Mapping[str, Any] | None:
    """A cell that was measured."""
    cell = cells.get(f"{name}|{kind}|{line}")
    return None if cell is None or "failed" in cell else cell


def _scores(cells: Content, metric: str) -> str:
    """A row a checkpoint and line; beside each set the paper's figure, where it is known."""
    heads = ["checkpoint", "line"]
    for name in SETS:
        heads += [TITLES[name], "paper"]
    rows = []
    for kind, shown in KINDS.items():
        for line, title in NAMES.items():
            row = [shown, title]
            for name in SETS:
                cell, theirs = _cell(cells, name, kind, line), STC_FIGURES.get((metric, kind, line, name))
                row += [f"{_figure(cell[metric])} ({cell['n']:,})" if cell else "", _figure(theirs)]
            rows.append(row)
    return table(heads, rows)


def _figure(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}".removeprefix("0")


def _losses(cells: Content) -> str:
    """Every cell where the last layer is better by more than chance; and how many there are to compare."""
    pairs, lines = 0, []
    for name, kind, line in _keys():
        own, last = _cell(cells, name, kind, line), _cell(cells, name, kind, "linear")
        if line == "linear" or own is None or last is None:
            continue
        pairs += 1
        p = metrics.mcnemar(unpack(own["correct"], own["n"]), unpack(last["correct"], last["n"]))
        if own["accuracy"] < last["accuracy"] and p < CHANCE:
            lines.append(
                f"- {TITLES[name]}, {KINDS[kind]}, {NAMES[line]}: {_figure(own['accuracy'])} against "
                f"{_figure(last['accuracy'])} (p {p:.3f})"
            )
    rule = f"by more than chance (McNemar, p < {CHANCE:g}, not corrected for the number of tests)"
    if not pairs:
        return "Nothing to compare yet."
    return "\n".join([f"In {len(lines)} of {pairs} cells {rule}.", *([""] if lines else []), *lines])


def _keys() -> Iterator[tuple[str, str, str]]:
    """Set, checkpoint and line of every fit."""
    return ((name, kind, line) for name in SETS for kind in KINDS for line in NAMES)


def _costs(cells: Content) -> str:
    heads = ("set", "checkpoint", "line", "training rows", "neurons", "layers", "trained", "training s", "inference s",
             "Wh")  # fmt: skip
    rows = []
    for name, kind, line in _keys():
        cell = _cell(cells, name, kind, line)
        if cell is None:
            continue
        stages, energy = cell["cost"]["stages"], cell["cost"]["total"]["energy"]
        spent = f"{'~' if energy['estimated'] else ''}{1000 * energy['kwh']:.2g}" if energy else ""
        rows.append([
            TITLES[name], KINDS[kind], NAMES[line], f"{cell['train_rows']:,}", cell.get("neurons", ""),
            cell.get("layers", ""), f"{cell['cost']['parameters']['trained']:,}",
            f"{stages['training']['seconds']:,.1f}", f"{stages['inference']['seconds']:,.1f}", spent,
        ])  # fmt: skip
    if not rows:
        return "Nothing measured yet."
    note = (
        "Reading is part of both times, from the store where an earlier line had read the same. ~: estimated, seconds "
        "times stated watts. Layers: how deep texts are read.\n\n"
    )
    return note + table(heads, rows)


def _depths(cells: Content, loss: float) -> str:
    parts = []
    for name in SETS:
        rows: list[tuple[str, str, dict[int, float], str]] = []
        depths: list[int] = []
        for kind, shown in KINDS.items():
            for line, title in DEPTHS.items():
                cell = _cell(cells, name, kind, line)
                if cell is not None:
                    depths = max(depths, cell["depths"], key=len)
                    by_depth = dict(zip(cell["depths"], cell["test"], strict=True))
                    enough = f"{cell['enough']['depth']} ({_figure(cell['enough']['test'])})"
                    rows.append((shown, title, by_depth, enough))
        if rows:
            lines = [
                [shown, title, *(_figure(found.get(k)) for k in depths), enough] for shown, title, found, enough in rows
            ]
            picture = f"![Accuracy against depth on {TITLES[name]}](stc-depth-{name}.svg)"
            parts += [f"{TITLES[name]}:", table(["checkpoint", "neurons", *map(str, depths), "enough"], lines), picture]
    if not parts:
        return "Not measured yet."
    note = (
        f"A head on the kept neurons of the first k layers, on the test rows. *Enough*: the fewest layers that lose at "
        f"most {100 * loss:g} points out of fold against the best depth, and what they reach on the test rows."
    )
    return "\n\n".join([note, *parts])


def curves(cells: Content) -> dict[str, str]:
    """Data set -> its picture: accuracy against depth of every checkpoint, and the last layer alone as a dot."""
    found = {}
    for name in SETS:
        lines = []
        for kind, shown in KINDS.items():
            deepest = None
            for line, title in DEPTHS.items():
                cell = _cell(cells, name, kind, line)
                if cell is not None:
                    lines.append(Line(f"{shown}, {title}", list(zip(cell["depths"], cell["test"], strict=True))))
                    deepest = cell["depths"][-1]
            last = _cell(cells, name, kind, "linear")
            if deepest is not None and last is not None:
                lines.append(Line(f"{shown}, last layer", [(deepest, last["accuracy"])]))
        if lines:
            found[name] = draw(f"Accuracy against depth, {TITLES[name]}", "layers read", "accuracy", lines)
    return found


def _reasons(cells: Content) -> Iterator[str]:
    """Why cells are empty, a line for each reason."""
    alike: dict[str, list[str]] = {}
    for name in SETS:
        for kind, shown in KINDS.items():
            for line, title in {**NAMES, **DEPTHS}.items():
                cell = cells.get(f"{name}|{kind}|{line}")
                if cell is None:
                    alike.setdefault("not run yet; the same command goes on with it", []).append(
                        f"{TITLES[name]}, {shown}, {title}"
                    )
                elif "failed" in cell:
                    alike.setdefault(cell["failed"], []).append(f"{TITLES[name]}, {shown}, {title}")
    for reason, places in alike.items():
        yield f"{reason}: {len(places)} cells ({'; '.join(places[:2])}{'; ...' if len(places) > 2 else ''})"
    if not STC_FIGURES:
        yield "paper: no figure of its tables is at hand here; they are read off the paper into `sonde.bench.paper`"
