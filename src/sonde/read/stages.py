"""Texts read in stages: after each, a caller's function says which rows go on, and later blocks run for these alone.

read_in_stages   texts, the blocks of each stage and a function -> Staged
Staged           how far each text got, and its tokens
GoesOn           the function

The values are those of `extract`, tokenised, batched and rounded in the same way. No store is asked: it would have to
hold the same blocks of rows that left and of rows that did not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sonde.progress import track
from sonde.read.backbone import Wanted
from sonde.read.batching import TOKEN_BUDGET, collate, plan
from sonde.read.blocks import Block, Source
from sonde.read.extract import extract, window_rows, windows
from sonde.read.memory import Halving
from sonde.read.reader import Kind, check_finite, unit
from sonde.read.view import Pieces, clean, filler_id, tokenise

GoesOn = Callable[[int, Int64[np.ndarray, " row"], dict[str, Float32[np.ndarray, "row dim"]]], Bool[np.ndarray, " row"]]
"""(stage, rows, block name -> values) -> which of these rows go on. Called for a batch of rows at a time, in any order
of batches; the values are those of this stage and of the stages before it. The answer to the last stage is ignored."""


@dataclass(frozen=True)
class Staged:
    """How far each text got."""

    reached: Int64[np.ndarray, " row"]
    """The last stage that was read of it."""
    tokens: Int64[np.ndarray, " row"]
    """Tokens of each text."""
    lost: Int64[np.ndarray, " row"]
    """Of these, tokens that the model did not see."""


def read_in_stages(
    texts: Sequence[str],
    source: Source,
    stages: Sequence[Sequence[Block]],
    goes_on: GoesOn,
    token_budget: int | None = None,
) -> Staged:
    """Read texts only as deep as each needs.

    Parameters
    ----------
    texts : sequence of str
        Equal texts are read once; each of their rows is asked for, and one that goes on is enough to read on.
    source : Source
        The backbone, with its view.
    stages : sequence of sequence of Block
        What each stage reads of this source. Later stages should be deeper ones. A stage without blocks is decided
        before the first block of the model runs.
    goes_on : function
        Says which rows go on; see `GoesOn`. It must not depend on which rows it is asked about together.
    token_budget : int, optional
        Padded tokens in one batch, as in `extract`.

    Returns
    -------
    Staged

    Raises
    ------
    ReadingError
        If a value is not finite; names the row and the site.
    BackboneError
        If the backbone cannot be read at a site.

    Notes
    -----
    Blocks are saved where the backbone lets rows leave (`Backbone.read_in_stages`). Texts in several windows
    (`long_text="windows"`) are read at all stages, because their windows must be joined first.
    """
    roll = _Roll([clean(text) for text in texts], len(stages), goes_on)
    reading = _Reading(source, stages, token_budget, roll)
    tokens, lost = np.zeros((2, len(roll.unique)), dtype=np.int64)
    start = 0
    with track("reading", len(roll.unique), "rows") as advance:
        for window in windows(roll.unique, window_rows({reading.index: source}, reading.blocks)):
            pieces = tokenise(window, source.backbone.tokenizer, source.view)
            stop = start + len(window)
            tokens[start:stop], lost[start:stop] = pieces.tokens, pieces.lost
            reading.read(window, pieces, start)
            start = stop
            advance(len(window))
    return Staged(roll.reached, tokens[roll.numbers], lost[roll.numbers])


class _Roll:
    """Which rows are still in. A row is a text as given; a number is the place of its text among the distinct ones."""

    def __init__(self, texts: list[str], stages: int, goes_on: GoesOn) -> None:
        self.unique = list(dict.fromkeys(texts))
        number_of = {text: number for number, text in enumerate(self.unique)}
        self.numbers = np.array([number_of[text] for text in texts], dtype=np.int64)  # row
        self.reached = np.zeros(len(texts), dtype=np.int64)  # row
        self._stages, self._goes_on = stages, goes_on
        self._in = np.ones(len(texts), dtype=bool)  # row
        self._rows = np.argsort(self.numbers, kind="stable")  # those of number 0 first
        self._starts = np.searchsorted(self.numbers, np.arange(len(self.unique) + 1), sorter=self._rows)

    def first(self, number: int) -> int:
        """The first row of a number."""
        return int(self._rows[self._starts[number]])

    def ask(self, stage: int, numbers: np.ndarray, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Ask for the rows of these numbers that are still in; bool (number,), whether one of them goes on."""
        spans = zip(self._starts[numbers], self._starts[numbers + 1], strict=True)
        members = [self._rows[start:stop] for start, stop in spans]
        rows, which = np.concatenate(members), np.repeat(np.arange(len(numbers)), [len(m) for m in members])
        still = self._in[rows]
        rows, which = rows[still], which[still]
        self.reached[rows] = stage
        answer = self._goes_on(stage, rows, {name: array[which] for name, array in values.items()})
        if stage == self._stages - 1:
            return np.zeros(len(numbers), dtype=bool)
        answer = np.asarray(answer)
        assert answer.dtype == bool and answer.shape == rows.shape, "one yes or no for each row"
        self._in[rows[~answer]] = False
        return np.bincount(which[answer], minlength=len(numbers)) > 0


class _Reading:
    """How the stages of a source are read."""

    def __init__(
        self, source: Source, stages: Sequence[Sequence[Block]], token_budget: int | None, roll: _Roll
    ) -> None:
        self.blocks = list(dict.fromkeys(block for stage in stages for block in stage))
        self.index = self.blocks[0].backbone if self.blocks else 0
        assert all(block.backbone == self.index for block in self.blocks), "stages read one backbone"
        self._source, self._stages, self._roll = source, stages, roll
        self._kinds = {block: Kind.of(block, source) for block in self.blocks}
        self._halving = Halving(source.backbone.name)
        self._token_budget = token_budget or TOKEN_BUDGET.get(source.backbone.device.type, TOKEN_BUDGET["cpu"])

    def read(self, window: list[str], pieces: Pieces, start: int) -> None:
        """Read distinct texts, the first of which has the number `start`."""
        several = np.bincount(pieces.owner, minlength=len(window)) > 1  # text
        if several.any():
            self._read_whole([text for text, whole in zip(window, several, strict=True) if whole],
                             start + np.flatnonzero(several))  # fmt: skip
        single = np.flatnonzero(~several[pieces.owner])  # piece
        for batch in plan([len(pieces.ids[i]) for i in single], self._token_budget):
            self._halving.each(single[batch], lambda part: self._descend(pieces, part, start))

    def _read_whole(self, texts: list[str], numbers: np.ndarray) -> None:
        """Read texts at all stages, then decide in order."""
        rows = [self._roll.first(number) for number in numbers]
        sources = {self.index: self._source}
        for window in extract(texts, sources, self.blocks, token_budget=self._token_budget, numbers=rows):
            these, values = numbers[window.start : window.start + window.rows], window.blocks
            for stage in range(len(self._stages)):
                if len(these):
                    going = self._roll.ask(
                        stage, these, {block.name: values[block.name] for block in self._until(stage)}
                    )
                    these, values = these[going], {name: array[going] for name, array in values.items()}

    def _descend(self, pieces: Pieces, batch: np.ndarray, start: int) -> None:
        """Send a batch of pieces down, each of which is a whole text."""
        backbone = self._source.backbone
        inputs = collate(pieces, batch, filler_id(backbone.tokenizer), backbone.causal)
        owners = pieces.owner[batch] + start

        def answer(stage: int, rows: Tensor, values: Mapping[Wanted, Tensor]) -> Tensor:
            numbers, blocks = owners[rows.numpy()], self._until(stage)
            first = {number: self._roll.first(number) for number in numbers.tolist()}
            read = {self._kinds[block]: values[_want(self._kinds[block])] for block in blocks}
            check_finite(read, replace(pieces, owner=numbers), first, backbone.name)
            arrays = {block.name: self._finish(block, read[self._kinds[block]]) for block in blocks}
            return torch.from_numpy(self._roll.ask(stage, numbers, arrays))

        wanted = [[_want(self._kinds[block]) for block in stage] for stage in self._stages]
        backbone.read_in_stages(inputs.ids, inputs.mask, inputs.content, wanted, answer)

    def _until(self, stage: int) -> list[Block]:
        """The blocks of a stage and of those before it."""
        return list(dict.fromkeys(block for before in self._stages[: stage + 1] for block in before))

    def _finish(self, block: Block, values: Tensor) -> np.ndarray:
        """Values as `extract` gives them: the block's columns, rounded as the backbone computes."""
        kept = self._kinds[block].take(values).to(self._source.backbone.dtype).float().numpy()
        sentence = block.site.kind == "sentence" and self._source.backbone.sentence.normalise
        return unit(kept) if sentence else kept


def _want(kind: Kind) -> Wanted:
    return kind.site, kind.pooling or None
