"""One backbone's reading as a module that tracers can follow, so that it can leave Python.

Traceable   ids and masks -> the pooled activations at some sites
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sonde.read.forward import Forward, Source
from sonde.read.sites import Site

Finish = Callable[[Site, Tensor], Tensor]
"""(site asked for, pooled activation) -> what is given back for it."""


class Traceable(nn.Module):
    """A backbone cut off after the deepest site, its taps and poolings. Made by `Backbone.traceable`.

    Parameters
    ----------
    forward : Forward
    wanted : sequence of (Source, Site)
        What is tapped, and the site that was asked for.
    finish : function
        What becomes of each activation.

    Attributes
    ----------
    model : nn.Module
        The shortest model that reaches every site; its weights are those of the whole.
    """

    def __init__(self, forward: Forward, wanted: Sequence[tuple[Source, Site]], finish: Finish) -> None:
        super().__init__()
        self._forward, self._wanted, self._finish = forward, tuple(wanted), finish
        with torch.inference_mode():  # the copy is tested by running it, which a tracer must not see
            _, self.model, _ = forward.shortest({source[0] for source, _ in wanted})

    def forward(self, ids: Tensor, mask: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        """Read a batch padded on the right: float32 (row, dim) of every site, in the order in which they were asked.

        `ids` are whole numbers (row, token); `mask` and `content` are bool (row, token).
        """
        taken = self._forward.run(ids, mask, content, {source for source, _ in self._wanted})
        return tuple(self._finish(site, taken[source]) for source, site in self._wanted)
