"""Pooling: the token axis of an activation -> one vector a row.

pool       (row, token, dim) -> float32 (row, dim), by the name of a pooling
pool_all   the same by several names at once
pool_packed   the same of texts that stand side by side
POOLINGS   the poolings by name
EVERY      the name under which nothing is pooled
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sonde.errors import BackboneError, choose
from sonde.read.packing import Bag, Bags, Span

Hidden = Float[Tensor, "row token dim"]
Mask = Bool[Tensor, "row token"]
Pooled = Float[Tensor, "row dim"]


EVERY = "every"
"""The tokens themselves, for `Backbone.read_tokens`; no block has this pooling."""


def pool(
    hidden: Hidden, mask: Mask | None, how: str, content: Mask | None = None
) -> Float[Tensor, "row dim"] | Float[Tensor, "row token dim"]:
    """Reduce the tokens of each row to one vector.

    Parameters
    ----------
    hidden : (row, token, dim)
        Activations in any floating dtype.
    mask : (row, token) or None
        True where a token is real; None says that every token is. Padding may stand on either side.
    how : str
        One of `POOLINGS`, or `EVERY`.
    content : (row, token) or None
        True on tokens that are neither special tokens nor the first-token sink; `mean_content` needs it.

    Returns
    -------
    (row, dim)
        float32; (row, token, dim) for `EVERY`.

    Raises
    ------
    BackboneError
        If `how` is unknown.
    """
    if how == EVERY:
        return hidden.float()
    return POOLINGS[choose("Pooling", how, POOLINGS, BackboneError)](hidden, mask, content)


def pool_all(
    hidden: Hidden, mask: Mask | None, hows: Sequence[str], content: Mask | None = None
) -> dict[str, Float[Tensor, "row dim"] | Float[Tensor, "row token dim"]]:
    """Reduce the tokens of each row by several poolings; arguments, values and errors as `pool`.

    Where a mean tells that no value is NaN, the maximum of bfloat16 is taken among whole numbers, exactly and in a
    third of the time.
    """
    found = {how: pool(hidden, mask, how, content) for how in hows if how != "max"}
    if "max" not in hows:
        return found
    if "mean" in found and _orders_as_integers(hidden) and bool(torch.isfinite(found["mean"]).all()):
        greatest: Pooled = _maximum(hidden, mask, _integer_maximum)
    else:
        greatest = _max(hidden, mask)
    return {how: greatest if how == "max" else found[how] for how in hows}


def pool_packed(
    hidden: Float[Tensor, "token dim"], bags: Bags, hows: Sequence[str]
) -> dict[str, Float[Tensor, "row dim"]]:
    """As `pool_all`, of texts that stand side by side: (token, dim) -> (row, dim), one row a text."""
    found = {
        how: _bag_mean(hidden, bags.content if how == "mean_content" else bags.whole) for how in hows if "mean" in how
    }
    # a sum that is finite has no term that is not
    as_integers = "mean" in found and _orders_as_integers(hidden) and bool(found["mean"].sum().isfinite())
    ways: dict[str, Callable[[], Tensor]] = {
        "max": lambda: _packed_maximum(hidden, bags.spans, as_integers),
        "first": lambda: torch.cat([span.of(hidden)[:, 0] for span in bags.spans]),
        "last": lambda: torch.cat([span.of(hidden)[:, -1] for span in bags.spans]),
    }
    for how in hows:
        if how not in found:
            found[how] = ways[choose("Pooling", how, ways, BackboneError)]().float()  # row dim
    return found


def _packed_maximum(hidden: Float[Tensor, "token dim"], spans: Sequence[Span], as_integers: bool) -> Tensor:
    """(row, dim), exact; the spans one by one, everything else at once."""
    tokens = hidden.view(torch.int16) if as_integers else hidden
    size = (sum(span.rows for span in spans), hidden.shape[1])
    highest, lowest = tokens.new_empty(size), tokens.new_empty(size if as_integers else (0,))
    first = 0
    for span in spans:
        rows = slice(first, first + span.rows)
        torch.amax(span.of(tokens), dim=1, out=highest[rows])
        if as_integers:
            torch.amin(span.of(tokens), dim=1, out=lowest[rows])
        first = rows.stop
    return _of_integers(highest, lowest) if as_integers else highest


def _bag_mean(hidden: Float[Tensor, "token dim"], bag: Bag) -> Pooled:
    """The mean over each text's tokens, as embeddings of words are summed: one call for texts of any length, which is
    four times as fast as products with ones and compiles nothing. It sums in float32 and rounds the sum.
    """
    total = nn.functional.embedding_bag(bag.tokens, hidden, bag.starts, mode="sum")  # row dim
    return total.float().div_(bag.counts)


def _orders_as_integers(hidden: Tensor) -> bool:
    return hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu" and hidden.stride(-1) == 1


def _integer_maximum(hidden: Hidden) -> Float[Tensor, "row dim"]:
    bits = hidden.view(torch.int16)
    return _of_integers(bits.amax(dim=1), bits.amin(dim=1))


def _of_integers(highest: Tensor, lowest: Tensor) -> Tensor:
    """The greatest of floats, from the highest and the lowest of their bits as whole numbers: floats that are not
    negative keep their order and stand above all that are negative, whose order turns round.
    """
    return torch.where(highest >= 0, highest, lowest).view(torch.bfloat16)


def _mean(hidden: Hidden, mask: Mask | None, content: Mask | None = None) -> Pooled:
    # One batched matrix product: about 5 times cheaper than a masked product and a sum. The product sums in
    # float32 inside; in bfloat16 only its result is rounded (2^-9 relative), the division is float32 again.
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    total = torch.bmm(mask.to(hidden.dtype).unsqueeze(1), hidden).squeeze(1)  # (row, 1, token) x -> (row, dim)
    return total.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _max(hidden: Hidden, mask: Mask | None, content: Mask | None = None) -> Pooled:
    return _maximum(hidden, mask, lambda some: some.amax(dim=1))


def _maximum(hidden: Hidden, mask: Mask | None, maximum: Callable[[Tensor], Tensor]) -> Pooled:
    """Exact in any dtype, hence no copy in float32."""
    if mask is None:
        return maximum(hidden).float()
    traced = torch.compiler.is_compiling()  # a graph has no spans: they are numbers of this batch
    if traced or hidden.device.type != "cpu" or (spans := _spans(mask)) is None:
        return hidden.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1).float()
    # Pads are left out, never filled: that would write a second (row, token, dim).
    start, stop = spans
    shortest, longest = int(stop.min()), int(stop.max())
    if not start.any() and longest - shortest <= len(hidden):
        found = maximum(hidden[:, :shortest])  # row dim
        descending = bool((stop[:-1] >= stop[1:]).all())  # as batches are made; then no row is copied
        for token in range(shortest, longest):
            rows = stop > token
            if descending:
                longer = found[: int(rows.sum())]
                torch.maximum(longer, hidden[: len(longer), token], out=longer)
            else:
                found[rows] = torch.maximum(found[rows], hidden[rows, token])
        return found.float()
    rows_spans = zip(hidden, start.tolist(), stop.tolist(), strict=True)
    return torch.cat([maximum(row[None, first:end]) for row, first, end in rows_spans]).float()


def _first(hidden: Hidden, mask: Mask | None, content: Mask | None = None) -> Pooled:
    if mask is None:
        return hidden[:, 0].float()
    return _take(hidden, mask.int().argmax(dim=1))


def _last(hidden: Hidden, mask: Mask | None, content: Mask | None = None) -> Pooled:
    if mask is None:
        return hidden[:, -1].float()
    return _take(hidden, mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1))


def _mean_content(hidden: Hidden, mask: Mask | None, content: Mask | None = None) -> Pooled:
    assert content is not None, "mean_content needs to know which tokens are content"
    kept = content if mask is None else content & mask
    real = torch.ones_like(content) if mask is None else mask
    return _mean(hidden, torch.where(kept.any(dim=1, keepdim=True), kept, real))


def _spans(mask: Mask) -> tuple[Int64[Tensor, " row"], Int64[Tensor, " row"]] | None:
    """First real token and the one after the last, by row; None if a row has a gap or no token."""
    start, length = mask.int().argmax(dim=1), mask.sum(dim=1)
    stop = mask.shape[1] - mask.int().flip(1).argmax(dim=1)
    whole = bool(((stop - start == length) & (length > 0)).all())
    return (start, stop) if whole else None


def _take(hidden: Hidden, index: Tensor) -> Pooled:
    rows = torch.arange(hidden.shape[0], device=hidden.device)  # not len(), which a traced graph would keep as a number
    return hidden[rows, index].float()  # (row, dim)


POOLINGS: dict[str, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "mean": _mean,
    "max": _max,
    "first": _first,
    "last": _last,
    "mean_content": _mean_content,
}
"""Each maps (hidden, mask, content) to float32 (row, dim)."""
