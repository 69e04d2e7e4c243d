"""An explanation as plain data.

Explanation   a score, taken apart
Layer, Neuron, Token, Gram   what it is taken apart into
NGRAMS        what stands for n-grams among the layers
EXACT, APPROXIMATE   how contributions were found
"""

from dataclasses import dataclass
from typing import Any

NGRAMS = "n-grams"
"""Stands in place of a site for what the text itself says."""

EXACT, APPROXIMATE = "exact", "integrated gradients"
"""Everything is linear, or a network was on the way."""


@dataclass(frozen=True)
class Layer:
    """What one layer of a backbone, or the n-grams, add to the score."""

    backbone: int | None
    """Index of the backbone; None for n-grams."""
    site: str
    """Such as `hidden.6`; `n-grams` for what the text itself says."""
    contribution: float
    """To the score, all its neurons and poolings together; negative: against the label."""
    share: float
    """Its size over the sizes of all layers and the n-grams, 0 to 1."""


@dataclass(frozen=True)
class Neuron:
    """What one neuron adds to the score."""

    backbone: int
    """Index of the backbone."""
    site: str
    """Such as `hidden.6` or `ffn.3`."""
    layer: int | None
    """The number in it; None for `pooler` and `sentence`."""
    pooling: str
    """How its values at the tokens became one; empty for `sentence` and `pooler`."""
    neuron: int
    """Its index in the layer, from 0."""
    contribution: float
    """To the score, measured from its mean over the training rows."""


@dataclass(frozen=True)
class Token:
    """What one position of a backbone, or a word that only n-grams read, adds to the score."""

    text: str
    """Its characters in the text; as the tokenizer writes it where these are not known."""
    start: int | None
    """Its first character; None for special tokens and for tokenizers that do not tell."""
    stop: int | None
    """The one after its last."""
    contribution: float
    """To the score: of its hidden states, and of the n-grams that cover its characters."""
    special: bool
    """Whether it stands for no part of the text, such as [CLS]."""
    backbone: int | None
    """Index of the backbone whose token it is; None for words that only n-grams read."""


@dataclass(frozen=True)
class Gram:
    """What one n-gram adds to the score."""

    gram: str
    """Lower case; words joined by a blank."""
    kind: str
    """`word` or `char`."""
    count: int
    """Times that it stands in the text."""
    contribution: float
    """To the score, of all these times; contained in that of the tokens."""


@dataclass(frozen=True)
class Explanation:
    """A score = bias + the contributions of all tokens + remainder."""

    text: str
    """As it was given."""
    label: Any
    """The label that is explained."""
    against: Any
    """The other label of the comparison; None: all others together, or a multi-label model."""
    probability: float
    """Of the label."""
    score: float
    """Its log-odds: against all others; with `against`, against that label; multi-label: present against absent."""
    bias: float
    """The score of the average training text."""
    remainder: float
    """What the sum lacks: rounding, and for `integrated gradients` the error of the approximation."""
    method: str
    """`exact`, or `integrated gradients` where a network is on the way."""
    tokens: tuple[Token, ...]
    """In the order of the text."""
    layers: tuple[Layer, ...]
    """In the order of the model, n-grams last."""
    neurons: tuple[Neuron, ...]
    """Those with the largest contributions, for or against, largest first."""
    grams: tuple[Gram, ...]
    """Likewise."""
