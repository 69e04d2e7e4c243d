"""Truncation: a model that stops after its first blocks, sharing weights with the whole.

cut            a shallow copy of a model with a shorter list of blocks
with_blocks    a shallow copy of a model with other blocks
stand_in       a copy of a block that runs something else
land           what a block gives back that only takes
without_pooler a shallow copy that computes no pooler output
POOLER         what the name of a pooler contains
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from sonde.read.taps import entering
from sonde.read.tracing import Stack

POOLER = "pooler"
"""transformers names poolers so in every model that has one."""
_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def cut(model: nn.Module, stack: Stack, depth: int) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield (copy, its first block): candidates for a copy that runs `depth` blocks; the caller tests them.

    Nothing is loaded, copied or raised through a hook: only the modules on the way from the root to the list of
    blocks are copied, shallowly. At depth 0 the list holds a landing, which takes the embeddings and runs nothing.
    Models that count their layers in the configuration (shared layers always do) get a copied configuration.
    """
    modules = [place.module for place in stack.blocks]
    landing = stand_in(modules[0], lambda *args, **kwargs: land(entering(args, kwargs), stack.fields))
    kept = list(dict.fromkeys(modules[:depth])) if depth else [landing]
    path = _path(stack)
    if not path:
        return
    if len(set(stack.names)) == len(stack.names):
        yield _copy_path(model, path, kept, None), kept[0]
    yield _copy_path(model, path, kept, max(depth, 1)), kept[0]


def with_blocks(model: nn.Module, stack: Stack, blocks: list[nn.Module]) -> nn.Module | None:
    """A shallow copy of a model with other blocks, one for each distinct one; None if they are in several lists."""
    path = _path(stack)
    return _copy_path(model, path, blocks, None) if path else None


def _path(stack: Stack) -> list[str]:
    """The way from the root to the list of blocks; empty if there is no such list, or several."""
    parents = {name.rpartition(".")[0] for name in stack.names}
    (parent,) = parents if len(parents) == 1 else ("",)
    return parent.split(".") if parent else []


def stand_in(block: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A copy of a block that keeps its attributes, bears no hooks and runs `forward`."""
    copied = _shallow(block)
    for hooks in _HOOKS:
        copied.__dict__[hooks] = OrderedDict()
    copied.__dict__["forward"] = forward
    return copied


def land(hidden: Tensor | None, fields: int) -> Any:
    """What a block returns that changes nothing: what it takes, in a tuple if the blocks of the stack return one."""
    return (hidden, *[None] * (fields - 1)) if fields else hidden


def without_pooler(model: nn.Module) -> nn.Module:
    """Return a shallow copy of a model whose direct poolers are absent."""
    copied = _shallow(model)
    for name in copied._modules:
        if POOLER in name:
            copied._modules[name] = None
    return copied


def _copy_path(model: nn.Module, path: list[str], blocks: list[nn.Module], count: int | None) -> nn.Module:
    root = without_pooler(model)
    module = root
    _set_layers(module, count)
    for name in path[:-1]:
        child = _shallow(module.get_submodule(name))
        module._modules[name] = child
        module = child
        _set_layers(module, count)
    module._modules[path[-1]] = nn.ModuleList(blocks)
    return root


def _shallow(module: nn.Module) -> nn.Module:
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    return copied


def _set_layers(module: nn.Module, count: int | None) -> None:
    config: Any = getattr(module, "config", None)
    if count is not None and config is not None:
        shorter = copy.copy(config)
        shorter.num_hidden_layers = count
        module.__dict__["config"] = shorter
