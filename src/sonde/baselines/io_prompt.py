"""IOPrompt: the task, the labels, demonstrations if any, and the text; the answer is read as a label.

IOPrompt   zero-shot or with demonstrations; answers written, or the likeliest of the labels scored
"""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float64
from sklearn.utils.metaestimators import available_if

from sonde.baselines.assembling import Assembled
from sonde.baselines.demonstrations import draw, pool, show
from sonde.baselines.parsing import nested
from sonde.baselines.prompting import MAX_PROMPT_TOKENS, MAX_WORDS, TASK, Prompting, check_whole
from sonde.baselines.retrieval import Neighbours, open_retriever
from sonde.baselines.voting import Ballot, vote
from sonde.errors import ArgumentError, choose, warn

if TYPE_CHECKING:
    from sonde.baselines.local import Scores

ANSWERS = ("generate", "score")


class IOPrompt(Prompting):
    """Input-output prompting (Brown et al. 2020, "Language models are few-shot learners", section 2).

    Parameters
    ----------
    model : str, LocalModel or Endpoint
        Hub id or folder of a causal language model, the URL of an OpenAI-compatible endpoint, or one of those two.
    demonstrations : int
        Labelled training texts in a prompt; 0 = zero-shot: training rows give the labels and nothing else.
    retriever : transformer, optional
        Finds the training texts nearest to each text, such as `ActivationFeatures("sentence")`; by default they are
        drawn once at random, the classes in turn.
    answer : {"generate", "score"}
        Whether the model writes, and what it writes is read; or the likeliest of the label names is taken
        (`LocalModel` alone), which never fails.
    length_normalised : bool
        With "score": mean log-probability of the tokens of a name instead of their sum.
    label_names : mapping or sequence of str, optional
        Names that the prompt shows instead of the labels; needed where labels are numbers.
    task : str
        First sentence of the prompt.
    prompts : path, optional
        Folder with `io.txt` or `io_demonstration.txt`, instead of those of the package.
    max_words : int
        Words of a text.
    max_prompt_tokens : int, optional
        Tokens of a prompt; demonstrations that do not fit are left out, the least similar first.
    max_new_tokens : int
        Tokens of an answer.
    samples : int
        Answers a text, which vote.
    temperature : float
        0 = the likeliest answer.
    vote : {"majority", "weighted"}
        Each answer counts the same, or by the probability with which its label was written.
    answers : "auto", path, or None
        Where answers are kept so that none is asked for twice: sonde's cache folder, a folder, or memory alone.
    random_state : int
        Seed of the drawn demonstrations, and of the first sample.

    Attributes
    ----------
    classes_ : ndarray (class,)
        Sorted labels.
    failure_rate_ : float
        Share of the texts of the last `predict` whose answers name no label.
    no_label_ : str, int or None
        What `predict` gives for them: "" beside texts, the number below the least, None beside bool.
    summary_ : dict
        Seconds and tokens by stage, and the rates of the last `predict`.
    """

    frame_name = "io"

    def __init__(
        self,
        model: Any = None,
        *,
        demonstrations: int = 0,
        retriever: Any = None,
        answer: str = "generate",
        length_normalised: bool = False,
        label_names: Any = None,
        task: str = TASK,
        prompts: Any = None,
        max_words: int = MAX_WORDS,
        max_prompt_tokens: int | None = MAX_PROMPT_TOKENS,
        max_new_tokens: int = 20,
        samples: int = 1,
        temperature: float = 0.0,
        vote: str = "majority",
        answers: Any = "auto",
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.demonstrations = demonstrations
        self.retriever = retriever
        self.answer = answer
        self.length_normalised = length_normalised
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
        """Choose demonstrations; nothing is asked.

        Raises
        ------
        DataError, ArgumentError, BackboneError, EndpointError
            Each a sentence that says what was wrong, where, what is allowed, what to do.
        """
        train = self._start(texts, labels)
        self.pool_ = pool(train)
        self.neighbours_, self.drawn_ = None, np.empty(0, dtype=np.int64)
        if self.demonstrations and self.retriever is not None:
            with self._stage("reading_train"):
                rows = [text for text, _ in self.pool_]
                targets = [self.classes_[label] for _, label in self.pool_]
                self.neighbours_ = Neighbours(open_retriever(self.retriever), rows, targets)
        elif self.demonstrations:
            self.drawn_ = draw([label for _, label in self.pool_], self.demonstrations, self.random_state)
        return self

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_whole("demonstrations", self.demonstrations, 0)
        choose("answer", self.answer, ANSWERS)
        if self.answer == "score" and self.samples > 1:
            raise ArgumentError(f"answer='score' compares label names once; it has no {self.samples} samples.")

    def _longest_answer(self) -> int:
        if self.answer == "generate":
            return self.max_new_tokens
        generator = self.asker_.generator
        if not hasattr(generator, "score"):
            raise ArgumentError(
                f"answer='score' needs the probabilities of given words, which {generator!r} does not tell. Use a "
                "LocalModel, or answer='generate' with samples=5 and a temperature."
            )
        return max(generator.count_tokens(f" {name}\n") for name in self.names_) + 1

    def _asks_with_demonstrations(self) -> bool:
        return self.demonstrations > 0

    def _prompts(self, texts: list[str], asking: bool) -> list[Assembled]:
        most = min(self.demonstrations, len(self.pool_))
        if self.neighbours_ is None:
            rows = np.tile(self.drawn_, (len(texts), 1))  # row demonstration
        else:
            with self._stage("retrieving"):
                rows = self.neighbours_.nearest(texts, most)  # row demonstration
        return [
            self._assemble(self.frame_, text, [self._shown(*self.pool_[row]) for row in chosen])
            for text, chosen in zip(texts, rows, strict=True)
        ]

    def _shown(self, text: str, label: int) -> str:
        return show(self.demonstration_, text, self.names_[label], self.max_words)

    def _decide(self, prompts: list[str]) -> Ballot:
        if self.answer == "generate":
            return super()._decide(prompts)
        logits = self._scores(prompts)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))  # row class
        shares = chances / chances.sum(axis=1, keepdims=True)
        best = shares.argmax(axis=1)[:, None] if len(prompts) else np.empty((0, 1), dtype=np.int64)  # (row, 1)
        return Ballot(shares, vote(best, np.ones(best.shape), len(self.names_)).chosen, best < 0)

    def _scores(self, prompts: list[str]) -> Float64[np.ndarray, "row class"]:
        """Log-probability of each label name, summed over its tokens or their mean."""
        different = list(dict.fromkeys(prompts))
        scores: Scores = self.asker_.generator.score(different, self.names_)  # type: ignore[attr-defined]
        if inner := nested(self.names_):
            warn(
                f"{len(inner)} label names are beginnings of others, such as {inner[0]!r}; all are scored with the end "
                "of the line behind them.",
                "prefix_labels",
                len(inner),
            )
        if different and len(set(scores.tokens)) > 1 and not self.length_normalised:
            split = sum(width > min(scores.tokens) for width in scores.tokens)
            warn(
                f"The tokenizer splits {split} of {len(self.names_)} label names into more tokens than others "
                f"({min(scores.tokens)} to {max(scores.tokens)}); their log-probabilities are summed, which favours "
                "the short ones. length_normalised=True takes the mean.",
                "split_labels",
                split,
            )
        every: np.ndarray = scores.logprobs.astype(np.float64)  # row class
        if self.length_normalised and different:
            every = every / np.array(scores.tokens)
        at = {prompt: row for row, prompt in enumerate(different)}
        rows = np.array([at[prompt] for prompt in prompts], dtype=np.int64)
        return every[rows]  # row class

    def _has_probabilities(self) -> bool:
        return self.samples > 1 or self.answer == "score"

    @available_if(lambda self: self._has_probabilities())  # type: ignore[untyped-decorator]
    def predict_proba(self, texts: Any) -> Float64[np.ndarray, "row class"]:
        """Share of the votes for each class; with answer="score", the softmax of the scores."""
        return self._ballot(texts).shares
