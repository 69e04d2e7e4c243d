"""Naming: labels -> the names by which prompts call them.

name_labels   the `label_names` argument and the classes -> one name a class
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sonde.errors import ArgumentError


def name_labels(classes: np.ndarray, label_names: Any) -> list[str]:
    """One name a class.

    Parameters
    ----------
    classes : (class,)
    label_names : mapping, sequence of str, or None
        Label -> name; or names of the labels 0, 1, ...; or None where the labels are names already.

    Raises
    ------
    ArgumentError
        If a label has no name, or the labels are numbers and nothing names them.
    """
    labels = classes.tolist()
    if label_names is None:
        if all(_is_number(label) for label in labels):
            raise ArgumentError(
                f"The labels are numbers ({', '.join(map(str, labels[:3]))}, ...), which say nothing to a language "
                "model. Name them: label_names={0: 'negative', 1: 'positive'}, or a list of the names of 0, 1, ..."
            )
        return [str(label) for label in labels]
    if isinstance(label_names, Mapping):
        named = {str(label): str(name) for label, name in label_names.items()}
    elif isinstance(label_names, Sequence) and not isinstance(label_names, str):
        named = {str(position): str(name) for position, name in enumerate(label_names)}
        labels = [int(label) if isinstance(label, bool) else label for label in labels]
    else:
        raise ArgumentError(f"label_names is {label_names!r:.60}; give a dict {{label: name}}, or a list of names.")
    lacking = [label for label in labels if str(label) not in named]
    if lacking:
        raise ArgumentError(
            f"label_names has no name for {len(lacking)} of the {len(labels)} labels, such as {lacking[0]!r}."
        )
    return [named[str(label)] for label in labels]


def _is_number(label: object) -> bool:
    return isinstance(label, bool | int) or (isinstance(label, str) and label.strip().lstrip("+-").isdecimal())


def no_label(classes: np.ndarray) -> Any:
    """What stands for a label where none is named: "" beside texts, the number below the least, None beside bool."""
    if classes.dtype.kind in "US":
        return ""  # a blank label is a missing one, and no class
    return None if classes.dtype == bool else int(classes.min()) - 1
