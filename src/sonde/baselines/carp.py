"""CARP: clue and reasoning prompting.

CARP   clues, then reasoning, then the label; demonstrations by similarity; several answers; a vote
"""

import re
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from sonde.baselines.assembling import Assembled
from sonde.baselines.cutting import first_words
from sonde.baselines.demonstrations import pool, show
from sonde.baselines.generation import Answer
from sonde.baselines.prompting import MAX_PROMPT_TOKENS, MAX_WORDS, TASK, Prompting, check_whole
from sonde.baselines.retrieval import Neighbours, open_retriever
from sonde.baselines.templates import Template, read_template
from sonde.errors import ArgumentError, choose, warn

EXPLAIN = ("all", "retrieved")
NOT_ASKED = ("(asked for by predict)", "(asked for by predict)")
"""What `prompts_for` shows as clues and reasoning that nothing has been paid for yet."""


class CARP(Prompting):
    """Clue and reasoning prompting (Sun et al. 2023, "Text classification via large language models").

    Once for each training text, the model is asked for clues, and then for reasoning, given the text and its label.
    A text is asked about behind its k nearest training texts with their clues, reasoning and labels, the most similar
    last (section 3). Several answers are drawn, and vote.

    Parameters
    ----------
    model : str, LocalModel or Endpoint
        Hub id or folder of a causal language model, the URL of an OpenAI-compatible endpoint, or one of those two.
    k : int
        Demonstrations in a prompt.
    retriever : transformer, optional
        Turns texts into vectors that are compared by cosine, such as `ActivationFeatures("hidden.-1")` of any block; by
        default the sentence embedding of the offline bundle. The paper's is a RoBERTa fine-tuned on the training rows.
    explain : {"all", "retrieved"}
        Whether `fit` asks about every training text, as the paper does, or `predict` about those that it retrieves.
    max_explanation_words : int
        Words of clues, and of reasoning, in a demonstration.
    samples, temperature : int, float
        Answers a text, and how freely they are drawn.
    vote : {"majority", "weighted"}
        Each answer counts the same, or by the probability with which its label was written.
    label_names, task, max_words, max_prompt_tokens, max_new_tokens, answers, random_state
        As in `IOPrompt`.
    prompts : path, optional
        Folder with any of `carp.txt`, `carp_demonstration.txt`, `clues.txt`, `reasoning.txt`, instead of the package's.

    Attributes
    ----------
    classes_, failure_rate_, no_label_, summary_
        As in `IOPrompt`.
    explanations_ : dict
        Row of `pool_` -> (clues, reasoning), as demonstrations show them.
    pool_ : list of (str, int)
        The different training rows: text and class.
    """

    frame_name = "carp"

    def __init__(
        self,
        model: Any = None,
        *,
        k: int = 16,
        retriever: Any = None,
        explain: str = "all",
        max_explanation_words: int = 100,
        label_names: Any = None,
        task: str = TASK,
        prompts: Any = None,
        max_words: int = MAX_WORDS,
        max_prompt_tokens: int | None = MAX_PROMPT_TOKENS,
        max_new_tokens: int = 200,
        samples: int = 5,
        temperature: float = 0.7,
        vote: str = "majority",
        answers: Any = "auto",
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.k = k
        self.retriever = retriever
        self.explain = explain
        self.max_explanation_words = max_explanation_words
        self.label_names = label_names
        self.task = task
        self.prompts = prompts
        self.max_words = max_words
        self.max_prompt_tokens = max_prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.samples = samples
        self.temperature = temperature
        self.vote = vote
        self.answers = answers
        self.random_state = random_state

    def fit(self, texts: Any, labels: Any) -> Self:
        """Read the training texts for retrieval, and ask for their clues and reasoning (with explain="all").

        Raises
        ------
        DataError, ArgumentError, BackboneError, EndpointError, BudgetError
            Each a sentence. Answers that came before it are kept: `fit` again asks for the others alone.
        """
        train = self._start(texts, labels)
        self.clues_, self.reasoning_ = (read_template(name, self.prompts) for name in ("clues", "reasoning"))
        self.pool_ = pool(train)
        self.explanations_: dict[int, tuple[str, str]] = {}
        with self._stage("reading_train"):
            targets = [self.classes_[label] for _, label in self.pool_]
            self.neighbours_ = Neighbours(open_retriever(self.retriever), [text for text, _ in self.pool_], targets)
        if self.explain == "all":
            self._explain(range(len(self.pool_)))
        return self

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.k == 0:
            raise ArgumentError("CARP needs demonstrations: k must be at least 1. IOPrompt asks without any.")
        check_whole("k", self.k, 1)
        check_whole("max_explanation_words", self.max_explanation_words, 1)
        choose("explain", self.explain, EXPLAIN)

    def _asks_with_demonstrations(self) -> bool:
        return True

    def _explain(self, rows: Iterable[int]) -> None:
        """Ask for the clues, then the reasoning, of those rows of the pool that have none yet."""
        new = [row for row in rows if row not in self.explanations_]
        if not new:
            return
        with self._stage("generating_reasons"):
            clues = self._ask_about(new, self.clues_, [{} for _ in new])
            reasons = self._ask_about(new, self.reasoning_, [{"clues": one} for one in clues])
        self.explanations_ |= dict(zip(new, zip(clues, reasons, strict=True), strict=True))
        empty = sum(not (one and other) for one, other in self.explanations_.values())
        self.summary_["empty_explanations"] = empty / len(self.explanations_)

    def _ask_about(self, rows: list[int], frame: Template, more: list[dict[str, str]]) -> list[str]:
        """One explanation a row of the pool."""
        found = [
            self._assemble(frame, text, label=self.names_[label], **extra)
            for (text, label), extra in zip((self.pool_[row] for row in rows), more, strict=True)
        ]
        if frame is self.clues_ and (cut := sum(one.cut for one in found)):
            warn(f"{cut} training texts are longer than {self.max_words} words or a prompt; their first words are "
                 "explained and shown.", "truncated_rows", cut)  # fmt: skip
        answers = self.asker_.ask([one.prompt for one in found], max_new_tokens=self.max_new_tokens)
        return [self._explanation(answer) for answer in answers]

    def _explanation(self, answer: Answer) -> str:
        """The first paragraph, on one line, up to where the model goes on with another part of the demonstration."""
        names = ("text", "clues", "reasoning", "label")
        headers = [re.escape(header) for name in names if (header := self.demonstration_.header(name))]
        paragraph = re.split(r"\n\s*\n", answer.text.strip())[0]
        if headers:
            own = re.match(rf"(?:{'|'.join(headers)})\s*", paragraph)  # some models repeat the last word of the prompt
            paragraph = re.split(rf"\n(?:{'|'.join(headers)})", paragraph[own.end() if own else 0 :])[0]
        return first_words(paragraph, self.max_explanation_words)[0]

    def _prompts(self, texts: list[str], asking: bool) -> list[Assembled]:
        with self._stage("retrieving"):
            nearest = self.neighbours_.nearest(texts, min(self.k, len(self.pool_)))  # row neighbour
        if asking:
            self._explain(np.unique(nearest).tolist())
        return [
            self._assemble(self.frame_, text, [self._shown(row) for row in chosen])
            for text, chosen in zip(texts, nearest.tolist(), strict=True)
        ]

    def _shown(self, row: int) -> str:
        (text, label), (clues, reasoning) = self.pool_[row], self.explanations_.get(row, NOT_ASKED)
        return show(self.demonstration_, text, self.names_[label], self.max_words, clues=clues, reasoning=reasoning)
