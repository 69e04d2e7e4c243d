"""Which texts go through the model together.

plan      lengths -> batches of equal or nearly equal length under a token budget
share     the budget under which a few texts make a batch for each lane
collate   pieces of one batch -> input ids, attention mask, content mask
TOKEN_BUDGET   default token budget by device type
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sonde.read.view import Pieces

TOKEN_BUDGET = {"cpu": 4096, "mps": 16384, "cuda": 65536}
"""Padded tokens in one batch. On a CPU larger batches fall out of the caches: all-MiniLM-L6-v2 reads IMDb 12 to 15%
slower with 8,192, and 2,560 gain nothing more. On a GPU 64k tokens fill the matrix units of a 7B model while the widest
activation (65536 x 11008 in bfloat16) stays at 1.4 GB."""

LANE_BUDGET = 1024
"""Padded tokens in one batch of a lane: in float32 as fast as 4,096 within the noise, and memory stays flat. Batches of
4,096 tokens, no two of one size, leave free memory in pieces, of which 2 million rows of SST-2 came to hold 2 GB. A
text of more tokens takes all threads: side by side, such texts would need as many times the memory."""

LANE_TOKENS = 256
"""Fewer tokens than so many a lane are not divided: all threads share a pass."""

ENOUGH_TOKENS = 0.5
"""A batch that fills this share of the budget is closed when the next text is longer, so that most batches hold texts
of one length and need no attention mask."""

MAX_PADDING = 0.125
"""Below that share, longer texts join as long as at most an eighth of the batch is padding."""


@dataclass(frozen=True)
class Batch:
    """Input of one forward pass, padded on the right."""

    ids: Tensor
    """(row, token) int64"""
    mask: Tensor | None
    """(row, token) bool, True for real tokens; None where no row is padded"""
    content: Tensor
    """(row, token) bool, True for real tokens that are neither special nor the first-token sink"""


def plan(lengths: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Group pieces into batches; a pure function of its arguments.

    Pieces are sorted by length (longest first, ties in order), so that a batch holds equal or nearly equal lengths and
    a memory problem shows at once. `rows x longest` never exceeds `token_budget`, except for a single piece that does.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[list[int]] = []
    used = longest = 0
    for piece in order.tolist():
        length = int(lengths[piece])
        size = len(batches[-1]) if batches else 0
        if not batches or _closes(size, longest, used, length, token_budget):
            batches.append([])
            longest, used = length, 0
        batches[-1].append(piece)
        used += length
    return [np.array(batch, dtype=np.int64) for batch in batches]


def share(lengths: Sequence[int], token_budget: int, lanes: int) -> int:
    """The token budget of a lane: few pieces make a batch for each, if there is enough for all; at most as given."""
    each = -(-sum(lengths) // lanes)
    return min(token_budget, each + max(lengths) // 2) if each >= LANE_TOKENS else token_budget


def _closes(size: int, longest: int, used: int, length: int, token_budget: int) -> bool:
    padded = (size + 1) * longest
    if padded > token_budget:
        return True
    if length == longest:
        return False
    return used >= ENOUGH_TOKENS * token_budget or (padded - used - length) > MAX_PADDING * padded


def collate(pieces: Pieces, batch: np.ndarray, pad_id: int, causal: bool) -> Batch:
    """Pad the pieces of one batch on the right with `pad_id`; the mask, never the id, says what is real."""
    lengths = torch.tensor([len(pieces.ids[i]) for i in batch])
    longest = int(lengths.max())
    ids = torch.full((len(batch), longest), pad_id, dtype=torch.int64)  # row token
    for row, piece in enumerate(batch):
        ids[row, : int(lengths[row])] = torch.tensor(pieces.ids[piece], dtype=torch.int64)
    position = torch.arange(longest)[None, :]  # 1 token
    real = position < lengths[:, None]  # row token
    content = (position >= pieces.content_start(causal)) & (position < (lengths - pieces.suffix)[:, None])  # row token
    return Batch(ids, None if bool(real.all()) else real, content & real)
