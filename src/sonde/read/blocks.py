"""What is read of which texts, and what comes of it.

Block     which values: backbone, site, pooling
Source    a backbone seen through a view
Window    the blocks of a run of consecutive texts
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from sonde.read.backbone import Backbone
from sonde.read.sites import Site
from sonde.read.view import View


@dataclass(frozen=True)
class Block:
    """One array of values a text."""

    backbone: int
    """Index into the sources."""
    site: Site
    """Where the model is tapped."""
    pooling: str = ""
    """How tokens become one vector; empty for the site `sentence`, which brings its own."""
    columns: tuple[int, ...] | None = None
    """The features that are read, ascending; None = all."""

    @property
    def name(self) -> str:
        """`<backbone>/<site>/<pooling>`, the name that learners know."""
        return "/".join(filter(None, (str(self.backbone), str(self.site), self.pooling)))


@dataclass(frozen=True)
class Source:
    """A backbone seen through a view."""

    backbone: Backbone
    """The frozen model."""
    view: View
    """What it sees of a text."""


@dataclass(frozen=True)
class Window:
    """Blocks of consecutive texts."""

    start: int
    """Index of the first text."""
    blocks: dict[str, Float32[np.ndarray, "row dim"]]
    """Block name -> values."""
    tokens: Int64[np.ndarray, "source row"]
    """Tokens of each text, for each source."""
    lost: Int64[np.ndarray, "source row"]
    """Of these, tokens that the model did not see."""

    @property
    def rows(self) -> int:
        """Number of texts."""
        return int(self.lost.shape[1])
