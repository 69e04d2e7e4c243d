"""sonde: text classification from the inside of frozen language models.

    TextClassifier       texts -> labels, under the scikit-learn contract
    ActivationFeatures   texts -> matrix of activations, a scikit-learn transformer
    load                 a saved classifier, from its folder
    explain              why a classifier gives a text its label
    report               how good a classifier is on labelled rows, as one page

Nothing heavy is imported until one of these names is used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["ActivationFeatures", "TextClassifier", "__version__", "explain", "load", "report"]

_HOMES = {
    "TextClassifier": "sonde.classifier",
    "load": "sonde.loading",
    "explain": "sonde.explanation",
    "ActivationFeatures": "sonde.features",
    "report": "sonde.show.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sonde' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
