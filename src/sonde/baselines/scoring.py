"""Scoring: how likely given answers are behind prompts, without writing any.

score_options   log-probabilities of the options of each prompt
left_padded     rows of ids -> a batch with its pads on the left

The prompt runs once; its keys and values are repeated for the options.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor


def left_padded(
    ids: Sequence[Sequence[int]], pad: int, device: Any
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
    """(tokens, mask) of rows that all end at the right edge."""
    width = max(map(len, ids))
    tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=device)  # row token
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)  # row token
    return tokens, mask


@torch.inference_mode()
def score_options(
    model: Any, heads: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], pad: int
) -> Float32[np.ndarray, "row class"]:
    """Summed log-probability of each option behind its prompt.

    Parameters
    ----------
    model : causal language model of transformers
    heads : rows of ids, not empty
    options : for each row as many lists of ids, not empty
    pad : int
    """
    tokens, mask = left_padded(heads, pad, model.device)  # row token
    begun = _run(model, tokens, mask, _positions(mask), logits_to_keep=1)
    first = begun.logits[:, -1].float().log_softmax(dim=-1)  # row vocabulary
    ways = len(options[0])
    tails = [option for row in options for option in row]
    total = torch.stack([first[i // ways, option[0]] for i, option in enumerate(tails)])  # row x class
    width = max(map(len, tails)) - 1
    if width:
        rest, there = _right_padded([option[:-1] for option in tails], pad, model.device)  # row x class, token
        cache = begun.past_key_values
        cache.batch_repeat_interleave(ways)
        whole = torch.cat([mask.repeat_interleave(ways, dim=0), there], dim=1)
        after = _run(model, rest, whole, _positions(whole)[:, -width:], past_key_values=cache)
        logits = after.logits.float()  # row x class, token, vocabulary
        following, _ = _right_padded([option[1:] for option in tails], pad, model.device)
        each = logits.log_softmax(dim=-1).gather(2, following.unsqueeze(2)).squeeze(2)  # row x class, token
        total = total + (each * there).sum(dim=1)
    return np.asarray(total.reshape(len(heads), ways).cpu().numpy(), dtype=np.float32)  # row class


def _run(model: Any, tokens: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Any:
    """A pass with a cache; models without positions (ALiBi) or without `logits_to_keep` are not given any."""
    known = inspect.signature(model.forward).parameters
    optional = {"position_ids": positions, **more}
    given = {name: value for name, value in optional.items() if name in known}
    return model(input_ids=tokens, attention_mask=mask, use_cache=True, **given)


def _right_padded(ids: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    width = max(map(len, ids))
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in ids], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
    return tokens, mask


def _positions(mask: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """Positions that count real tokens alone."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)
