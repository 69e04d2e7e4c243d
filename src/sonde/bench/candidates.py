"""What `sonde compare` compares: the recipes of sonde and what a user would try instead, best guesses first.

Setting      backbones, store and seed, the same for all
Candidate    a name, what it is, how it is made
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


@dataclass(frozen=True)
class Candidate:
    """Something that learns from texts and labels."""

    name: str
    """As it stands in the table."""
    title: str
    """What it is, in a few words."""
    make: Callable[[Setting], Any]
    """An estimator with `fit`, `predict`, `classes_` and, where it can, `predict_proba` and `save`."""


def _recipe(name: str) -> Candidate:
    recipe = find(name)

    def make(setting: Setting) -> TextClassifier:
        missing = max(recipe.needed_backbones - len(setting.backbones), 0)
        backbones = setting.backbones + setting.backbones[:1] * missing  # one backbone may play two roles
        return TextClassifier(name, backbones, metric=setting.metric, cache=setting.cache, random_state=setting.seed)

    return Candidate(name, recipe.title, make)


def _knn(setting: Setting) -> KNN:
    return KNN(ActivationFeatures("hidden.-1", "mean", setting.backbones[:1], cache=setting.cache))


def _tuned(method: str) -> Callable[[Setting], Any]:
    def make(setting: Setting) -> Any:
        from sonde.baselines.finetuning import FineTuning  # it brings transformers, which others do without

        return FineTuning(setting.backbones[0], method, metric=setting.metric, random_state=setting.seed)

    return make


CANDIDATES: dict[str, Candidate] = {
    candidate.name: candidate
    for candidate in (
        *map(_recipe, ("auto", "lexical", "linear")),
        Candidate("svm", "linear support vector machine on TF-IDF", lambda setting: SVM(random_state=setting.seed)),
        Candidate("knn", "nearest neighbours in the last hidden layer", _knn),
        *map(_recipe, ("stc-hidden", "llmembed-15", "stc")),
        Candidate("lora", "fine-tuning of low-rank adapters", _tuned("lora")),
        Candidate("finetune", "fine-tuning of all weights", _tuned("full")),
    )
}
"""The first is the best guess, the next take seconds: whoever stops early has seen what matters."""
