"""Text sets in the words that the tokenizers of `tiny` know, so that tiny random backbones can tell classes apart.

command     runs `sonde` in this process
worded      texts and labels of three topics, none of them equal
make        a classifier on tiny backbones, in float32 and without a store
saved       one that is fitted and saved, for fixtures
agree_in_bfloat16   the tolerance of docs/reading.md on probabilities
RECIPES     recipes that stand for the kinds of learner
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import build

from sonde import TextClassifier, cli

TOPICS = {
    "post": ["wrote", "three", "letters", "parcel", "arrived", "refund", "late", "year"],
    "rail": ["first", "trains", "left", "early", "platform"],
    "weather": ["cold", "wind", "came", "over", "hills", "good"],
}
COMMON = ["the", "a", "and", "on", "is", "my", "nobody", "knew", "why", "again"]
RECIPES = [
    *("linear", "lexical", "auto"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llmembed-2", "llmembed-15")),
]


def worded(rows: int = 90, seed: int = 0, noise: float = 0.35) -> tuple[list[str], list[str]]:
    """Texts of eight words; of the topical ones, a share of `noise` come from another topic."""
    rng = np.random.default_rng(seed)
    names = list(TOPICS)
    labels = [names[row % 3] for row in range(rows)]
    seen: set[str] = set()
    texts: list[str] = []
    for label in labels:
        while (text := _text(rng, label, noise)) in seen:
            pass
        seen.add(text)
        texts.append(text)
    return texts, labels


def _text(rng: np.random.Generator, label: str, noise: float) -> str:
    others = [name for name in TOPICS if name != label]
    topics = [label if rng.random() > noise else others[rng.integers(2)] for _ in range(5)]
    words = [TOPICS[topic][rng.integers(len(TOPICS[topic]))] for topic in topics]
    words += [COMMON[i] for i in rng.integers(len(COMMON), size=3)]
    return " ".join(rng.permutation(words).tolist())


def backbones(recipe: str) -> tuple[str, ...]:
    names = ("bert", "electra") if recipe.startswith("llmembed") else ("bert",)
    return tuple(str(build(name)) for name in names)


def make(recipe: str = "linear", **settings: Any) -> TextClassifier:
    return TextClassifier(recipe, **{"backbones": backbones(recipe), "dtype": "float32", "cache": None, **settings})


def saved(recipe: str) -> Callable[[pytest.TempPathFactory], Path]:
    """What a fixture of a module calls: a model of this recipe, fitted on `worded(90)`, in a folder named `words`."""

    def save(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models") / "words"
        make(recipe).fit(*worded(90)).save(folder)
        return folder

    return save


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output of a command that succeeded."""
        assert self.code == 0, self.err
        content = json.loads(self.out)
        assert isinstance(content, dict) and self.out.count("\n") == 1
        return content


Run = Callable[..., Done]


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `sonde` with the arguments it is given."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["sonde", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        streams = capsys.readouterr()
        return Done(int(left.value.code or 0), streams.out, streams.err)

    return run


def agree_in_bfloat16(found: np.ndarray, expected: np.ndarray) -> None:
    """99 of 100 probabilities within 5e-3, and all within 2e-2."""
    apart = np.abs(found - expected)
    assert np.quantile(apart, 0.99) <= 5e-3 and apart.max() <= 2e-2
