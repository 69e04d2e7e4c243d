"""Sites: named places inside a backbone where activations are read.

Site     one place: hidden state, feed-forward activation, pooler output or sentence embedding
expand   a specification such as "hidden.*" or "ffn.-5:" -> the sites it names in a given backbone
KINDS    the kinds of site, each with its meaning
MAIN, DECODER   the names of the stacks
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sonde.errors import BackboneError

MAIN = "main"
"""The only stack of a model, or the encoder of an encoder-decoder model."""
DECODER = "decoder"
"""The second stack of an encoder-decoder model; it reads the text shifted right by one token."""
KINDS = {
    "hidden": "hidden states: 0 = embedding output, n = the last, after the final norm",
    "ffn": "feed-forward activations: what enters the down projection of block 1 to n",
    "pooler": "the pooler output, where the checkpoint holds its weights",
    "sentence": "the sentence embedding of the backbone",
}
_FIRST_LAYER = {"hidden": 0, "ffn": 1}  # blocks count from 1; hidden state 0 comes before the first block


@dataclass(frozen=True, order=True)
class Site:
    """A place in a backbone."""

    stack: str
    """`MAIN`, or `DECODER` in encoder-decoder models."""
    kind: str
    """One of `KINDS`."""
    layer: int | None = None
    """Hidden state or block number; None for pooler and sentence."""

    def __str__(self) -> str:
        prefix = "decoder." if self.stack == DECODER else ""
        return f"{prefix}{self.kind}" if self.layer is None else f"{prefix}{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Read the canonical form that `str` writes, such as "hidden.6" or "decoder.ffn.2"."""
        stack, rest = _split_stack(name)
        kind, _, layer = rest.partition(".")
        if kind in _FIRST_LAYER and layer.isdecimal():
            return cls(stack, kind, int(layer))
        if rest in KINDS and kind not in _FIRST_LAYER and stack == MAIN:
            return cls(stack, kind)
        raise BackboneError(f"{name!r} is no site. A site is written like hidden.6, ffn.3, pooler or sentence.")


def expand(spec: str, layers: Mapping[str, int]) -> tuple[Site, ...]:
    """List the sites that a specification names.

    Parameters
    ----------
    spec : str
        `hidden` or `ffn`, a dot, and `*`, a number (negative: from the end) or a Python slice over layer numbers;
        or `pooler`, or `sentence`. In encoder-decoder models `decoder.` or `encoder.` may stand in front.
    layers : mapping of stack to int
        How many blocks each stack of the backbone has.

    Returns
    -------
    tuple of Site
        In the order of the layers.

    Raises
    ------
    BackboneError
        If the specification is not understood, or names nothing in this backbone.
    """
    stack, rest = _split_stack(spec)
    if (rest != spec and DECODER not in layers) or stack not in layers:
        raise BackboneError(f"Site {spec!r} does not exist: this backbone has one stack. {_existing(layers)}")
    kind, _, selector = rest.partition(".")
    if kind in ("pooler", "sentence") and not selector and stack == MAIN:
        return (Site(MAIN, kind),)
    if kind not in _FIRST_LAYER or not selector:
        raise BackboneError(f"Site {spec!r} is unknown. {_existing(layers)}")
    chosen = _select(spec, selector, layers[stack], layers)
    sites = tuple(Site(stack, kind, layer) for layer in chosen if layer >= _FIRST_LAYER[kind])
    if not sites:
        raise BackboneError(f"Site {spec!r} is out of range. {_existing(layers)}")
    return sites


def _split_stack(name: str) -> tuple[str, str]:
    for prefix, stack in (("decoder.", DECODER), ("encoder.", MAIN)):
        if name.startswith(prefix):
            return stack, name.removeprefix(prefix)
    return MAIN, name


def _select(spec: str, selector: str, n_layers: int, layers: Mapping[str, int]) -> list[int]:
    """Layer numbers 0..n that a selector names; slices and negative numbers as in Python."""
    numbers = list(range(n_layers + 1))
    if selector == "*":
        return numbers
    try:
        bounds = [int(part) if part else None for part in selector.split(":")]
        chosen = numbers[slice(*bounds)] if len(bounds) > 1 else [numbers[bounds[0]]]  # type: ignore[index]
    except (ValueError, TypeError):
        raise BackboneError(
            f"Site {spec!r} is not understood: after the dot stands *, a number or a slice. {_existing(layers)}"
        ) from None
    except IndexError:
        return []
    return chosen


def _existing(layers: Mapping[str, int]) -> str:
    names = []
    for stack, n_layers in layers.items():
        prefix = "decoder." if stack == DECODER else ""
        names.append(f"{prefix}hidden.0 to {prefix}hidden.{n_layers}, {prefix}ffn.1 to {prefix}ffn.{n_layers}")
    return f"It has {', '.join(names)}, pooler (where the checkpoint holds one) and sentence."
