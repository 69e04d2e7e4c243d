"""Demonstrations: labelled training texts, as prompts show them.

pool   the different training rows
draw   some of them at random, the classes in turn
show   one as it stands in a prompt
"""

import numpy as np
from jaxtyping import Int64

from sonde.baselines.cutting import first_words
from sonde.baselines.templates import Template
from sonde.rows import Labelled


def pool(train: Labelled) -> list[tuple[str, int]]:
    """The different training rows, as (text, class)."""
    return list(dict.fromkeys(zip(train.texts, train.targets.ids.tolist(), strict=True)))


def draw(labels: list[int], count: int, seed: int) -> Int64[np.ndarray, " demonstration"]:
    """Rows drawn at random, the classes in turn, then shuffled."""
    random = np.random.default_rng(seed)
    queues: dict[int, list[int]] = {}
    for row in random.permutation(len(labels)).tolist():
        queues.setdefault(labels[row], []).append(row)
    taken: list[int] = []
    while len(taken) < min(count, len(labels)):
        for rows in queues.values():
            if rows and len(taken) < count:
                taken.append(rows.pop())
    return np.asarray(random.permutation(taken), dtype=np.int64)


def show(template: Template, text: str, label: str, max_words: int, **more: str) -> str:
    """One example, as it stands in a prompt."""
    return template.fill(text=first_words(text, max_words)[0], label=label, **more)
