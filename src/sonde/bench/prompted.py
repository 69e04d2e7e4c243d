"""IO and CARP beside LLMEmbed: few rows, to exercise the machinery and not as evidence.

Prompt            a language model that is asked, and what its answers are worth
numbered_names    what labels that are numbers mean
"""

import warnings
from pathlib import Path
from typing import Any

from sonde.baselines.carp import CARP
from sonde.baselines.endpoint import Endpoint
from sonde.baselines.generation import open_generator
from sonde.baselines.io_prompt import IOPrompt
from sonde.baselines.prompting import Prompting
from sonde.bench.cells import attempted
from sonde.bench.datasets import DataSet, label_names
from sonde.bench.tables import pack
from sonde.cost import Meter
from sonde.errors import ArgumentError, SondeWarning
from sonde.features import ActivationFeatures

TRAIN_ROWS, TEST_ROWS = 500, 200
"""At most so many: CARP asks twice about each training row and five times about each test row."""

DEMONSTRATIONS = 16
"""CARP's number; IO gets as many."""

_EXPLAINING = ("generating_reasons",)


class Prompt:
    """A language model that is asked.

    Parameters
    ----------
    model : str or None
        Hub id or folder of a causal language model; with `url`, what the endpoint calls it.
    url : str or None
        An OpenAI-compatible endpoint.
    retriever : str
        Backbone whose sentence embeddings find CARP's demonstrations.
    cache : as in `TextClassifier`; answers are kept beside activations, without a store in the default one
    budget_tokens : as in `Endpoint`
    """

    def __init__(
        self, model: str | None, url: str | None, retriever: str, cache: Any,
        budget_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.options = {"prompt-model": model, "prompt-url": url}
        self.name = " at ".join(part for part in (model, url) if part)
        given = {} if budget_tokens is None else {"budget_tokens": budget_tokens}
        if given and url is None:
            raise ArgumentError("A budget is for an endpoint; give --prompt-url, or leave the budget out.")
        self._generator = open_generator(model, url, **given)
        self._retriever, self._cache = retriever, cache

    @property
    def answers(self) -> Any:
        """Where answers are kept."""
        return "auto" if self._cache in ("auto", None) else Path(self._cache) / "answers"  # they may have been paid for

    def measure(self, line: str, data: Path, name: str, train: DataSet, test: DataSet) -> dict[str, Any]:
        """Ask about a sample of every class; what is refused is kept as `failed`, and tried again by the next run."""
        some, asked = train.at(train.sampled(TRAIN_ROWS)), test.at(test.sampled(TEST_ROWS))
        names = numbered_names(data, name, train)
        found = attempted(lambda: self._measure(self.make(line, names), some, asked))
        return {"prompted": self.name, "train_rows": len(some.texts), "n": len(asked.texts), **found}

    def make(self, line: str, names: list[str] | None) -> Prompting:
        """The classifier of a line, "io" or "carp"."""
        settings: dict[str, Any] = {"label_names": names, "answers": self.answers}
        if line == "io":
            return IOPrompt(self._generator, demonstrations=DEMONSTRATIONS, **settings)
        retriever = ActivationFeatures("sentence", backbones=(self._retriever,), cache=self._cache)
        return CARP(self._generator, k=DEMONSTRATIONS, retriever=retriever, **settings)

    def _measure(self, classifier: Prompting, train: DataSet, test: DataSet) -> dict[str, Any]:
        meter, elsewhere = Meter(), isinstance(self._generator, Endpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SondeWarning)  # failures and cuts are figures of the cell
            with meter.stage("generating_reasons", elsewhere=elsewhere):
                classifier.fit(train.texts, train.labels)
            with meter.stage("generating_answers", elsewhere=elsewhere):
                right = classifier.predict(test.texts) == test.labels
        usage = classifier.summary_["usage"]
        for stage, spent in usage.items():
            kind = "generating_reasons" if stage in _EXPLAINING else "generating_answers"
            meter.add_tokens(kind, spent["prompt_tokens"], spent["new_tokens"])
        answers = sum(spent["answers"] for spent in usage.values())
        return {
            "accuracy": float(right.mean()),
            "correct": pack(right),
            "failure_rate": classifier.summary_["failure_rate"],
            "demonstrations": classifier.summary_["demonstrations"],
            "answers": answers,
            "retrieving_seconds": classifier.summary_["seconds"].get("retrieving", 0.0),
            "stored_share": round(1 - sum(spent["asked"] for spent in usage.values()) / max(answers, 1), 3),
            "cost": meter.cost().to_dict(),
        }


def numbered_names(data: Path, name: str, train: DataSet) -> list[str] | None:
    """Names of labels that are numbers; None where labels are names already."""
    numbers = all(label.isdecimal() for label in train.labels.tolist())
    return label_names(data, name) if numbers else None
