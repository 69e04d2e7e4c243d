"""Baselines: what a user would try instead, with the face of `TextClassifier`, so that one harness measures all.

IOPrompt         task, labels, demonstrations if any, and the text: the answer is read as a label
CARP             clues and reasoning before the label, demonstrations by similarity, several answers, a vote
LocalModel       a causal language model of transformers that writes answers on this machine
Endpoint         any OpenAI-compatible HTTP endpoint
open_generator   a model id, folder or URL -> one of the two
"""

import importlib
from typing import Any

__all__ = ["CARP", "Endpoint", "IOPrompt", "LocalModel", "open_generator"]

_HOMES = {
    "IOPrompt": "sonde.baselines.io_prompt",
    "CARP": "sonde.baselines.carp",
    "LocalModel": "sonde.baselines.local",
    "Endpoint": "sonde.baselines.endpoint",
    "open_generator": "sonde.baselines.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sonde.baselines' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
