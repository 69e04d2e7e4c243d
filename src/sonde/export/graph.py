"""A fitted classifier as one module: token ids and masks in, probabilities out.

Graph        the module
Reading      one backbone's part of it
seen         what a view leaves of texts that are longer than a backbone reads
as_graph     fitted classifier -> Graph
inputs_of    names of the inputs of each backbone
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from sonde.errors import ArgumentError
from sonde.export.heads import head_of
from sonde.read.blocks import Block, Source
from sonde.read.view import HEAD_SHARE, filler_id, special_tokens
from sonde.scoring import blocks_of


@dataclass(frozen=True)
class Window:
    """How much of a text one backbone sees, in tokens."""

    most: int
    """Tokens in one pass, special ones included."""
    prefix: int
    """Special tokens that begin a text."""
    suffix: int
    """Special tokens that end it."""
    head: int
    """Tokens of the beginning that stay of a longer text, special ones included; the rest is from its end."""
    content: int
    """Where the content begins: after the special tokens, or after the sink of a causal model."""

    @classmethod
    def of(cls, source: Source) -> "Window":
        """What the view of a source sees.

        Raises
        ------
        ArgumentError
            If it reads long texts in several windows.
        """
        view, causal = source.view, source.backbone.causal
        if view.long_text == "windows":
            raise ArgumentError(
                "This model reads long texts in windows, as many as a text needs, and one graph has one. Train it with "
                "long_text='head_tail' or 'cut' (--long-text), or keep it behind `sonde serve`."
            )
        prefix, suffix = map(len, special_tokens(source.backbone.tokenizer))
        room = max(view.max_tokens - prefix - suffix, 1)
        head = prefix + (int(room * HEAD_SHARE) if view.long_text == "head_tail" else room)
        return cls(prefix + room + suffix, prefix, suffix, head, max(prefix, 1) if causal else prefix)


def seen(
    ids: Int64[Tensor, "row token"], mask: Bool[Tensor, "row token"], window: Window
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut texts as the library does: (ids, mask, content), each (row, at most `window.most`).

    Parameters
    ----------
    ids, mask : (row, token)
        Whole texts with their special tokens, padded on the right. A row without any token is read as the one pad that
        stands in it.
    """
    length = mask.sum(dim=1, keepdim=True).clamp(min=1)  # row 1
    left_out = (length - window.most).clamp(min=0)  # row 1
    width = torch.sym_min(ids.shape[1], window.most)  # type: ignore[no-untyped-call]
    position = torch.arange(width, device=ids.device)[None, :]  # 1 seen
    chosen = position + left_out * (position >= window.head)  # row seen
    real = position < length  # row seen
    content = (position >= window.content) & (position < length.clamp(max=window.most) - window.suffix)
    return ids.gather(1, chosen), real, content & real


class Reading(nn.Module):
    """Ids and mask -> the blocks of one backbone, by name."""

    def __init__(self, source: Source, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.window, self.names = Window.of(source), [block.name for block in blocks]
        self.backbone = source.backbone.traceable([(block.site, block.pooling or None) for block in blocks])

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Read a batch."""
        vectors = self.backbone(*seen(ids, mask > 0, self.window))
        return dict(zip(self.names, vectors, strict=True))


class Graph(nn.Module):
    """Ids and mask of each backbone -> calibrated probabilities (row, class)."""

    def __init__(self, readings: Sequence[Reading], head: nn.Module, temperature: float, multilabel: bool) -> None:
        super().__init__()
        self.readings, self.head = nn.ModuleList(readings), head
        self.temperature, self.multilabel = temperature, multilabel

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """`inputs` are ids and mask of the first backbone, of the second, and so on."""
        blocks: dict[str, Tensor] = {}
        for place, reading in enumerate(self.readings):
            blocks |= reading(inputs[2 * place], inputs[2 * place + 1])
        logits = self.head(blocks) / self.temperature  # row class
        return torch.sigmoid(logits) if self.multilabel else torch.softmax(logits, dim=1)


def as_graph(classifier: Any, sources: Mapping[int, Source]) -> Graph:
    """The module of a fitted classifier, with the weights of its backbones.

    Raises
    ------
    RecipeError
        If its learner reads the text itself.
    ArgumentError, BackboneError
        If its view, or a backbone, has no graph.
    """
    head = head_of(classifier.model_, classifier.recipe)
    blocks = blocks_of(classifier.model_, sources).values()
    whole = [Block(block.backbone, block.site, block.pooling) for block in blocks]  # heads pick their own columns
    readings = [Reading(source, [b for b in whole if b.backbone == index]) for index, source in sources.items()]
    return Graph(readings, head, classifier.temperature_, classifier.multilabel_).eval()


def inputs_of(backbones: int) -> list[tuple[str, str]]:
    """(name of the ids, name of the mask) of each backbone; those of the first have no number."""
    numbers = ["" if place == 0 else f"_{place + 1}" for place in range(backbones)]
    return [(f"input_ids{number}", f"attention_mask{number}") for number in numbers]


def pad_ids(sources: Mapping[int, Source]) -> list[int]:
    """The id that stands in pads, for each backbone."""
    return [filler_id(source.backbone.tokenizer) for source in sources.values()]
