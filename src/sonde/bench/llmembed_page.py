"""The page of LLMEmbed's tables: ours beside theirs, from the JSON alone.

to_markdown   Tables 2 to 5, parameters, empty cells with their reasons, commands
figure_3      loss of the head over epochs, a line a set, as SVG
beside        rows of a table with two columns a set
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.cells import commands, table
from sonde.bench.curves import Line, draw
from sonde.bench.datasets import TITLES
from sonde.bench.paper import MEANS, SETS, TABLE_2, TABLE_3, TABLE_4, TABLE_5
from sonde.learn.recipes import find

Content = Mapping[str, Any]
Row = tuple[str, Mapping[str, str], Sequence[str], str, str]
"""Name, ours by set, the paper's in the order of `SETS`, our mean, the paper's."""

WHOLE = "llmembed-15"
"""The line that Tables 3 to 5 and Figure 3 are about."""
ROLES = ("deep", "bert", "roberta")
"""What it reads."""

THEIRS = {
    "plm-bert": ("PLM", "BERT-large"),
    "plm-roberta": ("PLM", "RoBERTa-large"),
    "io": ("IO prompt", "LLaMA2-7B"),
    "carp": ("CARP", "LLaMA2-7B"),
    "carp-175b": ("CARP", "GPT-3 175B"),
    **{method: (method, backbone) for method, backbone in TABLE_2 if method.startswith("llmembed")},
}
"""Our names of the lines -> those of the paper, in its order."""

TITLE = {
    "plm-bert": "PLM, in the role of BERT-large",
    "plm-roberta": "PLM, in the role of RoBERTa-large",
    "io": "IO prompting (*)",
    "carp": "CARP (*)",
    "carp-175b": "CARP with GPT-3 175B",
}
ELSEWHERE = "the paper's alone: a model of 175 billion parameters behind a service"
UNASKED = "no language model was given to ask: --prompt-model ID, or --prompt-url URL"


def to_markdown(content: Content) -> str:
    """The whole page."""
    cells = content["cells"]
    parts = [
        "# LLMEmbed: the paper's tables",
        "Written by `sonde bench llmembed`; every figure comes from `llmembed.json` beside this page, those of the "
        "columns *paper* from the paper (Liu et al., ACL 2024, arXiv 2406.03725).",
        *machine.sentences(cells.values()),
        _notes(content),
        "## Table 2: accuracy",
        beside("line", [_accuracy(cells, line) for line in THEIRS]),
        f"(*) On at most 200 test and 500 training rows: an exercise of the machinery, not evidence.{_failures(cells)}",
        "## Table 3: seconds",
        beside("stage", [*_embedding(cells, _seconds, 3), *_prompting(cells, _seconds, 3)]),
        _MARKS,
        "## Table 4: kilowatt hours",
        beside("stage", [*_embedding(cells, _kwh, 4), *_prompting(cells, _kwh, 4)]),
        "~: estimated, seconds times the paper's watts for that kind of work (an A100, not this machine), where no "
        "counter of the hardware can be read. The energy of an endpoint is unknown. *: too little, as in Table 3.",
        "## Table 5: budget",
        beside("what", list(_budget(cells))),
        "Tokens at $0.002 a thousand, electricity at $0.065 a kilowatt hour, as in the paper; `sonde.cost` takes "
        "others. CARP's tokens are those of the rows that were asked about, not of the whole set.",
        "## Parameters",
        _parameters(cells),
        "## Figure 3: loss of the head",
        _figure(cells),
        "## Empty cells",
        "\n".join(f"- {line}" for line in _reasons(content)) or "None.",
        "## Each cell again",
        commands(cells),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_MARKS = (
    "Of row 15, all three backbones. *: part of it came from the store or from the file of answers, so these seconds "
    "say too little. Training and inference include reading activations back from the store; where it did not hold "
    "them they are left out, and so is every sum that lacks a part. Training includes the choice of learning rate and "
    "epochs. The paper's seconds are of an A100-40G and whole sets, its training of 50 epochs; CARP's with LLaMA2-7B, "
    "on whole sets, ours on few rows."
)


def _notes(content: Content) -> str:
    setting = content["setting"]
    trial = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    heads = "the paper's setting (--paper)" if setting["paper"] else "sonde's default setting; --paper is the paper's"
    kinds = sorted({kind for cell in content["cells"].values() for kind in _kinds(cell)})
    dtypes = f" Read in {' and '.join(kinds)}." if kinds else ""
    bound = f" The deep one sees {setting['deep_tokens']} tokens of a text." if setting.get("deep_tokens") else ""
    models = dict.fromkeys(cell["prompted"] for cell in content["cells"].values() if "prompted" in cell)
    asked = f", asked: {', '.join(models)}" if models else ""
    return (
        f"{trial}Deep: {setting['deep']}, BERT: {setting['bert']}, RoBERTa: {setting['roberta']}{asked}. The paper's: "
        f"LLaMA2-7B, BERT-large, RoBERTa-large.{bound}{dtypes} Heads in {heads}. One seed. IMDb is the paper's MR. "
        "Rows in brackets: test rows. A mean is over all five sets."
    )


def _kinds(cell: Content) -> list[str]:
    """Number formats in which a cell was read."""
    found = cell.get("dtype", [])
    return [found] if isinstance(found, str) else list(found)


def beside(first: str, rows: Iterable[Row]) -> str:
    """A table with two columns a set, ours and the paper's, and two of means."""
    heads = [first]
    for name in SETS:
        heads += [TITLES[name], "paper"]
    lines = []
    for title, ours, theirs, mean, their_mean in rows:
        line = [title]
        for name, figure in zip(SETS, theirs, strict=True):
            line += [ours.get(name, ""), figure]
        lines.append([*line, mean, their_mean])
    return table([*heads, "mean", "paper"], lines)


def _cell(cells: Content, name: str, line: str) -> Mapping[str, Any] | None:
    """A cell that was measured."""
    cell = cells.get(f"{name}|{line}")
    return None if cell is None or "failed" in cell else cell


def _done(cells: Content, line: str) -> dict[str, Mapping[str, Any]]:
    return {name: cell for name in SETS if (cell := _cell(cells, name, line)) is not None}


def _mean(values: Mapping[str, float | None]) -> float | None:
    """Over all sets, or none."""
    there = [value for value in values.values() if value is not None]
    return float(np.mean(there)) if len(there) == len(SETS) else None


# ------------------------------------------------------------------ accuracy


def _accuracy(cells: Content, line: str) -> Row:
    theirs = TABLE_2[THEIRS[line]]
    ours = _done(cells, line)
    shown = {name: f"{_score(cell['accuracy'])} ({cell['n']:,})" for name, cell in ours.items()}
    mean = _mean({name: cell["accuracy"] for name, cell in ours.items()})
    known = [score for score in theirs if score is not None]
    title = TITLE.get(line) or f"{line.removeprefix('llmembed-')}: {find(line).title}"
    their_mean = _score(float(np.mean(known))) if len(known) == len(SETS) else ""
    return title, shown, [_score(score) for score in theirs], _score(mean), their_mean


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}".removeprefix("0")


def _failures(cells: Content) -> str:
    """How many answers named no label."""
    found = [
        f"{TITLES[name]} {line.upper()} {cell['failure_rate']:.0%}"
        for line in ("io", "carp")
        for name, cell in _done(cells, line).items()
    ]
    return f" Texts whose answers name no label, counted as wrong: {', '.join(found)}." if found else ""


# -------------------------------------------------------------- cost by stage

Stage = Mapping[str, Any]


def _seconds(stages: Sequence[Stage]) -> float | None:
    return float(sum(stage["seconds"] for stage in stages))


def _kwh(stages: Sequence[Stage]) -> float | None:
    energies = [stage["energy"] for stage in stages]
    return None if None in energies else float(sum(energy["kwh"] for energy in energies))


def _embedding(cells: Content, measure: Any, number: int) -> Iterator[Row]:
    """The stages of row 15."""
    readings = {part: _readings(cells, part) for part in ("train", "test")}
    fits = {name: cell["cost"]["stages"] for name, cell in _done(cells, WHOLE).items() if not cell.get("read_within")}
    stored = {
        part: {n for n, found in by_set.items() if any(one["stored_share"] > 0 for one in found)}
        for part, by_set in readings.items()
    }
    parts = {
        part: {n: [one["cost"]["stages"][f"reading_{part}"] for one in found] for n, found in by_set.items()}
        for part, by_set in readings.items()
    }
    training, inference = ({n: [stages[one]] for n, stages in fits.items()} for one in ("training", "inference"))
    both = {n: found + parts["test"][n] for n, found in parts["train"].items() if n in parts["test"]}
    either = stored["train"] | stored["test"]
    if number == 3:
        yield _row("LLMEmbed", "reading train", parts["train"], measure, number, stored["train"])
        yield _row("LLMEmbed", "reading test", parts["test"], measure, number, stored["test"])
        yield _row("LLMEmbed", "training", training, measure, number)
        yield _row("LLMEmbed", "inference", inference, measure, number)
    else:
        yield _row("LLMEmbed", "reading", both, measure, number, either)
        heads = {n: training[n] + inference[n] for n in fits}
        yield _row("LLMEmbed", "training and inference", heads, measure, number)
    every = {n: found + training[n] + inference[n] for n, found in both.items() if n in fits}
    yield _row("LLMEmbed", "all", every, measure, number, either)


def _readings(cells: Content, part: str) -> dict[str, list[Mapping[str, Any]]]:
    """Set -> the readings of one split by all three backbones, of sets that have row 15; where one is missing, none."""
    found = {}
    for name in _done(cells, WHOLE):
        own = [cell for role in ROLES if (cell := _cell(cells, name, f"reading {part}|{role}"))]
        if len(own) == len(ROLES):
            found[name] = own
    return found


def _prompting(cells: Content, measure: Any, number: int) -> Iterator[Row]:
    """CARP's stages; only the seconds of retrieval are known apart from its inference."""
    carp = _done(cells, "carp")
    stages = {name: cell["cost"]["stages"] for name, cell in carp.items()}
    stored = {name for name, cell in carp.items() if cell["stored_share"] > 0}
    reasons = {name: [one["generating_reasons"]] for name, one in stages.items()}
    answers = {name: [one["generating_answers"]] for name, one in stages.items()}
    yield _row("CARP", "clues and reasoning", reasons, measure, number, stored)
    if number == 3:
        retrieving = {name: cell["retrieving_seconds"] for name, cell in carp.items()}
        asking = {name: one["generating_answers"]["seconds"] - retrieving[name] for name, one in stages.items()}
        for stage, found, marked in (("retrieval", retrieving, set()), ("inference", asking, stored)):
            yield _row("CARP", stage, {n: [{"seconds": one}] for n, one in found.items()}, measure, number, marked)
    else:
        yield _row("CARP", "retrieval", {}, measure, number)
        yield _row("CARP", "inference", answers, measure, number, stored)
    yield _row("CARP", "all", {name: reasons[name] + answers[name] for name in stages}, measure, number, stored)


def _row(
    method: str,
    stage: str,
    parts: Mapping[str, Sequence[Stage]],
    measure: Any,
    number: int,
    stored: Iterable[str] = (),
) -> Row:
    theirs = (TABLE_3 if number == 3 else TABLE_4)[method, stage]
    marked = set(stored)
    values = {name: measure(found) for name, found in parts.items()}
    shown = {}
    for name, value in values.items():
        energies = [one["energy"] for one in parts[name]] if number == 4 else []
        guess = "~" if any(one["estimated"] for one in energies if one) else ""
        star = "*" if name in marked else ""
        shown[name] = "" if value is None else f"{guess}{_amount(value)}{star}"
    mean = _mean(values) if stage == "all" else None
    their_mean = _printed(MEANS[number, method]) if stage == "all" else ""
    title = f"{method}{' (*)' if method == 'CARP' and number == 4 else ''}: {stage}"
    return title, shown, [_printed(one) for one in theirs], "" if mean is None else _amount(mean), their_mean


def _printed(value: float) -> str:
    """A figure as the paper prints it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _amount(value: float) -> str:
    """Whole where it is large, three digits where it is small."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


# -------------------------------------------------------------------- budget


def _budget(cells: Content) -> Iterator[Row]:
    carp = {name: cell["cost"]["stages"] for name, cell in _done(cells, "carp").items()}
    reasons = {name: _tokens(stages["generating_reasons"]) for name, stages in carp.items()}
    answers = {name: _tokens(stages["generating_answers"]) for name, stages in carp.items()}
    whole = {name: reasons[name] + answers[name] for name in carp}
    for what, tokens in (
        ("tokens of clues and reasoning", reasons),
        ("tokens of inference", answers),
        ("tokens", whole),
    ):
        theirs = [f"{one:,.0f}" for one in TABLE_5["CARP", what]]
        yield f"CARP: {what}", {name: f"{one:,}" for name, one in tokens.items()}, theirs, "", ""
    spent = {name: sum(stage["usd_tokens"] for stage in stages.values()) for name, stages in carp.items()}
    yield _dollars("CARP", "dollars for tokens", spent)
    train, test = (_readings(cells, part) for part in ("train", "test"))
    bills: dict[str, float] = {}
    stored = set()
    for name, cell in _done(cells, WHOLE).items():
        readings = train.get(name, []) + test.get(name, [])
        dollars = [stage["usd_electricity"] for one in (cell, *readings) for stage in one["cost"]["stages"].values()]
        if name in train and name in test and not cell.get("read_within") and None not in dollars:
            bills[name] = sum(dollars)
            stored |= {name} if any(one["stored_share"] > 0 for one in readings) else set()
    yield _dollars("LLMEmbed", "dollars for electricity", bills, stored)


def _tokens(stage: Stage) -> int:
    return int(stage["prompt_tokens"] + stage["new_tokens"])


def _dollars(method: str, what: str, ours: Mapping[str, float], stored: Collection[str] = ()) -> Row:
    mean = _mean(ours)
    shown = {name: f"${one:.3g}{'*' if name in stored else ''}" for name, one in ours.items()}
    theirs = [f"${one:g}" for one in TABLE_5[method, what]]
    return f"{method}: {what}", shown, theirs, "" if mean is None else f"${mean:.3g}", f"${MEANS[5, method]:g}"


def _parameters(cells: Content) -> str:
    """Of every line, with the most classes that it has seen."""
    rows = []
    for line in THEIRS:
        found = [cell["cost"]["parameters"] for cell in _done(cells, line).values() if cell["cost"]["parameters"]]
        if found:
            trained = sorted({one["trained"] for one in found})
            span = f"{trained[0]:,}" if len(trained) == 1 else f"{trained[0]:,} to {trained[-1]:,}"
            rows.append([line, f"{found[0]['backbone']:,}", span])
    note = "Frozen, and trained (by set); the paper counts 7 billion against the 175 billion of GPT-3.\n\n"
    return note + table(["line", "backbones", "trained"], rows) if rows else "None measured yet."


# ------------------------------------------------------------------ figure 3


def figure_3(cells: Content) -> str | None:
    """SVG of the training losses of row 15; None if it was not fitted on any set."""
    losses = {name: cell["losses"] for name, cell in _done(cells, WHOLE).items() if cell["losses"]}
    if not losses:
        return None
    lines = [Line(TITLES[name], [(float(i), y) for i, y in enumerate(one, 1)]) for name, one in losses.items()]
    return draw("Loss of the head of row 15 on its training rows", "epoch", "cross entropy", lines)


def _figure(cells: Content) -> str:
    if figure_3(cells) is None:
        return "Row 15 has not been fitted yet."
    return (
        "![Training loss of row 15 over epochs, a line a set](llmembed-losses.svg)\n\n"
        "The run that chose the number of epochs. The paper's figure has no numbers; it says that its losses converge "
        "at around 50 epochs."
    )


# ------------------------------------------------------------- empty cells


def _reasons(content: Content) -> Iterator[str]:
    """Why cells are empty, a line for each kind."""
    cells = content["cells"]
    for key, cell in cells.items():
        name, line, *role = key.split("|")
        if role and "failed" in cell:
            yield f"{TITLES[name]}, {line} by the backbone in the role of {role[0]}: {cell['failed']}"
        if line == WHOLE and cell.get("read_within"):
            yield f"{TITLES[name]}, Tables 3 to 5: the store lacked texts of row 15, so that its fit read them"
    unreached: dict[str, list[str]] = {}
    for line in THEIRS:
        for name in SETS:
            cell = cells.get(f"{name}|{line}")
            if cell is not None and "failed" in cell:
                yield f"{TITLES[name]}, {line}: {cell['failed']}"
            elif cell is None:
                unreached.setdefault(line, []).append(TITLES[name])
    asked = any("prompted" in cell for cell in cells.values())
    alike: dict[str, list[str]] = {}
    for line, names in unreached.items():
        if line == "carp-175b":
            yield f"{line}: {ELSEWHERE}; its figure on MR is very likely of another data set, and left out"
        elif line in ("io", "carp") and not asked:
            yield f"{line}: {UNASKED}"
        else:
            alike.setdefault(", ".join(names), []).append(line)
    for sets, lines in alike.items():
        yield f"{sets}, not run yet (the same command goes on with them): {', '.join(lines)}"
    yield "Retrieval, in Table 4: its energy is part of that of CARP's inference here"
