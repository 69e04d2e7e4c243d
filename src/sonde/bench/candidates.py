"""What `sonde compare` compares: the recipes of sonde and what a user would try instead, best guesses first.

Setting      backbones, store and seed, the same for all
Candidate    a name, what it is, how it is made
nearest      nearest neighbours, with a number of them
CANDIDATES   name -> Candidate, in the order in which they are tried
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.baselines.knn import KNN
from sonde.baselines.svm import SVM
from sonde.classifier import TextClassifier
from sonde.features import ActivationFeatures
from sonde.learn.recipes import find

NEIGHBOURS = 16
"""What CARP retrieves (Sun et al. 2023, section 4)."""


@dataclass(frozen=True)
class Setting:
    """What all candidates share."""

    backbones: tuple[str, ...]
    """Hub ids, folders or the bundle."""
    cache: str | Path | None = "auto"
    """As in `TextClassifier`."""
    metric: str = "accuracy"
    """What is aimed at: "accuracy" or "macro_f1"."""
    seed: int = 0
    """Of everything random."""
    dtype: str = "auto"
    """As in `TextClassifier`."""


@dataclass(frozen=True)
class Candidate:
    """Something that learns from texts and labels."""

    name: str
    """As it stands in the table."""
    title: str
    """What it is, in a few words."""
    make: Callable[[Setting], Any]
    """An estimator with `fit`, `predict`, `classes_` and, where it can, `predict_proba` and `save`."""
    reads: bool = False
    """Whether it classifies activations of the backbones, which a store keeps."""


def _recipe(name: str) -> Candidate:
    recipe = find(name)

    def make(setting: Setting) -> TextClassifier:
        missing = max(recipe.needed_backbones - len(setting.backbones), 0)
        backbones = setting.backbones + setting.backbones[:1] * missing  # one backbone may play two roles
        shared: dict[str, Any] = {"metric": setting.metric, "cache": setting.cache, "random_state": setting.seed}
        return TextClassifier(name, backbones, dtype=setting.dtype, **shared)

    return Candidate(name, recipe.title, make, bool(recipe.needed_backbones))


def nearest(k: int = NEIGHBOURS) -> Candidate:
    """The candidate `knn`, with so many neighbours."""

    def make(setting: Setting) -> KNN:
        shared: dict[str, Any] = {"dtype": setting.dtype, "cache": setting.cache}
        return KNN(ActivationFeatures("hidden.-1", "mean", setting.backbones[:1], **shared), k)

    return Candidate("knn", f"the {k} nearest neighbours in the last hidden layer", make, True)


def _tuned(method: str) -> Callable[[Setting], Any]:
    def make(setting: Setting) -> Any:
        from sonde.baselines.finetuning import FineTuning  # it brings transformers, which others do without

        shared: dict[str, Any] = {"metric": setting.metric, "dtype": setting.dtype, "random_state": setting.seed}
        return FineTuning(setting.backbones[0], method, **shared)

    return make


CANDIDATES: dict[str, Candidate] = {
    candidate.name: candidate
    for candidate in (
        *map(_recipe, ("auto", "lexical", "linear")),
        Candidate("svm", "linear support vector machine on TF-IDF", lambda setting: SVM(random_state=setting.seed)),
        nearest(),
        *map(_recipe, ("stc-hidden", "llmembed-15", "stc")),
        Candidate("lora", "fine-tuning of low-rank adapters", _tuned("lora")),
        Candidate("finetune", "fine-tuning of all weights", _tuned("full")),
    )
}
"""The first is the best guess, the next take seconds: whoever stops early has seen what matters."""
