"""Asking: each different request once, from the file of answers where it is there, else from the generator.

Usage   how many answers and tokens a stage took
Asker   a generator with its file of answers
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sonde.baselines.answers import AnswerFile, request_key
from sonde.baselines.generation import Answer, Generator
from sonde.errors import EndpointError
from sonde.progress import track


@dataclass(frozen=True)
class Usage:
    """What answers took."""

    answers: int = 0
    """Different requests of the work."""
    asked: int = 0
    """Those that the generator answered now; the others were in the file."""
    prompt_tokens: int = 0
    """Tokens in, of all answers, as if nothing had been in the file."""
    new_tokens: int = 0
    """Tokens out, of all answers."""
    asked_prompt_tokens: int = 0
    """Tokens in, of those asked now: what was paid for."""
    asked_new_tokens: int = 0
    """Tokens out, of those asked now."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def counting(self, answer: Answer, asked: bool) -> "Usage":
        """The same with one answer more."""
        into, out = answer.prompt_tokens, answer.new_tokens
        return self + Usage(1, int(asked), into, out, into * asked, out * asked)


class Asker:
    """A generator with its file of answers.

    Attributes
    ----------
    usage : Usage
        Of everything asked so far.
    """

    def __init__(self, generator: Generator, answers: AnswerFile) -> None:
        self.generator, self.answers = generator, answers
        self.usage = Usage()

    def ask(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
    ) -> list[Answer]:
        """One answer a prompt, in their order. Equal requests are asked once.

        Raises
        ------
        EndpointError, BudgetError
            If the generator gives up; every answer that it gave before is kept.
        """
        numbers = list(seeds) if seeds is not None else [0] * len(prompts)
        keys = [self._key(p, s, max_new_tokens, temperature, logprobs) for p, s in zip(prompts, numbers, strict=True)]
        if any(self.answers.find(key) is None for key in keys):
            self.answers.look()  # another object or process may have paid for them
        missing = {key: row for row, key in enumerate(keys) if self.answers.find(key) is None}
        try:
            if missing:
                self._generate(prompts, numbers, missing, max_new_tokens, temperature, logprobs)
        finally:
            for key in dict.fromkeys(keys):
                answer = self.answers.find(key)
                self.usage = self.usage if answer is None else self.usage.counting(answer, key in missing)
        return [self._found(key) for key in keys]

    def _key(self, prompt: str, seed: int, max_new_tokens: int, temperature: float, logprobs: bool) -> str:
        """The key of a request; an answer with log-probabilities serves where none are wanted."""

        def key(with_logprobs: bool) -> str:
            return request_key(
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                logprobs=with_logprobs,
                identity=self.generator.identity,
            )

        richer = key(True)
        return richer if logprobs or self.answers.find(richer) is not None else key(False)

    def _generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        missing: dict[str, int],
        max_new_tokens: int,
        temperature: float,
        logprobs: bool,
    ) -> None:
        keys, rows = list(missing), list(missing.values())
        with track("asking the language model", len(rows), "answers") as advance:

            def keep(position: int, answer: Answer) -> None:
                self.answers.keep(keys[position], answer)
                advance(1)

            try:
                self.generator.generate(
                    [prompts[row] for row in rows],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seeds=[seeds[row] for row in rows],
                    logprobs=logprobs,
                    keep=keep,
                )
            except EndpointError as error:
                raise type(error)(f"{error} {self._kept(keys)}") from error

    def _kept(self, keys: Sequence[str]) -> str:
        there = sum(self.answers.find(key) is not None for key in keys)
        where = f"in {self.answers.path}" if self.answers.path else "in memory, for as long as this object lives"
        return (
            f"{there} of {len(keys)} answers came before that and are kept {where}: "
            "the same call again asks only for the others."
        )

    def _found(self, key: str) -> Answer:
        answer = self.answers.find(key)
        assert answer is not None, "a generator returned without having kept every answer"
        return answer
