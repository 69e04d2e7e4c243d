"""The page of Sparsify-then-Classify's tables: last layer against stc, from the JSON alone.

to_markdown   accuracy, macro F1, calibration, cost, depth, where stc loses, empty cells with reasons, commands
curves        accuracy against depth, an SVG a set
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sonde.bench import machine
from sonde.bench.cells import commands, share, table
from sonde.bench.compare import CHANCE, bits, figure
from sonde.bench.curves import Line, draw
from sonde.bench.datasets import TITLES
from sonde.bench.paper import SETS, STC_CLAIMS, STC_FIGURES
from sonde.learn import metrics

Content = Mapping[str, Any]

KINDS = {"pretrained": "pretrained", "finetuned": "fine-tuned", "lora": "LoRA"}
OWN = "own"
NAMES = {
    OWN: "own head",
    "linear": "last layer",
    "stc-hidden": "stc, hidden",
    "stc-ffn": "stc, feed-forward",
    "stc": "stc, both",
}
DEPTHS = {"depth-hidden": "hidden", "depth-ffn": "feed-forward"}
SPLITS = {"train": "training", "test": "test"}


def to_markdown(content: Content) -> str:
    """The whole page."""
    cells, setting = content["cells"], content["setting"]
    trial = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    parts = [
        "# Sparsify-then-Classify: the paper's tables",
        "Written by `sonde bench stc`; every figure comes from `stc.json` beside this page.",
        *machine.sentences(cells.values()),
        f"{trial}Pretrained: {setting['backbone']}. *Own head* is the classification head that a checkpoint was "
        "fine-tuned with; *last layer* is a logistic regression on the mean of the last hidden layer; *stc* takes the "
        "neurons that matter of every layer. One seed.",
        _sizes(cells),
        f"The paper (arXiv 2311.15983) claims: {'; '.join(STC_CLAIMS)}.",
        "## Where stc loses",
        _losses(cells),
        "## Accuracy",
        "With its 95% interval; in brackets the test rows (SST-2: both test splits).",
        _scores(cells, "accuracy"),
        "## Macro F1",
        _scores(cells, "macro_f1"),
        *_calibration(cells),
        "## What it takes",
        _readings(cells),
        _costs(cells),
        "## Accuracy against depth",
        _depths(cells, setting["loss"]),
        "## Empty cells",
        "\n".join(f"- {line}" for line in _reasons(cells)),
        "## Each cell again",
        commands(cells),
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
            if _never(kind, line):
                continue
            row = [shown, title]
            for name in SETS:
                cell, theirs = _cell(cells, name, kind, line), STC_FIGURES.get((metric, kind, line, name))
                row += [_score(cell, metric) if cell else "", _figure(theirs)]
            rows.append(row)
    return table(heads, rows)


def _score(cell: Content, metric: str) -> str:
    interval = f" [{figure(cell['low'])}, {figure(cell['high'])}]" if metric == "accuracy" else ""
    return f"{_figure(cell[metric])}{interval} ({_rows(cell, 'test')})"


def _rows(cell: Content, split: str) -> str:
    return share(cell["used_rows"][split], cell["of_rows"][split])


def _figure(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}".removeprefix("0")


def _calibration(cells: Content) -> Iterator[str]:
    """A row a checkpoint and line."""
    rows = []
    for kind, shown in KINDS.items():
        for line, title in NAMES.items():
            found = [_cell(cells, name, kind, line) for name in SETS]
            errors = ["" if not one or one["ece"] is None else f"{figure(one['ece'])} ({figure(one['ece_95'])})"
                      for one in found]  # fmt: skip
            if any(errors):
                rows.append([shown, title, *errors])
    if rows:
        yield "## Calibration"
        yield (
            "Expected calibration error; in brackets what probabilities without any error stay below in 95 of 100 such "
            "test sets. An own head has no temperature:"
        )
        yield table(["checkpoint", "line", *(TITLES[name] for name in SETS)], rows)


RIVALS = ("linear", OWN)
"""What `stc` is judged against, on the same checkpoint."""


def _losses(cells: Content) -> str:
    """Every cell where the last layer or the own head is better by more than chance; and how many pairs there are."""
    pairs, lines = 0, []
    for name, kind, line in _keys():
        for rival in RIVALS:
            own, other = _cell(cells, name, kind, line), _cell(cells, name, kind, rival)
            if line in RIVALS or own is None or other is None:
                continue
            if any(own.get(key) != other.get(key) for key in ("n", "fingerprint")):
                continue  # of other test rows, or of a checkpoint that was there before
            pairs += 1
            p = metrics.mcnemar(bits(own), bits(other))
            if own["accuracy"] < other["accuracy"] and p < CHANCE:
                lines.append(
                    f"- {TITLES[name]}, {KINDS[kind]}, {NAMES[line]}: {_figure(own['accuracy'])} against "
                    f"{_figure(other['accuracy'])} of the {NAMES[rival]} (p {p:.3f})"
                )
    rule = f"by more than chance (McNemar, p < {CHANCE:g}, not corrected for the number of tests)"
    if not pairs:
        return "Nothing to compare yet."
    return "\n".join([f"In {len(lines)} of {pairs} pairs {rule}.", *([""] if lines else []), *lines])


def _never(kind: str, line: str) -> bool:
    """Whether there can be no such cell: a pretrained checkpoint has no head."""
    return kind == "pretrained" and line == OWN


def _keys() -> Iterator[tuple[str, str, str]]:
    """Set, checkpoint and line of every fit."""
    return ((name, kind, line) for name in SETS for kind in KINDS for line in NAMES if not _never(kind, line))


def _sizes(cells: Content) -> str:
    """Training and test rows of each set, of how many, and on how many of them each checkpoint was fine-tuned."""
    lines = []
    for name in SETS:
        own = [cell for key, cell in cells.items() if key.startswith(f"{name}|") and "failed" not in cell]
        counts = {
            split: dict.fromkeys(_rows(cell, split) for cell in own if split in cell["used_rows"]) for split in SPLITS
        }
        used = [f"{' or '.join(counts[split])} {shown}" for split, shown in SPLITS.items() if counts[split]]
        tuned = [
            f"the {shown} checkpoint was trained on {cell['tuning']['rows']:,}"
            for kind, shown in KINDS.items()
            if (cell := _cell(cells, name, kind, OWN)) and cell["tuning"]
        ]
        if used:
            lines.append("; ".join([f"- {TITLES[name]}: {' and '.join(used)} rows", *tuned]))
    return "Rows (a part of them is a seeded sample of every class):\n\n" + "\n".join(lines) if lines else ""


def _readings(cells: Content) -> str:
    """What reading takes, once for all lines of a checkpoint."""
    heads = ("set", "checkpoint", "rows", "tokens", "read in", "seconds", "texts a second", "Wh")
    rows = []
    for name in SETS:
        for kind, shown in KINDS.items():
            found = [cell for split in SPLITS if (cell := _cell(cells, name, kind, f"reading {split}"))]
            if len(found) < len(SPLITS):
                continue
            count, costs = sum(cell["rows"] for cell in found), [cell["cost"]["total"] for cell in found]
            seconds, star = sum(one["seconds"] for one in costs), "*" if any(c["stored_share"] for c in found) else ""
            rows.append([
                TITLES[name], shown, f"{count:,}", f"{sum(cell['tokens'] for cell in found):,}", found[0]["dtype"],
                f"{seconds:,.0f}{star}", f"{count / seconds:,.0f}{star}", _wh([one["energy"] for one in costs]),
            ])  # fmt: skip
    if not rows:
        return ""
    note = (
        "Training and test rows are read once for all lines: hidden states (mean and maximum) and feed-forward "
        "activations (mean) of every layer. *: part of it was in the store, so this says too little.\n\n"
    )
    return note + table(heads, rows)


def _wh(energies: list[Mapping[str, Any] | None]) -> str:
    """Their sum; nothing where one is unknown."""
    known = [energy for energy in energies if energy]
    if len(known) < len(energies):
        return ""
    estimated = any(energy["estimated"] for energy in known)
    return f"{'~' if estimated else ''}{1000 * sum(energy['kwh'] for energy in known):.2g}"


def _costs(cells: Content) -> str:
    heads = ("set", "checkpoint", "line", "training rows", "neurons", "layers", "trained", "training s",
             "Wh of the training", "inference s", "texts a second", "MB")  # fmt: skip
    rows = []
    for name, kind, line in _keys():
        cell = _cell(cells, name, kind, line)
        if cell is None:
            continue
        counts, (trained, *training) = _training_rows(cell), _trained(cell)
        rows.append([
            TITLES[name], KINDS[kind], NAMES[line], counts, cell.get("neurons", ""), cell.get("layers", ""), trained,
            *training, f"{cell['cost']['stages']['inference_on_all_rows']['seconds']:,.1f}{_star(cell)}",
            f"{cell['texts_per_second']:,.0f}", "" if cell["bytes"] is None else f"{cell['bytes'] / 1e6:.1f}",
        ])  # fmt: skip
    if not rows:
        return "Nothing measured yet."
    note = (
        "Training and inference on all test rows take activations from the store; an own head was trained with its "
        "backbone, and reads. *: the store did not hold them, so they were read meanwhile. Texts a second: some test "
        "rows, read anew, as deep as the line needs (*layers*). MB: what is saved, without the backbone. ~: estimated, "
        "seconds times stated watts.\n\n"
    )
    return note + table(heads, rows)


def _star(cell: Content) -> str:
    return "*" if cell.get("read_within") else ""


def _training_rows(cell: Content) -> str:
    """Of a head from elsewhere they are not known."""
    if "tuning" not in cell:
        return _rows(cell, "train")
    return f"{cell['tuning']['rows']:,}" if cell["tuning"] else ""


def _trained(cell: Content) -> tuple[str, str, str]:
    """Trained parameters, seconds, watt hours; of a head from elsewhere nothing is known."""
    if "tuning" not in cell:
        stage = cell["cost"]["stages"]["training"]
        watt_hours = _wh([stage["energy"]])
        star = _star(cell)
        return (
            f"{cell['cost']['parameters']['trained']:,}",
            f"{stage['seconds']:,.1f}{star}",
            f"{watt_hours}{star}" if watt_hours else "",
        )
    story = cell["tuning"]
    if not story:
        return "", "", ""
    return f"{story['parameters']['trained']:,}", f"{story['seconds']:,.1f}", ""


def _depths(cells: Content, loss: float) -> str:
    parts = []
    for name in SETS:
        rows: list[tuple[list[str], dict[int, float], str]] = []
        depths: list[int] = []
        for kind, shown in KINDS.items():
            for line, title in DEPTHS.items():
                cell = _cell(cells, name, kind, line)
                if cell is not None:
                    depths = max(depths, cell["depths"], key=len)
                    by_depth = dict(zip(cell["depths"], cell["test"], strict=True))
                    enough = f"{cell['enough']['depth']} ({_figure(cell['enough']['test'])})"
                    rows.append(([shown, title, _rows(cell, "test")], by_depth, enough))
        if rows:
            heads = ["checkpoint", "neurons", "test rows", *map(str, depths), "enough"]
            lines = [[*first, *(_figure(found.get(k)) for k in depths), enough] for first, found, enough in rows]
            picture = f"![Accuracy against depth on {TITLES[name]}](stc-depth-{name}.svg)"
            parts += [f"{TITLES[name]}:", table(heads, lines), picture]
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
                if _never(kind, line):
                    continue
                if cell is None:
                    alike.setdefault("not run yet; the same command goes on with it", []).append(
                        f"{TITLES[name]}, {shown}, {title}"
                    )
                elif "failed" in cell:
                    alike.setdefault(cell["failed"], []).append(f"{TITLES[name]}, {shown}, {title}")
            for split, rows in SPLITS.items():
                if "failed" in (cell := cells.get(f"{name}|{kind}|reading {split}", {})):
                    place = f"{TITLES[name]}, {shown}, reading of the {rows} rows"
                    alike.setdefault(cell["failed"], []).append(place)
    for reason, places in alike.items():
        yield f"{reason}: {len(places)} cells ({'; '.join(places[:2])}{'; ...' if len(places) > 2 else ''})"
    if not STC_FIGURES:
        yield "paper: no figure of its tables is at hand here; they are read off the paper into `sonde.bench.paper`"
