"""Prompting: what all classifiers that ask a language model share.

Prompting     checks, asking, reading of answers, votes, what was measured; IOPrompt and CARP say what is asked
check_whole   an argument that must be a whole number
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import metadata_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sonde.baselines.answers import AnswerFile, open_answers
from sonde.baselines.asking import Asker, Usage
from sonde.baselines.assembling import Assembled, assemble
from sonde.baselines.generation import Answer, open_generator
from sonde.baselines.naming import name_labels, no_label
from sonde.baselines.parsing import Found, LabelReader
from sonde.baselines.templates import Template, read_template
from sonde.baselines.voting import VOTES, Ballot, vote
from sonde.errors import ArgumentError, DataError, choose, warn
from sonde.inputs import as_texts
from sonde.rows import Labelled, as_labelled, score

MAX_WORDS = 200
"""Words of a text in a prompt (CARP, released code)."""
MAX_PROMPT_TOKENS = 3800
"""Tokens of a prompt: what CARP leaves of a context of 4,096 for the answer."""
TASK = "Decide which of the given labels fits the text."


class Prompting(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """Base of classifiers that ask a language model; see `IOPrompt` and `CARP`."""

    __metadata_request__fit: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__score: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__predict: ClassVar = {"texts": metadata_routing.UNUSED}
    __metadata_request__predict_proba: ClassVar = {"texts": metadata_routing.UNUSED}

    frame_name: ClassVar[str]
    """Name of the file of the prompt; that of a demonstration is `<frame_name>_demonstration`."""

    model: Any
    label_names: Any
    task: str
    prompts: Any
    max_words: int
    max_prompt_tokens: int | None
    max_new_tokens: int
    samples: int
    temperature: float
    vote: str
    answers: Any
    random_state: int

    metric: ClassVar[str] = "accuracy"
    multilabel_: ClassVar[bool] = False
    matrix_labels_: ClassVar[bool] = False
    _cut = 0
    """Answers of the last question that broke off before they named a label."""

    @property
    def asks_elsewhere(self) -> bool:
        """Whether an endpoint is asked, whose energy nobody here can tell."""
        return hasattr(open_generator(self.model), "url")

    # ---------------------------------------------------------------- fit

    def _start(self, texts: Any, labels: Any) -> Labelled:
        """Check everything that can be checked before a question is paid for."""
        self._check_arguments()
        train = as_labelled(texts, labels, None, None)
        if train.targets.multilabel:
            raise DataError(f"{type(self).__name__} gives one label a text; these rows have lists of labels.")
        self.classes_ = train.targets.classes
        self.names_ = name_labels(self.classes_, self.label_names)
        self.frame_ = read_template(self.frame_name, self.prompts)
        self.demonstration_ = read_template(f"{self.frame_name}_demonstration", self.prompts)
        self.reader_ = LabelReader(self.names_, self.demonstration_.header("label"), self.demonstration_.header("text"))
        self.no_label_ = no_label(self.classes_)
        generator = open_generator(self.model)
        self.asker_ = Asker(generator, self._answers_of(generator.identity))
        self.prompt_tokens_ = self._room(self._longest_answer())
        self.summary_: dict[str, Any] = {
            "model": generator.identity,
            "rows": len(train.texts),
            "label_names": list(self.names_),
            "seconds": {},
            "usage": {},
        }
        return train

    def _answers_of(self, identity: str) -> AnswerFile:
        """The file of answers; without one, those that this object has paid for already."""
        before: Asker | None = getattr(self, "asker_", None)
        if self.answers in (None, False) and before is not None and before.answers.identity == identity:
            return before.answers
        return open_answers(self.answers, identity)

    def _check_arguments(self) -> None:
        choose("vote", self.vote, VOTES)
        check_whole("max_words", self.max_words, 1)
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_whole("samples", self.samples, 1)
        check_whole("random_state", self.random_state, 0)
        if self.max_prompt_tokens is not None:
            check_whole("max_prompt_tokens", self.max_prompt_tokens, 1)
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, int | float) or self.temperature < 0:
            raise ArgumentError(f"temperature is {self.temperature!r}; it must be a number, 0 or more.")
        if self.samples > 1 and not self.temperature:
            raise ArgumentError(
                f"{self.samples} samples at temperature 0 are one answer; give a temperature, or 1 sample."
            )

    def _longest_answer(self) -> int:
        return self.max_new_tokens

    def _room(self, answer_tokens: int) -> int | None:
        """Most tokens of a prompt that leaves room for its answer."""
        context = self.asker_.generator.context_tokens
        if context is None:
            return self.max_prompt_tokens
        if context <= answer_tokens:
            raise ArgumentError(
                f"max_new_tokens is {answer_tokens}, but {self.asker_.generator!r} has a context of {context} tokens, "
                "prompt included. Lower it."
            )
        left = context - answer_tokens
        return left if self.max_prompt_tokens is None else min(left, self.max_prompt_tokens)

    # ------------------------------------------------------------- prompts

    def _fixed(self) -> dict[str, str]:
        return {"task": self.task, "labels": ", ".join(self.names_)}

    def _assemble(self, frame: Template, text: str, demonstrations: Sequence[str] = (), **more: str) -> Assembled:
        return assemble(
            frame,
            {**self._fixed(), **more},
            demonstrations,
            text,
            max_words=self.max_words,
            max_tokens=self.prompt_tokens_,
            count_tokens=self.asker_.generator.count_tokens,
        )

    @abstractmethod
    def _prompts(self, texts: list[str], asking: bool) -> list[Assembled]:
        """What is asked about each text; unless `asking`, the model is not asked for anything that they need."""

    @abstractmethod
    def _asks_with_demonstrations(self) -> bool:
        """Whether a prompt without a demonstration is worth a warning."""

    def prompts_for(self, texts: Any) -> list[str]:
        """The prompts that `predict` would send, to be read before anything is paid for."""
        check_is_fitted(self, "classes_")
        return [one.prompt for one in self._prompts(as_texts(texts), asking=False)]

    def _assembled(self, texts: list[str]) -> list[str]:
        """Prompts, with warnings about what did not fit."""
        found = self._prompts(texts, asking=True)
        if cut := sum(one.cut for one in found):
            warn(f"{cut} texts are longer than a prompt has room for; their first words are asked about.",
                 "truncated_rows", cut)  # fmt: skip
        bare = sum(not one.demonstrations for one in found)
        if bare and self._asks_with_demonstrations():
            warn(f"{bare} of {len(found)} prompts have no room for a demonstration.", "no_demonstrations", bare)
        self.summary_["demonstrations"] = float(np.mean([one.demonstrations for one in found])) if found else 0.0
        return [one.prompt for one in found]

    # -------------------------------------------------------------- answers

    def _ballot(self, texts: Any) -> Ballot:
        check_is_fitted(self, "classes_")
        rows = as_texts(texts)
        prompts = self._assembled(rows)
        with self._stage("inference"):
            ballot = self._decide(prompts)
        self._report(ballot)
        return ballot

    def _decide(self, prompts: list[str]) -> Ballot:
        """Ask, read and count."""
        asked = [prompt for prompt in prompts for _ in range(self.samples)]
        answers = self.asker_.ask(
            asked,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seeds=[self.random_state + sample for _ in prompts for sample in range(self.samples)],
            logprobs=self.vote == "weighted",
        )
        found = [self.reader_.read(answer.text) for answer in answers]
        self._cut = sum(answer.cut for answer, one in zip(answers, found, strict=True) if one is None)
        labels = np.array([-1 if one is None else one.label for one in found], dtype=np.int64)
        weights = np.ones(len(answers))
        if self.vote == "weighted":
            weights = self._chances(answers, found)
        shape = (len(prompts), self.samples)
        return vote(labels.reshape(shape), weights.reshape(shape), len(self.names_))

    @staticmethod
    def _chances(answers: Sequence[Answer], found: Sequence[Found | None]) -> Float64[np.ndarray, " answer"]:
        """The probability with which each answer's label was written; 1 where the model does not tell."""
        pairs = [(answer, one) for answer, one in zip(answers, found, strict=True)]
        chances = [1.0 if one is None else answer.probability(one.start, one.stop) for answer, one in pairs]
        unknown = sum(chance is None for chance in chances)
        if unknown:
            warn(f"{unknown} answers came without probabilities; they count as 1.", "no_probabilities", unknown)
        return np.array([1.0 if chance is None else chance for chance in chances])

    def _report(self, ballot: Ballot) -> None:
        failures = int((ballot.chosen < 0).sum())
        self.failure_rate_ = failures / max(1, len(ballot.chosen))
        self.summary_["failure_rate"] = self.failure_rate_
        self.summary_["unread_answers"] = float(ballot.failed.mean()) if ballot.failed.size else 0.0
        if failures:
            cut = f" {self._cut} answers broke off before they named one, at max_new_tokens={self.max_new_tokens}."
            warn(f"{failures} of {len(ballot.chosen)} texts got no answer that names a label; they count as wrong."
                 f"{cut if self._cut else ''}", "no_label", failures)  # fmt: skip

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Seconds and usage of a stage, added up in `summary_`; kept too if it breaks off."""
        started, before = time.perf_counter(), self.asker_.usage
        try:
            yield
        finally:
            spent = Usage(*(now - then for now, then in zip(_values(self.asker_.usage), _values(before), strict=True)))
            seconds, usage = self.summary_["seconds"], self.summary_["usage"]
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
            usage[name] = asdict(Usage(**usage.get(name, {})) + spent)

    # -------------------------------------------------------------- predict

    def predict(self, texts: Any) -> np.ndarray:
        """The label of each text; `no_label_` where no answer names one.

        Raises
        ------
        EndpointError, BudgetError
            If the endpoint gives up. Every answer until then is kept; the same call asks for the others alone.
        """
        chosen = self._ballot(texts).chosen
        if (chosen >= 0).all():
            return np.asarray(self.classes_[chosen])
        known: list[Any] = [*self.classes_.tolist(), self.no_label_]  # -1 is the last
        kind = object if self.no_label_ is None else None
        return np.array([known[label] for label in chosen], dtype=kind)

    def judged(self, texts: Any) -> tuple[Bool[np.ndarray, "row class"], Float64[np.ndarray, "row class"] | None]:
        """The label of each text, nowhere true where no answer names one; and shares of the votes, if there are any.

        Of one pass, as `bench` measures it.
        """
        ballot = self._ballot(texts)
        decided = ballot.chosen[:, None] == np.arange(len(self.classes_))  # row class
        return decided, ballot.shares if self._has_probabilities() else None

    def _has_probabilities(self) -> bool:
        return self.samples > 1

    @available_if(lambda self: self._has_probabilities())  # type: ignore[untyped-decorator]
    def predict_proba(self, texts: Any) -> Float64[np.ndarray, "row class"]:
        """Share of the votes for each class; the same for all where no answer names a label."""
        return self._ballot(texts).shares

    def score(self, texts: Any, labels: Any, sample_weight: Any = None) -> float:
        """Accuracy; a text that no answer gives a label is wrong.

        Raises
        ------
        DataError, ArgumentError
            About the labels and weights, before anything is asked.
        """
        check_is_fitted(self, "classes_")
        return score(self, texts, labels, sample_weight, lambda rows: self.judged(rows)[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def _values(usage: Usage) -> list[int]:
    return list(asdict(usage).values())


def check_whole(name: str, value: object, least: int) -> None:
    """Raise an `ArgumentError` if an argument is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
