"""Baselines: what a user would try instead, with the face of `TextClassifier`, so that one harness measures all.

IOPrompt         task, labels, demonstrations if any, and the text: the answer is read as a label
CARP             clues and reasoning before the label, demonstrations by similarity, several answers, a vote
FineTuning       all weights of a backbone, or low-rank adapters, with a classification head
SVM              a linear support vector machine on TF-IDF
KNN              the labels of the most similar training texts
LocalModel       a causal language model of transformers that writes answers on this machine
Endpoint         any OpenAI-compatible HTTP endpoint
open_generator   a model id, folder or URL -> one of the two
"""

import importlib
from typing import Any

__all__ = ["CARP", "KNN", "SVM", "Endpoint", "FineTuning", "IOPrompt", "LocalModel", "open_generator"]

_HOMES = {
    "IOPrompt": "sonde.baselines.io_prompt",
    "CARP": "sonde.baselines.carp",
    "FineTuning": "sonde.baselines.finetuning",
    "SVM": "sonde.baselines.svm",
    "KNN": "sonde.baselines.knn",
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
