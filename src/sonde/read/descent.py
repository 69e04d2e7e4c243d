"""Descents: one forward pass whose rows leave on the way, so that later blocks run for the others alone.

Descent   the descents of a traced model: `run`
GoesOn    a function that says after each stage which rows go on

Nothing about a model is taken on trust. Before the first descent through given depths a few rows are sent down, some
of which leave, and their values are compared with those of plain reading. Where they differ, and where a model or a
batch does not let its rows be told, reading is plain: all blocks for all rows, then the decisions in their order.

Source of stopping a frozen model where a classifier needs no more of it: Sparsify-then-Classify (arXiv 2311.15983), at
one depth for all rows; here each row has its own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sonde.read.forward import LEAK, Forward, Source, last_hidden
from sonde.read.gates import Axes, Gates, UnclearRows
from sonde.read.memory import Halving, is_out_of_memory
from sonde.read.sites import MAIN, Site
from sonde.read.taps import Taps, Tokens
from sonde.read.truncation import with_blocks

logger = logging.getLogger(__name__)

GoesOn = Callable[[int, Tensor, Mapping[Source, Tensor]], Tensor]
"""(stage, rows still in, their values) -> bool (row,), which of them go on; the answer to the last stage is ignored."""

TRIED_ROWS, TRIED_TOKENS = 7, 11
"""Sizes of the batch that is sent down first. Rows leave one by one, down to two: 2 to 7 must not be taken for tokens,
and numbers of heads that are no powers of two are rare."""
_REFUSALS = (UnclearRows, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)


class _Roll:
    """Who is still in, and which stage comes next."""

    def __init__(self, rows: int, stages: Sequence[Sequence[Source]], goes_on: GoesOn) -> None:
        self.reached = torch.zeros(rows, dtype=torch.int64)
        self.rows = torch.arange(rows)
        self.stage = 0
        self.broken = False  # whether it is the caller's function that raised
        self._stages, self._goes_on = stages, goes_on

    @property
    def over(self) -> bool:
        return self.stage == len(self._stages) or not len(self.rows)

    def ask(self, taken: Mapping[Source, Tensor]) -> Tensor:
        """Hand over the values of the rows still in; indices among them of those that go on."""
        sources = dict.fromkeys(source for stage in self._stages[: self.stage + 1] for source in stage)
        self.reached[self.rows] = self.stage
        values = {source: taken[source].cpu() for source in sources}
        self.broken = True
        answer = self._goes_on(self.stage, self.rows, values)
        if self.stage < len(self._stages) - 1:
            assert isinstance(answer, Tensor) and answer.dtype == torch.bool, "the answer is a bool tensor"
            assert answer.shape == self.rows.shape, "one yes or no for each row"
        self.broken = False
        self.stage += 1
        if self.stage == len(self._stages):
            return torch.arange(len(self.rows))
        kept = answer.nonzero()[:, 0]
        self.rows = self.rows[kept]
        return kept


class Descent:
    """The descents of a traced model."""

    def __init__(self, forward: Forward, name: str) -> None:
        self._forward, self._name = forward, name
        self._axes: dict[tuple[int, ...], Axes | None] = {}  # by depths; None: rows cannot leave

    def run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        content: Tensor | None,
        stages: Sequence[Sequence[Source]],
        goes_on: GoesOn,
    ) -> Tensor:
        """Read a batch in stages; int64 (row,), the last stage that each row reached."""
        roll = _Roll(len(ids), stages, goes_on)
        axes = self._known(stages)
        if axes is not None:
            try:
                self._descend(ids, mask, content, stages, roll, axes)
            except _REFUSALS as reason:
                if roll.broken or (roll.stage == 0 and is_out_of_memory(reason)):
                    raise  # nothing was asked yet: the caller may come again with fewer rows
                logger.info("the rest of a batch is read plainly: %s", reason)
        self._read_plainly(ids, mask, content, stages, roll)
        return roll.reached

    def _read_plainly(
        self,
        ids: Tensor,
        mask: Tensor | None,
        content: Tensor | None,
        stages: Sequence[Sequence[Source]],
        roll: _Roll,
    ) -> None:
        """Read the rows still in at all sites, then ask what is left to ask."""
        if roll.over:
            return
        rows = roll.rows.to(ids.device)
        sources = {source for stage in stages for source in stage}
        if roll.stage == 0:
            taken = self._run(ids, mask, content, sources, rows)
        else:  # what was asked cannot be asked again: if memory does not suffice now, this is where rows are halved
            number = roll.rows.numpy()
            halves = Halving(self._name).each(
                number, lambda part: self._run(ids, mask, content, sources, torch.from_numpy(part).to(ids.device))
            )
            taken = {source: torch.cat([half[source] for half in halves]) for source in sources}
        while not roll.over:
            kept = roll.ask(taken).to(ids.device)
            taken = {source: vectors[kept] for source, vectors in taken.items()}

    def _run(
        self, ids: Tensor, mask: Tensor | None, content: Tensor | None, sources: set[Source], rows: Tensor
    ) -> dict[Source, Tensor]:
        mask, content = (None if given is None else given[rows] for given in (mask, content))
        return self._forward.run(ids[rows], mask, content, sources) if sources else {}

    def _descend(
        self,
        ids: Tensor,
        mask: Tensor | None,
        content: Tensor | None,
        stages: Sequence[Sequence[Source]],
        roll: _Roll,
        axes: Axes,
        learning: bool = False,
    ) -> None:
        """One forward pass through gates, which asks at each stage."""
        forward, depths = self._forward, _depths(stages)
        poolings = _poolings(stages)
        embedded, last = Site(MAIN, "hidden", 0), Site(MAIN, "hidden", forward.stacks[MAIN].layers)
        waits = [last in _poolings(stages[: number + 1]) for number in range(len(stages))]
        blocks = forward.stacks[MAIN].blocks
        tapped = [site for site in poolings if site not in (embedded, last)]
        taps = Taps(
            {site: forward.place(site, MAIN, blocks[0].module) for site in tapped},
            poolings,
            {MAIN: Tokens(len(ids), ids.shape[1], mask, content)},
        )

        def ask() -> None:
            before = len(roll.rows)
            kept = roll.ask({(site, how): vectors for (site, how), vectors in taps.taken.items()})
            if len(kept) < before:
                taps.narrow(kept.to(ids.device))
                gates.shrink(kept)

        def pause(number: int, hidden: Tensor) -> None:
            if number == 0 and embedded in poolings:
                taps.keep(embedded, hidden)
            while not roll.over and depths[roll.stage] == number and not waits[roll.stage]:
                ask()

        gates = Gates(forward.stacks[MAIN], depths[-1], len(ids), ids.shape[1], axes, learning, pause)
        model = with_blocks(forward.model, forward.stacks[MAIN], gates.blocks)
        if model is None:
            raise UnclearRows("the blocks are not in one list")
        with taps:
            output = forward.call(forward.main_part(model), ids, mask, MAIN)
        if not roll.over and last not in poolings:
            raise UnclearRows("fewer blocks ran than when they were traced")
        if not roll.over:
            taps.keep(last, gates.pick(last_hidden(output, whole=False, of=MAIN)))
        while not roll.over:
            ask()

    def _known(self, stages: Sequence[Sequence[Source]]) -> Axes | None:
        """What is known of the blocks' arguments; None where nothing is to be saved, or rows cannot leave."""
        depths = _depths(stages)
        sites = [site for stage in stages for site, _ in stage]
        outside = any(site.stack != MAIN or site.kind not in ("hidden", "ffn") for site in sites)
        if outside or len(set(depths)) < 2 or not self._forward.bears_pads:
            return None
        if depths not in self._axes:
            self._axes[depths] = self._learn(depths)
            if self._axes[depths] is None:
                logger.info("this model runs all blocks for all rows: its rows cannot leave at depths %s", depths)
        return self._axes[depths]

    def _learn(self, depths: tuple[int, ...]) -> Axes | None:
        stages = [[(Site(MAIN, "hidden", depth), how) for how in ("mean", "last")] for depth in depths]
        axes: Axes = {}
        return axes if all(self._runs_right(stages, axes, padded) for padded in (True, False)) else None

    def _runs_right(self, stages: Sequence[Sequence[Source]], axes: Axes, padded: bool) -> bool:
        """Whether rows of which the middle one leaves again and again have the values of plain reading."""
        probe = self._forward.probe
        ids = probe.repeat(1, TRIED_TOKENS)[0, :TRIED_TOKENS]  # token
        ids = torch.stack([ids.roll(row) for row in range(TRIED_ROWS)])  # row token
        lengths = TRIED_TOKENS - torch.arange(TRIED_ROWS, device=ids.device)
        mask = torch.arange(TRIED_TOKENS, device=ids.device) < lengths[:, None] if padded else None
        right: list[bool] = []

        def compare(stage: int, rows: Tensor, values: Mapping[Source, Tensor]) -> Tensor:
            right.extend(_same(found, expected[source].cpu()[rows], self._forward) for source, found in values.items())
            stays = torch.ones(len(rows), dtype=torch.bool)
            stays[len(rows) // 2] = len(rows) <= 2
            return stays

        roll = _Roll(TRIED_ROWS, stages, compare)
        try:
            expected = self._forward.run(ids, mask, None, {source for stage in stages for source in stage})
            self._descend(ids, mask, None, stages, roll, axes, learning=True)
        except _REFUSALS:
            return False
        return roll.over and all(right)


def _same(found: Tensor, expected: Tensor, forward: Forward) -> bool:
    """Whether each row is that of plain reading, but for the rounding of other kernels."""
    allowed = LEAK.get(next(forward.model.parameters()).dtype, 1e-2)
    return bool(((found - expected).norm(dim=1) <= allowed * expected.norm(dim=1)).all())


def _depths(stages: Sequence[Sequence[Source]]) -> tuple[int, ...]:
    """Blocks that must have run for each stage: as deep as its deepest site, no shallower than the stage before."""
    return tuple(accumulate((max((site.layer or 0 for site, _ in stage), default=0) for stage in stages), max))


def _poolings(stages: Sequence[Sequence[Source]]) -> dict[Site, list[str]]:
    poolings: dict[Site, list[str]] = {}
    for site, how in dict.fromkeys(source for stage in stages for source in stage):
        poolings.setdefault(site, []).extend([how] if how else [])
    return poolings
