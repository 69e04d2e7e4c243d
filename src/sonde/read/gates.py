"""Gates: stand-ins for the blocks of a model that let only the rows through that are still in.

Gates         the gates of one forward pass: `blocks` for a copy of the model, `shrink` when rows leave
Axes          which arguments of the blocks have a row axis
UnclearRows   raised where an argument's rows cannot be told

A model hands every block the arguments that it made at the start, for all rows. A gate picks the rows still in out of
these arguments, then calls the block itself, so that hooks on it fire. What a block gives back is never cut: a batch
of an earlier size is known by its size, and the next gate picks from it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sonde.read.taps import entering, leaving
from sonde.read.tracing import Stack
from sonde.read.truncation import land, stand_in

Path = tuple[int | str, ...]
"""Where a tensor stands among the arguments of a call: a number or a name, then places in nested tuples and dicts."""
Axes = dict[Path, bool]
"""Whether the first axis of such a tensor counts rows, as `Gates` saw it in batches whose size is no other size."""


class UnclearRows(Exception):
    """An argument of a block whose rows cannot be told: the pass stops, and the rest is read plainly."""


class Gates:
    """The gates of one forward pass.

    Parameters
    ----------
    stack : Stack
        The blocks.
    depth : int
        How many of them run; gates of later ones give back what they take.
    rows, length : int
        Size of the batch, and tokens a row.
    axes : Axes
        Filled while learning, looked up afterwards.
    learning : bool
        Whether sizes tell what has a row axis: the caller vouches that `rows` and what it shrinks to are no other size.
    pause : function
        Called with 0 and what enters block 1, and after block L with L and what leaves it, for the rows still in.

    Attributes
    ----------
    blocks : list of Module
        One gate for each distinct block, in the order of the stack.
    left : int
        Rows still in.
    """

    def __init__(
        self,
        stack: Stack,
        depth: int,
        rows: int,
        length: int,
        axes: Axes,
        learning: bool,
        pause: Callable[[int, Tensor], None],
    ) -> None:
        self.left, self._depth = rows, depth
        self._stack, self._length, self._axes, self._learning, self._pause = stack, length, axes, learning, pause
        self._number = 0  # blocks that were entered
        self._sizes = {rows: torch.arange(rows)}  # earlier and present sizes -> the rows still in
        self._picked: dict[int, tuple[Tensor, Tensor]] = {}  # masks come again with every block
        modules = dict.fromkeys(place.module for place in stack.blocks)
        self.blocks: list[nn.Module] = [stand_in(module, partial(self._enter, module)) for module in modules]

    def shrink(self, kept: Tensor) -> None:
        """Go on with the rows at these indices among those still in."""
        self.left = len(kept)
        self._sizes = {size: index[kept] for size, index in self._sizes.items()}
        self._sizes[self.left] = torch.arange(self.left)
        self._picked.clear()

    def pick(self, tensor: Tensor) -> Tensor:
        """The rows still in, of a tensor that holds rows: those of now, or of an earlier size of the batch."""
        if tensor.shape[0] == self.left:
            return tensor
        if id(tensor) not in self._picked:
            index = self._sizes[tensor.shape[0]].to(tensor.device)
            self._picked[id(tensor)] = (tensor, tensor.index_select(0, index))
        return self._picked[id(tensor)][1]

    def _enter(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden = entering(args, kwargs)
        if hidden is None or hidden.ndim != 3 or hidden.shape[0] not in self._sizes:
            raise UnclearRows("what enters a block is not (row, token, dim)")
        if self._number == 0:
            self._pause(0, hidden)
        if not self.left or self._number == self._depth < len(self._stack.blocks):
            return land(hidden, self._stack.fields)
        if self._number == self._depth or self._stack.blocks[self._number].module is not block:
            raise UnclearRows("the blocks run in another order than when they were traced")
        self._number += 1
        output = block(*self._select(args, ()), **self._select(kwargs, ()))
        after = leaving(output)
        assert after is not None, "blocks are found by the tensor that they give"
        self._pause(self._number, after)
        return output

    def _select(self, value: Any, path: Path) -> Any:
        """The rows still in, of all tensors in a nest of tuples, lists and dicts."""
        if isinstance(value, Tensor):
            return self.pick(value) if self._has_rows(value, path) else value
        if type(value) in (tuple, list):
            return type(value)(self._select(part, (*path, i)) for i, part in enumerate(value))
        if type(value) is dict:
            return {name: self._select(part, (*path, name)) for name, part in value.items()}
        return value

    def _has_rows(self, tensor: Tensor, path: Path) -> bool:
        size = tensor.shape[0] if tensor.ndim else 1
        if size == 1:
            return False  # one for all rows, or the only row still in
        among = size in self._sizes
        known = self._axes.setdefault(path, among) if self._learning else self._axes.get(path)
        if known is None and among and size == self._length:
            raise UnclearRows(f"argument {_name(path)} has {size} rows or {size} tokens")
        if (known and not among) or (self._learning and known != among):
            raise UnclearRows(f"argument {_name(path)} has rows in some calls only")
        return among if known is None else known


def _name(path: Path) -> str:
    return ".".join(map(str, path))
