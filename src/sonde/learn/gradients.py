"""A network's logits as a sum over what it reads: integrated gradients.

    integrated   a fitted head, a direction and a row -> Attribution
    STEPS        points on the way

Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", section 3: the gradient is averaged on the
straight way from a baseline to the row. Unlike gradient times input at the row itself, what all neurons add then sums
to the difference between the row's logits and the baseline's, up to the error of a finite number of steps.

Rows 14 and 15 divide blocks by their lengths, which has no limit where a block is zero, as sentence embeddings are at
the baseline. There the lengths of the row that is explained are kept all the way.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sonde.learn.attribution import Attribution, Part
from sonde.learn.fusion import CoOccurrence, concatenate, power_normalise, products
from sonde.learn.head import FusionHead, FusionNetwork
from sonde.learn.problem import Blocks

STEPS = 1024
"""Midpoints of as many equal steps. Where a head has kinks or is steep a step errs: with 1,024 the sums of small random
heads lack less than a hundredth of the way from the baseline (with 256 up to four), for milliseconds."""


def integrated(model: FusionHead, direction: Float64[np.ndarray, " class"], blocks: Blocks) -> Attribution:
    """Explain one row of a fusion head.

    Parameters
    ----------
    model : FusionHead
    direction : (class,)
        Weights of the logits.
    blocks : mapping of str to (1, dim)
        The row.

    Returns
    -------
    Attribution
        The baseline is the average training text where the head standardises its blocks, zero where it does not (the
        paper's setting); the bias is the score there.
    """
    network = model.network.eval()
    values = [torch.tensor(np.asarray(blocks[name], dtype=np.float32)) for name in model.needs]  # 1 dim
    centres = [to.mean[None, :] for to in network.standardise]  # type: ignore[index]
    wanted = torch.tensor(direction, dtype=torch.float32)
    along = ((torch.arange(STEPS) + 0.5) / STEPS)[:, None]  # step 1
    points = [(c + along * (x - c)).requires_grad_() for x, c in zip(values, centres, strict=True)]  # step dim
    scales = _scales(network, values)
    with torch.enable_grad():
        score = (_logits(network, points, scales) @ wanted).sum()
        gradients = torch.autograd.grad(score, points)
    with torch.no_grad():
        bias = float((_logits(network, centres, scales) @ wanted)[0])
    parts = [
        Part(name, gradient.double().mean(dim=0).numpy(), centre[0].double().numpy())  # step dim -> dim
        for name, gradient, centre in zip(model.needs, gradients, centres, strict=True)
    ]
    return Attribution(bias, tuple(parts), exact=False)


@torch.no_grad()
def _scales(network: FusionNetwork, row: Sequence[Tensor]) -> Float[Tensor, "1 block block"] | None:
    """What the products of two blocks of this row are multiplied by, if they are scaled at all."""
    co = network.fusion.co
    if co is None or not co.scaled:
        return None
    lengths = _stacked(network, co, row).norm(dim=2)  # 1 block feature -> 1 block
    inverse = torch.where(lengths > 1e-12, 1 / lengths, 0.0)  # a block of zeros has no direction on the way either
    scales: Tensor = inverse[:, :, None] * inverse[:, None, :]  # 1 block block
    return scales


def _stacked(network: FusionNetwork, co: CoOccurrence, blocks: Sequence[Tensor]) -> Float[Tensor, "row block feature"]:
    given = network.roles(network.standardised(blocks))
    return co.stack(given.deep, given.sentences)


def _logits(
    network: FusionNetwork, blocks: Sequence[Tensor], scales: Float[Tensor, "1 block block"] | None
) -> Float[Tensor, "row class"]:
    """The network, but for lengths that are given."""
    co = network.fusion.co
    if co is None or scales is None:
        logits: Tensor = network(blocks)
        return logits
    pairs = products(_stacked(network, co, blocks)) * scales  # row block block
    fused = [power_normalise(pairs.flatten(1), co.sigma)]  # row pair
    if "Avg" in network.fusion.row.operators:
        fused += network.fusion.pool(network.roles(network.standardised(blocks)).deep)
    logits = network.head(concatenate(fused))
    return logits  # row class
