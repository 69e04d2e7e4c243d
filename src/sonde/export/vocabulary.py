"""A backbone's tokenizer as one file, which Python, Node and browsers read.

tokenizer_json   source -> the text of a tokenizer.json that gives the ids that the library reads
check_ids        whether it does
"""

from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from sonde.errors import BackboneError
from sonde.read.blocks import Source
from sonde.read.view import filler_id, tokenise

UNCUT = 2**30
"""More tokens than any text has: what is too long is cut by the graph, from whole texts."""


def tokenizer_json(source: Source) -> str:
    """The tokenizer of a source, without truncation, padding a batch on the right to its longest text.

    Raises
    ------
    BackboneError
        If the tokenizer is one of Python code, which has no such file.
    """
    own = source.backbone.tokenizer
    fast = getattr(own, "backend_tokenizer", None)
    if fast is None:
        raise BackboneError(
            f"Backbone {source.backbone.name!r} cannot be exported: its tokenizer ({type(own).__name__}) is Python "
            "code and has no tokenizer.json, so that nobody else could make its token ids."
        )
    copied = Tokenizer.from_str(fast.to_str())
    copied.no_truncation()
    pad = filler_id(own)
    copied.enable_padding(direction="right", pad_id=pad, pad_token=copied.id_to_token(pad) or "")
    text: str = copied.to_str()
    return text


def check_ids(tokenizer: Tokenizer, source: Source, texts: Sequence[str]) -> None:
    """`BackboneError` if the file gives a text other ids than the library reads."""
    pieces = tokenise(list(texts), source.backbone.tokenizer, replace(source.view, max_tokens=UNCUT))
    for text, expected in zip(texts, pieces.ids, strict=True):
        encoded = tokenizer.encode(text)
        found = [one for one, real in zip(encoded.ids, encoded.attention_mask, strict=True) if real]
        if found and found != expected:  # none at all: the pad that stands in the batch, as the library reads it
            raise BackboneError(
                f"Backbone {source.backbone.name!r} cannot be exported: the file of its tokenizer gives the text "
                f"{text!r:.60} other token ids than sonde reads ({found[:8]} instead of {expected[:8]})."
            )
