"""The tables of LLMEmbed (Liu et al., ACL 2024, arXiv 2406.03725), with backbones of one's own.

run        read, fit, ask and measure every cell; write llmembed.{json,md} and llmembed-losses.svg
Backbones  which model plays which role
LINES      name of a line of Table 2 -> how it is made
command_of the command that makes one cell again

Every finished cell is kept in the JSON file at once: a run that is stopped goes on where it was, and what was refused
is tried again.
"""

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.bench import machine
from sonde.bench.cells import Cells, attempted, opened, write_page
from sonde.bench.datasets import DataSet, of_papers, read_split
from sonde.bench.llmembed_page import ROLES, figure_3, to_markdown
from sonde.bench.paper import ENCODER_TOKENS, MAX_TOKENS
from sonde.bench.reading import Wanted, into_store
from sonde.bench.tables import pack
from sonde.classifier import TextClassifier
from sonde.cost import Meter, parameters_of
from sonde.errors import ArgumentError, SondeWarning, choose
from sonde.progress import track
from sonde.read.backbone import load_backbone
from sonde.read.sources import MIN_TOKENS, expand_blocks, open_sources, open_store
from sonde.tables import write_atomically

if TYPE_CHECKING:
    from sonde.bench.prompted import Prompt

SITES = {"deep": ("hidden.1:", "mean"), "bert": ("sentence", ""), "roberta": ("sentence", "")}
"""What is read of each role, for all lines together."""

PLM = {"plm-bert": "bert", "plm-roberta": "roberta"}
PROMPTED = ("io", "carp")
ROWS = tuple(f"llmembed-{row}" for row in range(1, 16))
LINES = (*PLM, *PROMPTED, *ROWS)
"""In the order of Table 2."""

SEED = 0
"""Of folds and heads. One: `bench tables` shows the spread over three."""

STAGES = ("train", "test")

ALONE = {"deep": "llmembed-1", "bert": "plm-bert", "roberta": "plm-roberta"}
"""A line that reads nothing but this role."""


@dataclass(frozen=True)
class Backbones:
    """Which model plays which role."""

    deep: str
    """The last five of its blocks; the paper's LLaMA2-7B."""
    bert: str
    """A sentence embedding; the paper's BERT-large."""
    roberta: str
    """A sentence embedding; the paper's RoBERTa-large."""

    def of(self, line: str) -> tuple[str, ...]:
        """The roles that a line of Table 2 reads, in the order of its recipe."""
        if line in PLM:
            return (PLM[line],)
        row = int(line.rpartition("-")[2])
        return ROLES[: 1 if row < 5 else 2 if row < 8 else 3]

    def names(self, roles: Sequence[str]) -> tuple[str, ...]:
        """The models in these roles."""
        return tuple(getattr(self, role) for role in roles)


def run(
    *,
    data: Path,
    models: Path | None,
    out: Path,
    rows: int | None,
    only: list[str] | None,
    cache: Any,
    recipes: Sequence[str] | None = None,
    deep: str | None = None,
    bert: str | None = None,
    roberta: str | None = None,
    prompt_model: str | None = None,
    prompt_url: str | None = None,
    budget_tokens: int | None = None,
    paper: bool = False,
    deep_tokens: int | None = None,
) -> list[Path]:
    """Fill every cell and write the page, the figures and Figure 3, also when it is stopped.

    Parameters
    ----------
    data, out, rows, only, cache : as in `bench.tables.run`; `models` is not needed
    recipes : sequence of str or None
        Lines of Table 2, of `LINES`; by default all. Cells of others stay in the tables.
    deep, bert, roberta : str
        Hub ids or folders; one may play several roles.
    prompt_model, prompt_url : str or None
        A causal language model for IO and CARP, or an OpenAI-compatible endpoint (and what it calls the model).
    budget_tokens : int, optional
        What the endpoint may cost, in all.
    paper : bool
        Heads in the paper's setting, and its bounds on tokens as far as the backbones have positions.
    deep_tokens : int, optional
        Most tokens of a text for the deep backbone; by default as many as it has positions, at most 512. Not with
        `paper`.

    Raises
    ------
    ArgumentError
        If a role is empty, a line unknown, `deep_tokens` too few, there is no store, two options contradict each other,
        or the folder holds cells of another setting.
    """
    backbones = _backbones(deep, bert, roberta)
    lines = [choose("The line", name, LINES) for name in recipes or LINES]
    prompt = _prompt(prompt_model, prompt_url, backbones, cache, budget_tokens)
    if open_store(cache) is None:
        raise ArgumentError("`sonde bench llmembed` needs a store, so that texts are read once; leave out --no-cache.")
    if paper and deep_tokens is not None:
        raise ArgumentError("--paper has bounds on tokens of its own; leave out --deep-tokens.")
    if deep_tokens is not None and deep_tokens < MIN_TOKENS:
        raise ArgumentError(f"--deep-tokens is {deep_tokens}; it must be at least {MIN_TOKENS}, or be left out.")
    setting = {**asdict(backbones), "paper": paper, "deep_tokens": deep_tokens, "limit": rows, "seed": SEED}
    cells = opened(Path(out) / "llmembed.json", setting)
    bench = _Bench(Path(data), backbones, paper, deep_tokens, rows, cache, prompt, cells)
    names = of_papers(only)
    try:
        with track("llmembed", len(names) * len(lines), "cells") as advance:
            for name in names:
                train, test = (read_split(bench.data, name, split).take(rows) for split in STAGES)
                for line in lines:
                    bench.fill(name, line, train, test)
                    advance(1)
    finally:
        written = _write(cells) if cells.content["cells"] else []
    return written


def _write(cells: Cells) -> list[Path]:
    """The page, and Figure 3 where there is one."""
    written = write_page(cells.path, to_markdown(cells.content))
    drawn = figure_3(cells.content["cells"])
    if drawn is None:
        return written
    picture = cells.path.with_name("llmembed-losses.svg")
    with write_atomically(picture) as file:
        file.write(drawn)
    return [*written, picture]


def _backbones(deep: str | None, bert: str | None, roberta: str | None) -> Backbones:
    if not (deep and bert and roberta):
        raise ArgumentError(
            "`sonde bench llmembed` needs a model in each of the paper's roles: --deep, --bert and --roberta, each a "
            "hub id or folder. The paper's: meta-llama/Llama-2-7b-hf, bert-large-uncased, roberta-large; one model may "
            "play all three."
        )
    return Backbones(deep, bert, roberta)


def _prompt(
    model: str | None, url: str | None, backbones: Backbones, cache: Any, tokens: int | None
) -> "Prompt | None":
    if not (model or url):
        return None
    from sonde.bench.prompted import Prompt  # it brings transformers' generation, which other lines do without

    return Prompt(model, url, backbones.roberta, cache, tokens)


@dataclass(frozen=True)
class _Bench:
    """What all cells share."""

    data: Path
    backbones: Backbones
    paper: bool
    deep_tokens: int | None
    rows: int | None
    cache: Any
    prompt: "Prompt | None"
    cells: Cells
    unstored: set[tuple[str, str]] = field(default_factory=set)
    """Set and role whose texts the store does not take."""

    def fill(self, name: str, line: str, train: DataSet, test: DataSet) -> None:
        """One cell of Table 2, with the readings that it needs."""
        if line in PROMPTED:
            if self.prompt is not None and not self._has(f"{name}|{line}", self.prompt.name):
                found = self.prompt.measure(line, self.data, name, train, test)
                self._put(f"{name}|{line}", name, line, found)
            return
        due, splits = not self._has(f"{name}|{line}"), dict(zip(STAGES, (train, test), strict=True))
        stored = [self._stored(name, role, splits, due) for role in self.backbones.of(line)]
        if due:
            found = attempted(lambda: self._fit(name, line, train, test))
            self._put(f"{name}|{line}", name, line, found if all(stored) else {**found, "read_within": True})

    def _has(self, key: str, prompt: str | None = None) -> bool:
        """Whether a cell is finished, with this language model if one is asked."""
        return not self.cells.lacks(key) and self.cells.content["cells"][key].get("prompted") == prompt

    def _put(self, key: str, name: str, line: str, cell: dict[str, Any]) -> None:
        self.cells.put(key, {**cell, "command": self._command(name, line), "machine": machine.describe()})

    def _command(self, name: str, line: str) -> str:
        prompt = self.prompt.options if self.prompt and line in PROMPTED else {}
        options = {"data": str(self.data), **asdict(self.backbones), **prompt, "rows": self.rows}
        own = {"paper": self.paper, "deep-tokens": self.deep_tokens, "cache": cache_option(self.cache)}
        return command_of("llmembed", name, line, {**options, **own})

    def bounds(self, name: str, roles: Sequence[str]) -> tuple[int | None, ...]:
        """Most tokens of a text for each role; those of the paper as far as the backbones have positions."""
        if not self.paper:
            return tuple(self.deep_tokens if role == "deep" else None for role in roles)
        found = []
        for role, backbone in zip(roles, self.backbones.names(roles), strict=True):
            wanted = MAX_TOKENS[name] if role == "deep" else ENCODER_TOKENS
            found.append(min(wanted, load_backbone(backbone).max_positions or wanted))
        return tuple(found)

    def _stored(self, name: str, role: str, splits: Mapping[str, DataSet], due: bool) -> bool:
        """Read what the lines need of a role; whether the store holds it. What it refuses is not tried twice."""

        def put(split: str, cell: dict[str, Any]) -> None:
            self._put(f"{name}|reading {split}|{role}", name, ALONE[role], cell)

        if (name, role) in self.unstored:
            return False
        texts = {split: rows.texts for split, rows in splits.items()}
        new = [split for split in texts if not self._has(f"{name}|reading {split}|{role}")]
        if not into_store(texts, partial(self._wanted, name, role), self.cache, put, new=new, due=due):
            self.unstored.add((name, role))
        return (name, role) not in self.unstored

    def _wanted(self, name: str, role: str) -> Wanted:
        """Everything that the lines need of one role."""
        model, (bound,) = self.backbones.names([role])[0], self.bounds(name, [role])
        sources = open_sources({0: model}, max_tokens=(bound,), long_text="cut", dtype="auto", device="auto")
        return sources, expand_blocks(0, sources[0], *SITES[role])[-5:]  # the last five of the deep one

    def _fit(self, name: str, line: str, train: DataSet, test: DataSet) -> dict[str, Any]:
        roles, meter = self.backbones.of(line), Meter()
        classifier = TextClassifier(
            "plm" if line in PLM else line,
            self.backbones.names(roles),
            max_tokens=self.bounds(name, roles),
            cache=self.cache,
            random_state=SEED,
            paper=self.paper,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SondeWarning)  # what is cut stands in the readings
            with meter.stage("training"):
                classifier.fit(train.texts, train.labels)
            with meter.stage("inference"):
                right = classifier.predict(test.texts) == test.labels
        learner: Any = classifier.summary_["learner"]
        return {
            "accuracy": float(right.mean()),
            "correct": pack(right),
            "train_rows": len(train.texts),
            "n": len(right),
            "dtype": sorted({str(one.backbone.dtype).removeprefix("torch.") for one in classifier.sources().values()}),
            "learning_rate": learner["learning_rate"],
            "epochs": learner["epochs"],
            "losses": learner["history"]["train"],
            "cost": meter.cost(parameters_of(classifier)).to_dict(),
        }


def cache_option(cache: Any) -> str | None:
    """The folder of the store, where it is not the one that everything shares."""
    return str(cache) if isinstance(cache, str | Path) and cache != "auto" else None


def command_of(bench: str, name: str, line: str, options: Mapping[str, Any]) -> str:
    """The command that makes one cell again, into a folder of its own."""
    words = ["sonde", "bench", bench]
    for option, given in options.items():
        if given is True:
            words.append(f"--{option}")
        elif given:
            words += [f"--{option}", str(given)]
    return shlex.join([*words, "--only", name, "--recipe", line, "--out", "again"])
