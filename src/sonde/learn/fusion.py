"""The fusion of LLMEmbed (arXiv 2406.03725, section 3, Table 1): its 15 rows as data, its operators as functions.

FusionRow, ROWS     a row of Table 1: which sentence roles it uses and which operators
Roles, assign       the blocks that a row fuses, out of those that are given
average, largest, concatenate, co_occurrence, power_normalise     the operators Avg, Max, Cat, Co and PN
Dropout             dropout that draws a byte an element
CoOccurrence        Co with its learned maps
Fusion              deep and sentence blocks -> one vector per text
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.errors import ArgumentError, RecipeError, warn

PAPER_SIGMA = 0.2  # section 3: "the empirical value is 0.2 in this paper"
PAPER_MAP_DROPOUT = 0.5  # after the ReLU that follows each map, in the released code

B, R = 0, 1  # places of the paper's BERT and RoBERTa among the sentence embeddings

Block = TypeVar("Block")


@dataclass(frozen=True)
class FusionRow:
    """One row of Table 1."""

    number: int
    """1 to 15, as in the paper."""
    uses_b: bool
    """Whether the first sentence backbone (the paper's BERT) takes part."""
    uses_r: bool
    """Whether the second sentence backbone (the paper's RoBERTa) takes part."""
    operators: tuple[str, ...]
    """Names of the operators, in the order of the table; empty for row 1."""
    title: str
    """What is fused, in the table's notation: L = the last deep blocks, L1 = the last of them."""

    @property
    def learns_maps(self) -> bool:
        """Whether the row has learned linear maps (rows 14 and 15)."""
        return "Co" in self.operators


def _rows() -> dict[int, FusionRow]:
    rows = [FusionRow(1, False, False, (), "L1")]
    sentences = [(False, False, ""), (True, False, ", B"), (False, True, ", R"), (True, True, ", B, R")]
    for uses_b, uses_r, tail in sentences:
        for pooling in ("Avg", "Max", "Cat"):
            operators = (pooling, "Cat") if tail and pooling != "Cat" else (pooling,)
            pooled = f"{pooling}(L)" if pooling != "Cat" else "L"
            title = f"Cat({pooled}{tail})" if tail or pooling == "Cat" else pooled
            rows.append(FusionRow(len(rows) + 1, uses_b, uses_r, operators, title))
    rows.append(FusionRow(14, True, True, ("Cat", "Co"), "Co(L, B, R)"))
    rows.append(FusionRow(15, True, True, ("Cat", "Co", "Avg", "Cat"), "Cat(Co(L, B, R), Avg(L))"))
    return {row.number: row for row in rows}


ROWS: dict[int, FusionRow] = _rows()


def row_of(number: int) -> FusionRow:
    """The row of Table 1 with this number, or an `ArgumentError` that says which exist."""
    if isinstance(number, bool) or number not in ROWS:
        raise ArgumentError(f"LLMEmbed row {number!r} is unknown; it must be a number from 1 to {len(ROWS)}.")
    return ROWS[number]


@dataclass(frozen=True)
class Roles(Generic[Block]):
    """The blocks that a row fuses, in the order in which it fuses them."""

    deep: tuple[Block, ...]
    """Embeddings of the deep backbone, the last block first."""
    sentences: tuple[Block, ...]
    """Sentence embeddings, B before R."""


def assign(row: FusionRow, deep: Sequence[Block], sentences: Sequence[Block]) -> Roles[Block]:
    """Pick what `row` fuses out of the given blocks (arrays, names: anything).

    Parameters
    ----------
    row : FusionRow
    deep : sequence
        Blocks of the deep backbone, the last first (d = 1, 2, ...). A shallow backbone gives all that it has.
    sentences : sequence
        Sentence embeddings: B, then R, then any others (used by rows 14 and 15 alone).

    Raises
    ------
    RecipeError
        If a role that the row needs is missing.
    """
    if not deep:
        raise RecipeError(f"LLMEmbed row {row.number} needs the deep role: pass a deep backbone first.")
    if not (row.uses_b or row.uses_r):
        return Roles(tuple(deep[:1] if row.number == 1 else deep), ())
    if not sentences:
        role = "B" if row.uses_b else "R"
        raise RecipeError(
            f"LLMEmbed row {row.number} needs the sentence role {role}: pass a second backbone, after the deep one."
        )
    return Roles(tuple(deep), tuple(_sentences(row, sentences)))


def _sentences(row: FusionRow, sentences: Sequence[Block]) -> Sequence[Block]:
    if row.learns_maps:
        return sentences  # the paper has two; any number can be stacked
    if row.uses_b and row.uses_r:
        if len(sentences) < 2:
            raise RecipeError(
                f"LLMEmbed row {row.number} needs the sentence role R beside B: "
                "pass a third backbone, after the deep one and B."
            )
        return sentences[: R + 1]
    if row.uses_b:
        return sentences[B : B + 1]
    if len(sentences) > R:
        return sentences[R : R + 1]
    warn(
        f"LLMEmbed row {row.number} uses the second sentence backbone (R); with one sentence backbone "
        f"it repeats row {row.number - 3}.",
        "repeated_row",
    )
    return sentences[B : B + 1]


def average(blocks: Sequence[Float[Tensor, "row feature"]]) -> Float[Tensor, "row feature"]:
    """Avg: the mean over the blocks of each feature."""
    return torch.stack(_same_width("Avg", blocks)).mean(dim=0)  # block row feature -> row feature


def largest(blocks: Sequence[Float[Tensor, "row feature"]]) -> Float[Tensor, "row feature"]:
    """Max: the largest value over the blocks of each feature."""
    return torch.stack(_same_width("Max", blocks)).amax(dim=0)  # block row feature -> row feature


def concatenate(blocks: Sequence[Float[Tensor, "row _"]]) -> Float[Tensor, "row feature"]:
    """Cat: the blocks side by side, in their order."""
    return torch.cat(list(blocks), dim=1)  # row feature


def _same_width(operator: str, blocks: Sequence[Tensor]) -> list[Tensor]:
    require_same_width(operator, [block.shape[1] for block in blocks])
    return list(blocks)


def require_same_width(operator: str, widths: Sequence[int]) -> None:
    """Raise `RecipeError` unless all blocks that `operator` pools have one width."""
    if len(set(widths)) > 1:
        raise RecipeError(
            f"{operator} needs deep blocks of one width, but they have {', '.join(map(str, widths))} features; "
            "use a row with Cat, or fewer layers."
        )


def power_normalise(x: Float[Tensor, "*shape"], sigma: float | Tensor) -> Float[Tensor, "*shape"]:
    """PN, the power normalisation of equation 4: (1 - e^(-s x)) / (1 + e^(-s x)).

    That is tanh(s x / 2), the form computed here because it never overflows. The paper's right-hand side,
    tanh(2 s x), is a slip: it is not equal to the left-hand side. We follow the left-hand side.
    """
    return torch.tanh(x * (sigma / 2))


def products(x: Float[Tensor, "row block feature"]) -> Float[Tensor, "row block block"]:
    """X X^T: the inner product of each block with each."""
    found = torch.bmm(x, x.detach().transpose(1, 2))  # row block block
    if not found.requires_grad:
        return found
    turned = found.transpose(1, 2)  # symmetric: adds nothing but its gradient, and that costs one product, not two
    return found + (turned - turned.detach())


def co_occurrence(x: Float[Tensor, "row block feature"], sigma: float | Tensor) -> Float[Tensor, "row pair"]:
    """Co: PN of the flattened block x block matrix X X^T (Table 1, row 14: 7 x 7 gives 49 values)."""
    return power_normalise(products(x).flatten(1), sigma)  # row block block -> row pair


def median_product(matrices: Float[Tensor, "row block block"]) -> float:
    """Median of |x.y| over all texts and all pairs of two different blocks, given X X^T of each text."""
    i, j = torch.triu_indices(matrices.shape[1], matrices.shape[1], offset=1)
    return float(matrices[:, i, j].abs().median())


class Dropout(nn.Module):
    """Dropout that draws one byte an element: drawing a float of each cost a third of the training time.

    Rates are multiples of 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.dropped = round(256 * rate)  # of 256 values of a byte

    def forward(self, given: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Drop in training; the identity otherwise."""
        if not self.training or not self.dropped:
            return given
        words = torch.empty(-(-given.numel() // 8), dtype=torch.int64, device=given.device)
        bits = words.random_(-(2**63), None).view(torch.uint8)[: given.numel()].view(given.shape)
        return given * ((bits >= self.dropped).to(given.dtype) * (256 / (256 - self.dropped)))


class CoOccurrence(nn.Module):
    """Co with its learned maps: PN(flatten(X X^T)), X = mapped deep blocks stacked with the sentence blocks.

    Each deep block has a linear map of its own (then ReLU and dropout, as in the released code) to the common
    width, which is that of the widest sentence embedding. A sentence embedding of that width is stacked as it is,
    a narrower one through a linear map of its own.

    Parameters
    ----------
    deep_widths, sentence_widths : sequence of int
        Features of each block.
    calibrated : bool
        True: `calibrate` sets sigma. False (the paper): it stays .2.
    dropout : float
        On the mapped deep blocks.
    """

    sigma: Tensor

    def __init__(
        self, deep_widths: Sequence[int], sentence_widths: Sequence[int], *, calibrated: bool, dropout: float
    ) -> None:
        super().__init__()
        common = max(sentence_widths)
        self.calibrated = calibrated
        self.deep_maps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, common), nn.ReLU(), Dropout(dropout)) for width in deep_widths
        )
        self.sentence_maps = nn.ModuleList(
            nn.Identity() if width == common else nn.Linear(width, common) for width in sentence_widths
        )
        self.register_buffer("sigma", torch.tensor(PAPER_SIGMA))
        self.width = (len(deep_widths) + len(sentence_widths)) ** 2

    def stack(self, deep: Sequence[Tensor], sentences: Sequence[Tensor]) -> Float[Tensor, "row block feature"]:
        """X of Table 1: the mapped deep blocks, then the sentence blocks."""
        mapped = [to(block) for to, block in zip(self.deep_maps, deep, strict=True)]
        mapped += [to(block) for to, block in zip(self.sentence_maps, sentences, strict=True)]
        return torch.stack(mapped, dim=1)  # row block feature

    @torch.no_grad()
    def calibrate(self, deep: Sequence[Tensor], sentences: Sequence[Tensor]) -> None:
        """Set sigma to 1 / median |x.y| over training rows, where it is not the paper's."""
        if self.calibrated:
            median = median_product(products(self.stack(deep, sentences)))
            self.sigma.fill_(1 / max(median, 1e-6))  # all products zero: any finite sigma gives zero

    def forward(self, deep: Sequence[Tensor], sentences: Sequence[Tensor]) -> Float[Tensor, "row pair"]:
        """Fuse a batch."""
        return co_occurrence(self.stack(deep, sentences), self.sigma)


class Fusion(nn.Module):
    """The operator v of equation 2 for one row of Table 1: blocks -> the fused vector.

    Parameters
    ----------
    row : FusionRow
    widths : Roles of int
        Features of each block that `assign` picked.
    calibrated : bool
        Whether sigma is chosen from the data (default setting) or the paper's.
    dropout : float
        On the mapped blocks of rows 14 and 15.

    Raises
    ------
    RecipeError
        If Avg or Max meet deep blocks of different widths.
    """

    def __init__(self, row: FusionRow, widths: Roles[int], *, calibrated: bool, dropout: float) -> None:
        super().__init__()
        self.row = row
        pooled = [name for name in ("Avg", "Max") if name in row.operators]
        for name in pooled:
            require_same_width(name, widths.deep)
        deep_width = widths.deep[0] if pooled else sum(widths.deep)
        self.co: CoOccurrence | None = None
        if row.learns_maps:
            self.co = CoOccurrence(widths.deep, widths.sentences, calibrated=calibrated, dropout=dropout)
            self.width = self.co.width + (deep_width if pooled else 0)
        else:
            self.width = deep_width + sum(widths.sentences)

    def pool(self, deep: Sequence[Tensor]) -> list[Tensor]:
        """Avg, Max, or the deep blocks as they are."""
        if "Avg" in self.row.operators:
            return [average(deep)]
        return [largest(deep)] if "Max" in self.row.operators else list(deep)

    def forward(self, deep: Sequence[Tensor], sentences: Sequence[Tensor]) -> Float[Tensor, "row feature"]:
        """Fuse a batch into (row, width)."""
        if self.co is None:
            return concatenate([*self.pool(deep), *sentences])
        products = self.co(deep, sentences)  # row pair
        return concatenate([products, *self.pool(deep)]) if "Avg" in self.row.operators else products
