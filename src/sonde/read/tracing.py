"""Tracing: find the blocks of a model by running one short text, never by the model's name.

Trace          records every module call of a forward pass
find_stack     recorded calls + hidden states -> where the sites of one stack lie
Stack          the places of one stack's sites
refuse_experts a sentence for mixtures of experts
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sonde.errors import BackboneError
from sonde.read.taps import Place, entering, leaving

_INNER = (
    *("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "d_inner", "dff"),
    *("hidden_dim", "ffn_hidden_size"),
)
"""What configurations call the width inside a feed-forward."""
_PARTS = ("text_config", "encoder", "decoder")
_EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "n_experts",
    "ffn_num_experts",
)  # fmt: skip
"""Configuration fields that give a number of experts."""


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    module: nn.Module
    """The module."""
    name: str
    """Its dotted name in the model."""
    nth: int
    """Which of this module's calls, from 0."""
    start: int
    """When it began, on a clock that ticks at each beginning and end."""
    end: int
    """When it ended."""
    entered: Tensor | None
    """Its first floating argument."""
    left: Tensor | None
    """The first tensor of its output."""
    fields: int
    """Fields of its output if that is a tuple, else 0."""


class Trace:
    """Record every module call inside the `with` block, in order of their beginning."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self._model = model
        self._clock = 0
        self._counts: dict[nn.Module, int] = {}
        self._open: list[tuple[int, int, Tensor | None]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Trace":
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._finisher(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.calls.sort(key=lambda call: call.start)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nth = self._counts.get(module, 0)
        self._counts[module] = nth + 1
        self._open.append((nth, self._clock, entering(args, kwargs)))
        self._clock += 1

    def _finisher(self, name: str) -> Any:
        def finish(module: nn.Module, args: Any, output: Any) -> None:
            nth, start, entered = self._open.pop()
            fields = len(output) if isinstance(output, tuple) else 0
            self.calls.append(Call(module, name, nth, start, self._clock, entered, leaving(output), fields))
            self._clock += 1

        return finish


@dataclass(frozen=True)
class Stack:
    """Where the sites of one stack lie."""

    blocks: tuple[Place, ...]
    """The output of each block's call, block 1 first."""
    downs: tuple[Place, ...]
    """The input of each block's down projection."""
    names: tuple[str, ...]
    """The dotted names of the blocks in the model."""
    fields: int
    """Fields of the tuple that block 1 returns; 0 if it returns a bare tensor."""
    hidden_widths: tuple[int, ...]
    """Width of hidden states 0..n."""
    ffn_widths: tuple[int, ...]
    """Width of what enters each down projection."""

    @property
    def layers(self) -> int:
        """How many blocks it has."""
        return len(self.blocks)

    @property
    def multiplications(self) -> int:
        """Of all blocks, a token, without those of attention's scores."""
        return sum(weight.numel() for block in self.blocks for weight in block.module.parameters())


def find_stack(
    calls: Sequence[Call],
    hidden_states: Sequence[Tensor],
    tokens: int,
    what: str,
    inner: AbstractSet[int] = frozenset(),
) -> Stack:
    """Match the calls of one forward pass with its hidden states.

    Block L is the outermost call that takes hidden state L-1 in and gives hidden state L out; the last block is
    followed by the final norm, so that its input alone must match.

    Parameters
    ----------
    calls : sequence of Call
        In order of their beginning.
    hidden_states : sequence of (1, token, dim)
        As transformers returns them: n + 1 of them.
    tokens : int
        How many tokens the text has.
    what : str
        The stack and the backbone, for sentences.
    inner : set of int
        Widths that the configuration states for the inside of feed-forwards.

    Raises
    ------
    BackboneError
        If a hidden state is no block's input or output, or the model is a mixture of experts.
    """
    n_layers = len(hidden_states) - 1
    blocks: list[Call] = []
    downs: list[Call] = []
    ended = -1
    for layer in range(1, n_layers + 1):
        after = hidden_states[layer] if layer < n_layers else None
        block = _first_block(calls, ended, hidden_states[layer - 1], after)
        if block is None:
            raise BackboneError(
                f"hidden.{layer} of {what} cannot be read: no module turns hidden state {layer - 1} into hidden "
                f"state {layer}. Only models that are one chain of blocks can be read."
            )
        blocks.append(block)
        downs.append(_down_projection(calls, block, tokens, hidden_states[layer - 1].shape[-1], what, inner))
        ended = block.end
    return Stack(
        blocks=tuple(Place(call.module, call.nth, "output") for call in blocks),
        downs=tuple(Place(call.module, call.nth, "input") for call in downs),
        names=tuple(call.name for call in blocks),
        fields=blocks[0].fields,
        hidden_widths=tuple(state.shape[-1] for state in hidden_states),
        ffn_widths=tuple(call.entered.shape[-1] for call in downs if call.entered is not None),
    )


def refuse_experts(config: Mapping[str, Any], what: str) -> None:
    """Raise a sentence if the configuration is that of a mixture of experts."""
    nested = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    for fields in nested:
        for name in _EXPERTS:
            number = fields.get(name)
            if isinstance(number, int) and number > 1:
                raise _experts(what, f"{name} = {number}")


def _experts(what: str, why: str) -> BackboneError:
    return BackboneError(
        f"{what} is a mixture of experts ({why}): its blocks have no single down projection, and sonde reads dense "
        "models only. Choose a dense backbone."
    )


def _first_block(calls: Sequence[Call], ended: int, before: Tensor, after: Tensor | None) -> Call | None:
    for call in calls:  # in order of their beginning: the outermost comes first
        if call.start > ended and _same(call.entered, before) and (after is None or _same(call.left, after)):
            return call
    return None


def _same(found: Tensor | None, sought: Tensor) -> bool:
    if found is None or found.ndim != sought.ndim or found.shape[-1] != sought.shape[-1]:
        return False
    found = found[:, : sought.shape[1]]  # (row, token, dim): some models pad inside, on the right
    return found.shape == sought.shape and torch.equal(found, sought)


def inner_widths(config: Any) -> set[int]:
    """Widths that a configuration, or a part of it, states for the inside of feed-forwards."""
    parts = [config, *(part for name in _PARTS if (part := getattr(config, name, None)) is not None)]
    stated = [getattr(part, name, None) for part in parts for name in _INNER]
    return {number for number in stated if type(number) is int and number > 0}


def _down_projection(
    calls: Sequence[Call], block: Call, tokens: int, width: int, what: str, inner: AbstractSet[int]
) -> Call:
    """The last linear map within a block's call that returns from the inner width to the residual width.

    Blocks that end in another map (an adapter, a way out of a bottleneck) are known by the stated inner width; where
    none is stated or found, it is the last map to the residual width, whatever it reads.
    """
    if _has_expert_tensors(block.module):
        raise _experts(what, f"{block.name} holds weights with three axes, as stacked experts have")
    within = [call for call in calls if block.start < call.start and call.end < block.end]
    maps = _outermost([call for call in within if _is_linear(call)])
    if any(_count(call.entered) < tokens for call in maps):
        raise _experts(what, f"linear maps of {block.name} see a part of the tokens")
    inside = [call for call in maps if call.entered is not None and call.entered.shape[-1] in inner - {width}]
    down = _returning(inside, width) or inside or _returning(maps, width)
    if not down or _count(down[-1].entered) < tokens:
        raise BackboneError(f"ffn of {what} cannot be read: {block.name} has no down projection.")
    return down[-1]


def _returning(calls: Sequence[Call], width: int) -> list[Call]:
    return [call for call in calls if call.left is not None and call.left.shape[-1] == width]


def _is_linear(call: Call) -> bool:
    """Linear maps of any make, quantised and adapted ones too: a 2-D weight between floating tensors."""
    weight = getattr(call.module, "weight", None)
    floating = call.left is not None and call.left.is_floating_point()
    return isinstance(weight, Tensor) and weight.ndim == 2 and call.entered is not None and floating


def _outermost(calls: Sequence[Call]) -> list[Call]:
    """Leave out calls within another of `calls`: an adapter calls the linear map that it wraps."""
    kept: list[Call] = []
    for call in calls:
        if not kept or call.start > kept[-1].end:
            kept.append(call)
    return kept


def _count(activation: Tensor | None) -> int:
    return 0 if activation is None else activation.numel() // activation.shape[-1]


def _has_expert_tensors(block: nn.Module) -> bool:
    """Whether a module other than a convolution holds weights with three axes: expert, in, out."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return any(
        parameter.ndim == 3 and parameter.shape[0] > 1
        for module in block.modules()
        if not isinstance(module, convolutions)
        for parameter in module.parameters(recurse=False)
    )
