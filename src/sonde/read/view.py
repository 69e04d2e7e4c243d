"""What the model sees of a text: its tokens, cut or windowed.

View        how many tokens, and what happens to long texts
Pieces      texts as runs of token ids, with what was lost
tokenise    texts -> Pieces
parts       the tokens of one text -> those of its pieces
clean       a text that every tokenizer accepts
filler_id   the token id that stands in pads
LONG_TEXT   the ways to treat long texts
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64

LONG_TEXT = ("cut", "head_tail", "windows")

DEFAULT_MAX_TOKENS = 512
"""The length at which BERT-sized encoders end, and the most that sonde reads by default."""

PROBES = ("a", "the", "A", "0", ".", "的", "ا", "и")
"""Texts that most vocabularies know in one token or another; asked in this order."""

HEAD_SHARE = 0.25
"""Of `head_tail`: Sun et al. 2019 (How to Fine-Tune BERT for Text Classification, 5.3.1) keep 128 + 382 of 510."""


@dataclass(frozen=True)
class View:
    """How a backbone sees texts."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    """Most tokens in one forward pass, special tokens included."""
    long_text: str = "cut"
    """`cut` keeps the beginning, `head_tail` a quarter from the beginning and the rest from the end,
    `windows` reads everything in windows of equal length and pools over all of them."""

    def key(self) -> dict[str, Any]:
        """What of the view changes the values read, for the store."""
        return {"max_tokens": self.max_tokens, "long_text": self.long_text}


@dataclass(frozen=True)
class Pieces:
    """Texts as runs of token ids; a text has several pieces only under `windows`."""

    ids: list[list[int]]
    """Token ids of each piece, special tokens included."""
    owner: Int64[np.ndarray, "piece"]
    """The text that each piece belongs to, ascending."""
    prefix: int
    """Special tokens that begin every piece."""
    suffix: int
    """Special tokens that end every piece."""
    tokens: Int64[np.ndarray, "row"]
    """Tokens of each whole text, special tokens of one piece included."""
    lost: Int64[np.ndarray, "row"]
    """Tokens of each text that the model does not see."""

    def content_start(self, causal: bool) -> int:
        """Where the content of a piece begins: after the special tokens, or after the sink of a causal model."""
        return max(self.prefix, 1) if causal else self.prefix


def clean(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can encode, by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def tokenise(texts: Sequence[str], tokenizer: Any, view: View) -> Pieces:
    """Turn texts into pieces of at most `view.max_tokens` tokens, special tokens included."""
    prefix, suffix = special_tokens(tokenizer)
    room = max(view.max_tokens - len(prefix) - len(suffix), 1)
    bare = {"add_special_tokens": False, "truncation": False, "verbose": False}
    contents = tokenizer(list(texts), **bare)["input_ids"] if texts else []
    ids: list[list[int]] = []
    owner: list[int] = []
    lost = np.zeros(len(texts), dtype=np.int64)
    for row, content in enumerate(contents):
        seen = parts(content, room, view.long_text)
        lost[row] = len(content) - sum(map(len, seen))
        ids += [[*prefix, *part, *suffix] or [filler_id(tokenizer)] for part in seen]
        owner += [row] * len(seen)
    tokens = np.array([len(content) + len(prefix) + len(suffix) for content in contents], dtype=np.int64)
    return Pieces(ids, np.array(owner, dtype=np.int64), len(prefix), len(suffix), tokens, lost)


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that this tokenizer puts before and after one text, found by asking it."""
    for probe in PROBES:
        bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        if not bare or set(bare) & set(tokenizer.all_special_ids):
            continue  # a text that is dropped or unknown does not tell where it stands
        full = list(tokenizer(probe)["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
    mask = list(tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"])
    full = list(tokenizer("a")["input_ids"])
    start = mask.index(0) if 0 in mask else len(full) - len(full) // 2  # all special: one in front, one behind
    return full[:start], full[start + mask.count(0) :]


def parts(content: list[int], room: int, long_text: str) -> list[list[int]]:
    """What of a text each piece holds, if a piece has room for `room` tokens beside the special ones."""
    if len(content) <= room:
        return [content]
    if long_text == "cut":
        return [content[:room]]
    if long_text == "head_tail":
        head = int(room * HEAD_SHARE)
        return [content[:head] + content[len(content) - (room - head) :]]
    windows = -(-len(content) // room)
    edges = [len(content) * i // windows for i in range(windows + 1)]
    return [content[a:b] for a, b in pairwise(edges)]


def filler_id(tokenizer: Any) -> int:
    """The id of pads, and of the one token of a blank text where no special tokens are added.

    The tokenizer's own pad token if it has one, else any other special token: the mask says what is real, and the
    vocabulary is never changed to get a pad token.
    """
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0
