"""Taps: hooks that pool activations at chosen sites while a model runs, and drop the tokens at once.

Taps     a context manager that owns the life of its hooks
Place    where a site lies in the model: a module, which of its calls, and which end
Tokens   the tokens of one stack in one batch: their number, mask and content mask
entering, leaving   the activations that go into and come out of a module's call
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sonde.read.packing import Bags, Span
from sonde.read.pooling import pool_all, pool_packed
from sonde.read.sites import Site


@dataclass(frozen=True)
class Place:
    """Where a site lies in the model."""

    module: nn.Module
    """The module whose call is tapped."""
    call: int
    """Which call of this module in one forward pass, from 0: shared layers run many times."""
    end: Literal["input", "output"]
    """Whether the site is what enters or what leaves the call."""


@dataclass(frozen=True)
class Tokens:
    """The tokens that one stack sees in one batch."""

    rows: int
    """Rows of the batch."""
    length: int
    """Tokens a row, pads included."""
    mask: Tensor | None
    """bool (row, token), True where a token is real; None: every token is."""
    content: Tensor | None
    """bool (row, token), True on content tokens; only `mean_content` needs it."""
    spans: tuple[Span, ...] = ()
    """Where the texts stand, if all are packed into one row."""

    def pool(self, hidden: Tensor, hows: Sequence[str]) -> dict[str, Tensor]:
        """(row, token, dim) -> for each pooling (row, dim), float32; one row a text."""
        if not self.spans:
            return pool_all(hidden, self.mask, hows, self.content)
        return pool_packed(hidden[0], self._bags, hows)

    @cached_property
    def _bags(self) -> Bags:
        return Bags(self.spans, None if self.content is None else self.content[0])

    def take(self, rows: Tensor) -> "Tokens":
        """The tokens of some rows, by their indices."""
        mask, content = (None if given is None else given[rows] for given in (self.mask, self.content))
        return Tokens(len(rows), self.length, mask, content)


class Taps:
    """Pool activations at sites of a model while it runs.

    Parameters
    ----------
    places : mapping of Site to Place
        The sites to tap. No other module is touched.
    poolings : mapping of Site to sequence of str
        The poolings wanted at each of these sites.
    tokens : mapping of stack to Tokens
        What each stack sees in this batch.

    Attributes
    ----------
    taken : dict
        (site, pooling) -> float32 (row, dim), filled by the forward pass.
    """

    def __init__(
        self, places: Mapping[Site, Place], poolings: Mapping[Site, Sequence[str]], tokens: Mapping[str, Tokens]
    ) -> None:
        self.taken: dict[tuple[Site, str], Tensor] = {}
        self._poolings = poolings
        self._tokens = tokens
        self._handles: list[RemovableHandle] = []
        self._sites: defaultdict[tuple[nn.Module, str], dict[int, list[Site]]] = defaultdict(dict)
        for site, place in places.items():
            self._sites[place.module, place.end].setdefault(place.call, []).append(site)

    def __enter__(self) -> "Taps":
        for (module, end), sites_by_call in self._sites.items():
            self._handles.append(self._register(module, end, sites_by_call))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def keep(self, site: Site, hidden: Tensor) -> None:
        """Pool an activation of `site` and keep the result."""
        tokens = self._tokens[site.stack]
        if hidden.ndim == 2:  # some blocks flatten their tokens: (row*token, dim) -> (row, token, dim)
            hidden = hidden.view(tokens.rows, -1, hidden.shape[-1])
        hidden = hidden[:, : tokens.length]  # (row, token, dim): some models pad inside, on the right
        for how, vectors in tokens.pool(hidden, self._poolings[site]).items():
            self.taken[site, how] = vectors

    def narrow(self, rows: Tensor) -> None:
        """Go on with some rows, by their indices: of what was taken, and of what is still to come."""
        self.taken = {want: vectors[rows] for want, vectors in self.taken.items()}
        self._tokens = {stack: tokens.take(rows) for stack, tokens in self._tokens.items()}

    def _register(self, module: nn.Module, end: str, sites_by_call: dict[int, list[Site]]) -> RemovableHandle:
        calls = 0

        def count_and_keep(activation: Tensor | None) -> None:
            nonlocal calls
            for site in sites_by_call.get(calls, ()):
                assert activation is not None, f"no activation at {site}"
                self.keep(site, activation)
            calls += 1

        if end == "input":
            return module.register_forward_pre_hook(
                lambda _module, args, kwargs: count_and_keep(entering(args, kwargs)), with_kwargs=True
            )
        return module.register_forward_hook(lambda _module, _args, output: count_and_keep(leaving(output)))


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first floating tensor among the arguments of a call: in transformers, the hidden states."""
    for value in (*args, kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def leaving(output: Any) -> Tensor | None:
    """The first tensor of a call's output: itself, the head of a tuple, or the first field of a record."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None
