"""Training a head on blocks that are held in memory.

    Data             what training reads
    train, Run       one training run: the network, and its losses per epoch (the paper's Figure 3)
    cross_entropy    the loss of each row, on logits
    batch_rows       rows per step

Batches are drawn by index, no row is handled alone. A run standardises its blocks once, in the precision of its
products: a copy of half the size on a CPU or GPU with bfloat16.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sonde.learn.head import FusionNetwork, Setting, predict
from sonde.precision import reported_dtype
from sonde.progress import tracked

Loss = Callable[[Float[Tensor, "row class"], Float[Tensor, "row class"], bool], Float[Tensor, " row"]]
PREPARED_BYTES = 2**30
"""Blocks of more bytes are standardised batch by batch, not all at once: as many bytes again do not fit everywhere."""


def batch_rows(n_rows: int) -> int:
    """Rows per step: the paper's 1024, or fewer so that an epoch has 20 steps, at least 8."""
    return max(8, min(1024, n_rows // 20))


def cross_entropy(
    logits: Float[Tensor, "row class"], indicator: Float[Tensor, "row class"], multilabel: bool
) -> Float[Tensor, " row"]:
    """Loss of each row: softmax cross entropy, or the sum over labels of the sigmoid cross entropy.

    A row of single-label data without a label (a validation label that training lacks) has no loss.
    """
    if multilabel:
        losses = nn.functional.binary_cross_entropy_with_logits(logits, indicator, reduction="none")
        return losses.sum(dim=1)  # row class -> row
    return -(logits.log_softmax(dim=1) * indicator).sum(dim=1)  # row class -> row


@dataclass(frozen=True)
class Data:
    """What training reads, as tensors over all rows of the problem."""

    blocks: tuple[Tensor, ...]
    """Deep blocks, then sentence blocks, each (row, width)."""
    indicator: Float[Tensor, "row class"]
    """Labels."""
    weights: Float[Tensor, " row"]
    """Sample weights."""
    multilabel: bool
    """Whether a row may have several labels."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    network: FusionNetwork
    """In evaluation mode, as it was after `epochs`."""
    learning_rate: float
    """What it trained with."""
    epochs: int
    """Epochs up to the lowest validation loss; all of them if nothing was watched."""
    loss: float
    """The lowest validation loss; infinite if nothing was watched."""
    train_losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch, dropout on."""
    validation_losses: list[float] = field(default_factory=list)
    """Mean validation loss after each epoch."""


def train(
    network: FusionNetwork,
    data: Data,
    rows: Int64[Tensor, " trained"],
    setting: Setting,
    learning_rate: float,
    watch: Int64[Tensor, " watched"] | None = None,
    loss: Loss = cross_entropy,
) -> Run:
    """Train for `setting.epochs`, or until the validation loss has not fallen for `setting.patience` epochs.

    Parameters
    ----------
    network : FusionNetwork
        Changed in place, unless its weights are averaged.
    data : Data
    rows, watch : (row,) int64
        Rows to train on, and rows whose loss decides when to stop.
    loss : callable
        Logits, indicator, multilabel -> loss of each row.

    Returns
    -------
    Run
        With the network of the best epoch if rows are watched, else of the last.
    """
    optimizer, average = _optimizer(network, setting, learning_rate), network
    device = data.indicator.device
    precision = reported_dtype(device)  # of the products; weights, losses and every prediction are float32
    if setting.averaging:
        average = copy.deepcopy(network)
    weights = data.weights / data.weights[rows].mean()
    size_of = sum(block.numel() for block in data.blocks) * precision.itemsize
    prepared = network.prepared(data.blocks, precision) if size_of <= PREPARED_BYTES else None

    def taken(batch: Tensor) -> list[Tensor]:
        if prepared is not None:
            return [block.index_select(0, batch) for block in prepared]
        return network.prepared([block.index_select(0, batch) for block in data.blocks], precision)

    size, steps = setting.batch or batch_rows(len(rows)), 0
    best, best_loss, best_epoch = average, math.inf, 0
    train_losses: list[float] = []
    validation_losses: list[float] = []
    for epoch in tracked(range(1, setting.epochs + 1), "training a head", "epochs"):
        total = 0.0
        for batch in torch.split(rows[torch.randperm(len(rows))], size):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = network.train().classify(taken(batch)).float()  # row class
            step_loss = (loss(logits, data.indicator[batch], data.multilabel) * weights[batch]).mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(step_loss)
            optimizer.step()
            steps += 1
            total += float(step_loss.detach()) * len(batch)
            _follow(average, network, setting.averaging, steps)
        train_losses.append(total / len(rows))
        if watch is None:
            continue
        validation_losses.append(_mean_loss(average, data, watch, loss))
        if validation_losses[-1] < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(average), validation_losses[-1], epoch
        elif setting.patience is not None and epoch - best_epoch >= setting.patience:
            break
    if watch is None or setting.patience is None:
        best, best_epoch = average, setting.epochs
    return Run(best.eval(), learning_rate, max(best_epoch, 1), best_loss, train_losses, validation_losses)


def _optimizer(network: nn.Module, setting: Setting, learning_rate: float) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]  # biases and gains need no decay
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float, steps: int) -> None:
    if average is network:
        return
    decay = min(decay, (1 + steps) / (10 + steps))  # young averages forget the initial weights quickly
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def _mean_loss(network: FusionNetwork, data: Data, rows: Tensor, loss: Loss) -> float:
    losses = loss(predict(network, data.blocks, rows), data.indicator[rows], data.multilabel)
    weights = data.weights[rows]
    value = float((losses * weights).sum() / weights.sum().clamp_min(1e-12))
    return value if math.isfinite(value) else math.inf
