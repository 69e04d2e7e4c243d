"""Truncation: a model that stops after its first blocks, sharing weights with the whole.

cut            a shallow copy of a model with a shorter list of blocks
without_pooler a shallow copy that computes no pooler output
POOLER         what the name of a pooler contains
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

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
    parent, _, _ = stack.names[0].rpartition(".")
    path = parent.split(".") if parent else []
    modules = [place.module for place in stack.blocks]
    repeated = len(set(stack.names)) < len(stack.names)
    in_one_list = all(name.rpartition(".")[0] == parent for name in stack.names)
    if not path or not in_one_list:
        return
    kept = list(dict.fromkeys(modules[:depth])) if depth else [_landing(modules[0], stack.fields)]
    if not repeated:
        yield _copy_path(model, path, kept, None), kept[0]
    yield _copy_path(model, path, kept, max(depth, 1)), kept[0]


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


def _landing(block: nn.Module, fields: int) -> nn.Module:
    """A copy of a block that keeps its attributes and gives back what it takes, in a tuple if the block would."""

    def land(*args: Any, **kwargs: Any) -> Any:
        hidden = entering(args, kwargs)
        return (hidden, *[None] * (fields - 1)) if fields else hidden

    landing = _shallow(block)
    for hooks in _HOOKS:
        landing.__dict__[hooks] = OrderedDict()
    landing.__dict__["forward"] = land
    return landing
