"""Local: a causal language model of transformers, on this machine.

LocalModel   writes answers in batches, and scores given answers
Scores       log-probabilities of given answers

Equal prompts give equal answers whatever else is in the batch: pads stand on the left, are masked and take no position,
and every row draws from a generator of its own. Exactly so in float32; in bfloat16 two tokens that are nearly as likely
may change places between batches of different shape.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from transformers import AutoTokenizer, GenerationConfig, LogitsProcessorList

from sonde.baselines.causal import first_line, load_causal
from sonde.baselines.generation import Answer, Keep
from sonde.baselines.parsing import nested
from sonde.baselines.sampling import SeededChoice
from sonde.baselines.scoring import left_padded, score_options
from sonde.errors import ArgumentError, BackboneError
from sonde.precision import choose_device, choose_dtype
from sonde.read.backbone import quiet
from sonde.read.checkpoint import fingerprint, read_config
from sonde.read.location import find_checkpoint

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")


@dataclass(frozen=True)
class Scores:
    """How likely given answers are behind prompts."""

    logprobs: Float32[np.ndarray, "row class"]
    """Natural log-probability of each answer, summed over its tokens."""
    tokens: tuple[int, ...]
    """How many tokens each answer has."""


class LocalModel:
    """A causal language model that continues prompts. Nothing is loaded before the first question.

    Parameters
    ----------
    name : str
        Hub id or folder of a causal language model (one whose classes end in ...ForCausalLM or ...LMHeadModel).
    chat : bool, optional
        Whether prompts go through the chat template of the tokenizer; by default where it has one.
    dtype, device : str
        As in `TextClassifier`.
    batch_tokens : int
        Most tokens of a batch, prompts, answers and pads together.

    Raises
    ------
    ArgumentError, BackboneError
        At the first question: if there is no such model, it writes no text, or it has no chat template with chat=True.
    """

    def __init__(
        self,
        name: str,
        *,
        chat: bool | None = None,
        dtype: str = "auto",
        device: str = "auto",
        batch_tokens: int = 16384,
    ) -> None:
        if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise ArgumentError(f"batch_tokens is {batch_tokens!r}; it must be a whole number of at least 1.")
        self.name, self.chat, self.dtype, self.device, self.batch_tokens = name, chat, dtype, device, batch_tokens
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"LocalModel({self.name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalModel":
        """Itself: copies of a classifier share the weights."""
        return self

    def __reduce__(self) -> Any:
        settings = {"chat": self.chat, "dtype": self.dtype, "device": self.device, "batch_tokens": self.batch_tokens}
        return _rebuilt, (self.name, settings)

    @cached_property
    def path(self) -> Path:
        """The folder that the name resolves to."""
        return find_checkpoint(self.name)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, unchanged."""
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(str(self.path), local_files_only=True)
        except Exception as error:  # nearly every kind; all mean that this folder is of no use
            raise BackboneError(f"The tokenizer of {self.name!r} cannot be loaded: {first_line(error)}") from error
        if self.chat and not tokenizer.chat_template:
            raise ArgumentError(
                f"{self.name!r} has no chat template, so chat=True cannot be had. Leave chat out: the prompt is then "
                "text that the model continues."
            )
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The model with its output head, on its device."""
        with self._lock:
            model = load_causal(self.name, self.path, self.tokenizer, self.dtype, self.device)
            # What a checkpoint advises for chats (a penalty for words of the prompt, ...) would bend every answer.
            model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
            return model

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the checkpoint, precision, and the chat template that is applied, if any."""
        template = str(self.tokenizer.chat_template)
        kind = f"chat {hashlib.sha256(template.encode()).hexdigest()[:16]}" if self._chats else "text"
        precision = choose_dtype(self.dtype, choose_device(self.device))
        mark = fingerprint(self.path)
        return f"transformers {mark} {precision} {kind}"

    @property
    def parameters(self) -> int:
        """How many numbers the model holds."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def context_tokens(self) -> int | None:
        """Positions that the configuration states."""
        config = read_config(self.path)
        return next((value for name in _POSITIONS if isinstance(value := config.get(name), int) and value > 0), None)

    @property
    def _chats(self) -> bool:
        return bool(self.tokenizer.chat_template) if self.chat is None else self.chat

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the prompt, with the chat template's."""
        return len(self._encode(prompt))

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
        """Answer each prompt; arguments as in `Generator`.

        Raises
        ------
        ArgumentError
            If a prompt leaves no room for its answer in the model's context; nothing is written then.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        self._check_lengths(encoded, max_new_tokens)
        found: dict[int, Answer] = {}
        with self._lock:
            for rows in self._batches([len(ids) + max_new_tokens for ids in encoded]):
                ids, numbers = [encoded[row] for row in rows], [seeds[row] for row in rows]
                answers = self._write(ids, max_new_tokens, temperature, numbers, logprobs)
                for row, answer in zip(rows, answers, strict=True):
                    found[row] = answer
                    if keep is not None:
                        keep(row, answer)
        return [found[row] for row in range(len(prompts))]

    def score(self, prompts: Sequence[str], options: Sequence[str]) -> Scores:
        """Log-probability of each option as the whole answer to each prompt.

        An option is followed by the end of its line (of its turn, in a chat) if one option begins like another, so that
        "money" is not thought likely because "money market" is.

        Parameters
        ----------
        prompts, options : sequence of str

        Raises
        ------
        ArgumentError
            If a prompt leaves no room for the longest option.
        """
        end = (self.tokenizer.eos_token or "\n") if self._chats else "\n"
        tails = [option + (end if nested(options) else "") for option in options]
        joined = [[self._encode(prompt, tail) for tail in tails] for prompt in prompts]
        heads = [_shared(self._encode(prompt), ways) for prompt, ways in zip(prompts, joined, strict=True)]
        ends = [[ids[len(head) :] for ids in ways] for head, ways in zip(heads, joined, strict=True)]
        self._check_lengths(heads, max((len(ids) for ways in ends for ids in ways), default=0))
        out = np.zeros((len(prompts), len(options)), dtype=np.float32)  # row class
        with self._lock:
            for rows in self._batches([max(map(len, ways)) * len(options) for ways in joined]):
                out[rows] = score_options(self.model, [heads[r] for r in rows], [ends[r] for r in rows], self._pad)
        widths = (
            tuple(max(len(ways[i]) for ways in ends) for i in range(len(options))) if prompts else (0,) * len(options)
        )
        return Scores(out, widths)

    def _encode(self, prompt: str, tail: str = "") -> list[int]:
        """Ids of a prompt, in the chat template if there is one, with the beginning of an answer behind it."""
        text, special = prompt.encode("utf-8", "replace").decode(), True
        if self._chats:
            turn = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            special = False  # the template writes them
        blank = " " if tail and not text[-1:].isspace() else ""
        found = self.tokenizer(text + blank + tail, add_special_tokens=special, return_special_tokens_mask=True)
        ids, marks = list(found["input_ids"]), list(found["special_tokens_mask"])
        while special and len(ids) > 1 and marks[len(ids) - 1]:
            ids.pop()  # some tokenizers close every text; behind a closed one there is nothing to write
        return ids

    def _check_lengths(self, encoded: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        bound = self.context_tokens
        longest = max(range(len(encoded)), key=lambda row: len(encoded[row]), default=None)
        if bound is None or longest is None or len(encoded[longest]) + max_new_tokens <= bound:
            return
        raise ArgumentError(
            f"Prompt {longest + 1} of {len(encoded)} has {len(encoded[longest]):,} tokens, and up to {max_new_tokens} "
            f"are to be written, but {self.name} has a context of {bound:,}. Shorten the prompt, give fewer "
            "demonstrations, or lower max_new_tokens."
        )

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of like length together, the longest first, so that too large a batch shows at once."""
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        while order:
            rows = max(1, self.batch_tokens // max(1, lengths[order[0]]))
            yield order[:rows]
            order = order[rows:]

    @property
    def _pad(self) -> int:
        """Any token: pads are masked. The vocabulary stays as it is."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    @cached_property
    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        listed = stated if isinstance(stated, list) else [stated]
        return sorted({int(token) for token in (*listed, self.tokenizer.eos_token_id) if token is not None})

    @torch.inference_mode()
    def _write(
        self, ids: list[list[int]], max_new_tokens: int, temperature: float, seeds: Sequence[int], logprobs: bool
    ) -> list[Answer]:
        tokens, mask = left_padded(ids, self._pad, self.model.device)  # row token
        choice = SeededChoice(temperature, seeds)
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=self._ends or None,
            pad_token_id=self._pad, bos_token_id=self.tokenizer.bos_token_id,
        )  # fmt: skip
        with quiet():
            written = self.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([choice]),
            )[:, tokens.shape[1] :].tolist()  # row token
        return [
            self._answer(len(one), new, [step[row] for step in choice.logprobs] if logprobs else None)
            for row, (one, new) in enumerate(zip(ids, written, strict=True))
        ]

    def _answer(self, prompt_tokens: int, new: list[int], logprobs: list[float] | None) -> Answer:
        stop = next((i for i, token in enumerate(new) if token in self._ends), None)
        words = new if stop is None else new[:stop]
        text = self._decode(words)
        taken = len(words) if stop is None else len(words) + 1
        if logprobs is None:
            return Answer(text, prompt_tokens, taken, stop is None)
        ends = tuple(min(len(self._decode(words[: i + 1])), len(text)) for i in range(len(words)))
        return Answer(text, prompt_tokens, taken, stop is None, tuple(logprobs[: len(words)]), ends)

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _rebuilt(name: str, settings: dict[str, Any]) -> LocalModel:
    return LocalModel(name, **settings)


def _shared(head: list[int], ways: Sequence[Sequence[int]]) -> list[int]:
    """The ids with which the prompt and all its continuations begin: a tokenizer may join its end with an answer."""
    length = len(head)
    for ids in ways:
        alike = next((i for i, (one, other) in enumerate(zip(head, ids, strict=False)) if one != other), len(ids))
        length = min(length, alike, len(ids) - 1)
    return head[:length]
