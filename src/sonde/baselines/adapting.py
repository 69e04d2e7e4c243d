"""Adapting: low-rank adapters (LoRA) in a model, through peft (extra `finetune`).

Lora     rank, scale and places of the adapters
adapt    put them into a model; they and its head are what training changes from then on
merge    add what they learned to the weights, and take them out

Hu et al. 2021 (arXiv 2106.09685): a frozen matrix W of a linear map becomes W + (alpha / rank) B A.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from sonde.baselines.tunable import Tunable
from sonde.errors import ArgumentError, need

DROPOUT = 0.1
"""Before the adapters (Hu et al. 2021, tables 11 and 12)."""
_NAMED = 12
"""Places that a sentence lists: an architecture has four to eight kinds of linear map."""


@dataclass(frozen=True)
class Lora:
    """What the adapters are."""

    rank: int = 8
    """Width of the low-rank maps (Hu et al. 2021, section 4.2: 8 serves most tasks)."""
    alpha: float = 16.0
    """Their output counts alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Last parts of the names of linear maps; None: all of the backbone, which it takes to reach full fine-tuning
    (Dettmers et al. 2023, section 4)."""


def need_peft() -> ModuleType:
    """The module peft, or a `MissingExtraError` with the command that installs it."""
    return need("peft", "finetune")


def adapt(tunable: Tunable, lora: Lora) -> Any:
    """Put adapters into the model, in place; everything but them and the head is frozen.

    Returns
    -------
    peft.PeftModel
        A handle by which `merge` takes them out again.

    Raises
    ------
    MissingExtraError
        If peft is not installed.
    ArgumentError
        If no linear map of the backbone has such a name.
    """
    peft = need_peft()
    places = _places(tunable, lora.targets)
    head = [one for name, one in tunable.model.named_parameters() if name in tunable.head]
    transposed = isinstance(tunable.model.get_submodule(places[0]), Conv1D)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=DROPOUT, target_modules=places, fan_in_fan_out=transposed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # between peft and transformers, about names that are to change
        adapted = peft.get_peft_model(tunable.model, config)
    for parameter in head:
        parameter.requires_grad_(True)
    return adapted


def merge(adapted: Any) -> Any:
    """Add what the adapters learned to the weights of the model that they are in; the model, without them."""
    return adapted.merge_and_unload()


def _places(tunable: Tunable, targets: Sequence[str] | None) -> list[str]:
    """Full names of the linear maps that get an adapter."""
    inside = f"{tunable.model.base_model_prefix}."
    maps = [
        name
        for name, module in tunable.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(inside) and f"{name}.weight" not in tunable.head
    ]
    if targets is None:
        return maps
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in maps):
            kinds = sorted({name.rpartition(".")[2] for name in maps})
            more = f" and {len(kinds) - _NAMED} more" if len(kinds) > _NAMED else ""
            raise ArgumentError(
                f"targets names {target!r}, but no linear map of {type(tunable.model).__name__} is called so. Its "
                f"linear maps are: {', '.join(kinds[:_NAMED])}{more}. Leave targets out to adapt all."
            )
    return [name for name in maps if any(f".{name}".endswith(f".{target}") for target in targets)]
