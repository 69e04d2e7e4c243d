"""Generation: what prompting asks of a language model, wherever it runs.

Answer           what was written, and how many tokens that took
Generator        the protocol: `generate`, `count_tokens`, a name for the file of answers
Keep             called with each answer as soon as it is there
open_generator   a model id, folder or URL -> a generator
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from sonde.errors import ArgumentError


@dataclass(frozen=True)
class Answer:
    """What a language model wrote behind a prompt."""

    text: str
    """The words, without the prompt."""
    prompt_tokens: int
    """Tokens that the prompt took."""
    new_tokens: int
    """Tokens that were written."""
    cut: bool = False
    """Whether the answer ended because no more tokens were allowed."""
    logprobs: tuple[float, ...] | None = None
    """Natural log-probability of each token of the text under the model, at temperature 1; None where not asked for."""
    ends: tuple[int, ...] | None = None
    """Position in `text` behind the last character of each of these tokens."""

    def probability(self, start: int, stop: int) -> float | None:
        """Probability of the tokens that write text[start:stop], given all that stands before them."""
        if self.logprobs is None or self.ends is None:
            return None
        from math import exp

        starts = (0, *self.ends[:-1])
        spans = zip(starts, self.ends, self.logprobs, strict=True)
        return exp(sum(logprob for begin, end, logprob in spans if begin < stop and end > start))


Keep: TypeAlias = Callable[[int, Answer], None]
"""Takes the position of a prompt and its answer; may be called from several threads."""


@runtime_checkable
class Generator(Protocol):
    """A language model that continues prompts."""

    @property
    def identity(self) -> str:
        """What decides its answers beside the prompt: the key of the file of answers. Holds no secret."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """Most tokens of a prompt and its answer together; None if there is no known bound."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """How many tokens a prompt takes, with what the model's template adds."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        logprobs: bool = False,
        keep: Keep | None = None,
    ) -> list[Answer]:
        """Answer each prompt.

        Parameters
        ----------
        prompts : sequence of str
        max_new_tokens : int
            Most tokens of an answer.
        temperature : float
            0 = the likeliest token each time; else tokens are drawn from the distribution at this temperature.
        seeds : sequence of int
            One a prompt: the same seed draws the same answer, whatever else is asked beside it, where the engine
            can promise that.
        logprobs : bool
            Whether `Answer.logprobs` is wanted.
        keep : callable, optional
            Called with each answer at once, before the others are there.
        """
        ...


def open_generator(model: Any = None, url: str | None = None, **settings: Any) -> Generator:
    """A generator from a model id or folder, or from a URL.

    Parameters
    ----------
    model : str or Generator
        With `url`, what the endpoint calls the model. Else a hub id or folder of a causal language model, an
        `http(s)://` address, or a generator, which is returned as it is.
    url : str, optional
        Base URL of an OpenAI-compatible endpoint, such as `http://127.0.0.1:8000/v1`.
    **settings
        Passed to `LocalModel` or `Endpoint`.

    Raises
    ------
    ArgumentError
        If neither is given.
    """
    if isinstance(model, str) and model.startswith(("http://", "https://")) and url is None:
        model, url = None, model
    if url is not None:
        from sonde.baselines.endpoint import Endpoint

        return Endpoint(url, model, **settings)
    if isinstance(model, str) and model:
        from sonde.baselines.local import LocalModel

        return LocalModel(model, **settings)
    if isinstance(model, Generator) and not isinstance(model, type):
        return model
    raise ArgumentError(
        f"model is {model!r:.60}; give the hub id or folder of a causal language model, the URL of an "
        "OpenAI-compatible endpoint, a LocalModel or an Endpoint."
    )
