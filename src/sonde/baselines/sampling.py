"""Sampling: the next token of each row, drawn with that row's own seed.

SeededChoice   greedy at temperature 0; else the Gumbel-max trick, so that a greedy decoder samples
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class SeededChoice(LogitsProcessor):  # type: ignore[misc]
    """Changes logits so that the largest of a row is the token to write, and remembers how likely that was.

    The largest of logits / T + Gumbel noise is distributed as softmax(logits / T) (Gumbel 1954; Maddison et al. 2014,
    "A* sampling", section 2). The noise of a row comes from its own generator: what else is in the batch, and the
    global seed, do not matter.

    Parameters
    ----------
    temperature : float
    seeds : sequence of int
        One a row.

    Attributes
    ----------
    logprobs : list of list of float
        step x row: log-probability of the chosen token at temperature 1.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.random = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.logprobs: list[list[float]] = []

    def __call__(
        self, input_ids: Int[Tensor, "row token"], scores: Float[Tensor, "row vocabulary"]
    ) -> Float[Tensor, "row vocabulary"]:
        """Return what a greedy decoder takes the largest of."""
        logits = scores.float()
        if self.temperature > 0:
            noise = torch.stack([torch.rand(logits.shape[1], generator=one) for one in self.random])  # row vocabulary
            gumbel = -torch.log(-torch.log(noise.clamp_min(torch.finfo(torch.float32).tiny)))
            chosen = logits / self.temperature + gumbel.to(logits.device)
        else:
            chosen = logits
        best = chosen.argmax(dim=1, keepdim=True)  # (row, 1)
        self.logprobs.append(logits.log_softmax(dim=1).gather(1, best).squeeze(1).tolist())  # row
        return chosen
