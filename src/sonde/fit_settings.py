"""The settings of a fit, in a saved model: with them, clones of what was loaded train what was trained.

to_record   parameters of a classifier -> JSON values
of_record   the other way
NAMES       which parameters
SINCE       the protocol of saved models that holds all of them

Where and how texts are read here (`dtype`, `device`, `cache`) belongs to who loads a model, not to the model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

NAMES = (
    *("max_tokens", "long_text", "metric", "paper", "class_weight", "random_state", "sample_rows", "eta", "layers"),
    *("exit_loss", "sites", "poolings"),
)

SINCE = 3


def to_record(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON values. Of a generator of random numbers nothing is kept: it has moved on."""
    found = {name: _plain(parameters[name]) for name in NAMES}
    if isinstance(parameters["random_state"], np.random.RandomState | np.random.Generator):
        found["random_state"] = None
    return found


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """As a classifier takes them; what it does not know comes along, and is refused there."""
    weights = record.get("class_weight")
    own = {"class_weight": dict(weights)} if isinstance(weights, list) else {}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()} | own


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [[_plain(label), _plain(weight)] for label, weight in value.items()]
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(one) for one in value] if isinstance(value, tuple | list | np.ndarray) else value
