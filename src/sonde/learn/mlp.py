"""LLMEmbed's classifier head (arXiv 2406.03725, section 3 and 4.1): blocks -> fusion -> a small network -> logits.

    Setting, DEFAULT, PAPER    how a head is built and trained: our choices, and the paper's
    FusionNetwork              standardised blocks, fused by one row of Table 1, through the head
    train, Run                 one training run, its loss per epoch (Figure 3) and the network it ended with
    fit                        learning rate and epochs on validation, then the final model
    FusionHead                 the fitted model

Training holds everything in memory and draws batches by index from the blocks as they are; standardisation and
fusion are part of the network, so no fold needs a copy of its own.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from sonde.errors import ModelError
from sonde.learn.fusion import PAPER_MAP_DROPOUT, Fusion, Roles, Standardise, assign, row_of
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.splitting import Folds


@dataclass(frozen=True)
class Setting:
    """How a head is built and trained."""

    hidden: tuple[int, ...]
    """Widths of the hidden layers."""
    dropout: float
    """After each hidden layer."""
    map_dropout: float
    """After each learned map of rows 14 and 15."""
    normalise: bool
    """Layer normalisation of the hidden layers and of the co-occurrence numbers."""
    standardise: bool
    """Standardise every block on the training rows."""
    scaled: bool
    """Scale the rows of X and choose sigma from the data, in place of the raw sigma .2."""
    learning_rates: tuple[float, ...]
    """Tried on validation; the first is taken if nothing can be held out."""
    weight_decay: float
    """Decoupled (AdamW), on matrices only; 0 is plain Adam."""
    averaging: float
    """Decay per step of the moving average of the weights, which is the model; 0 = the last weights."""
    batch: int | None
    """Rows per step; None = `batch_rows`."""
    epochs: int
    """Passes over the data, at most."""
    patience: int | None
    """Epochs without a lower validation loss after which training stops; None = never."""


# Chosen on R52, R8 and 6,000 rows of AG News and SST-2 with the small LLaMA and MiniLM. Layer normalisation and
# averaged weights make the numbers of row 14 learn as fast as plain features; 1024 -> 256 was slower, not better.
DEFAULT = Setting(
    hidden=(512,),
    dropout=0.5,
    map_dropout=0.0,
    normalise=True,
    standardise=True,
    scaled=True,
    learning_rates=(1e-3, 3e-4, 3e-3),
    weight_decay=0.01,
    averaging=0.98,  # about 50 steps: two to three epochs where an epoch has its usual 20 steps
    batch=None,
    epochs=100,
    patience=6,
)
# Section 4.1 (batch, epochs, rate) and the released code (layers, dropout, Adam).
PAPER = Setting(
    hidden=(1024, 256),
    dropout=0.5,
    map_dropout=PAPER_MAP_DROPOUT,
    normalise=False,
    standardise=False,
    scaled=False,
    learning_rates=(1e-4,),
    weight_decay=0.0,
    averaging=0.0,
    batch=1024,
    epochs=100,
    patience=None,
)

UNWATCHED_EPOCHS = 20  # where nothing can be held out: about what validation chooses on the sets above
SEARCH_ROWS = 8192  # the order of learning rates shows on as many; a search then costs the same for any data set
SEARCH_EPOCHS = 15  # on those rows the moving average has passed its steep part by then
CALIBRATION_ROWS = 4096  # a median of |x.y| needs no more
PREDICTION_ROWS = 4096  # rows per forward pass: bounds memory, does not change results

Loss = Callable[[Float[Tensor, "row class"], Float[Tensor, "row class"], bool], Float[Tensor, "row"]]


def batch_rows(n_rows: int) -> int:
    """Rows per step: the paper's 1024, or fewer so that an epoch has 20 steps, at least 8."""
    return max(8, min(1024, n_rows // 20))


def cross_entropy(
    logits: Float[Tensor, "row class"], indicator: Float[Tensor, "row class"], multilabel: bool
) -> Float[Tensor, "row"]:
    """Loss of each row: softmax cross entropy, or the sum over labels of the sigmoid cross entropy."""
    if multilabel:
        losses = nn.functional.binary_cross_entropy_with_logits(logits, indicator, reduction="none")
        return losses.sum(dim=1)  # row class -> row
    return nn.functional.cross_entropy(logits, indicator.argmax(dim=1), reduction="none")  # row


class FusionNetwork(nn.Module):
    """Blocks -> standardised -> fused (one row of Table 1) -> hidden layers -> logits."""

    def __init__(self, row: int, widths: Roles[int], n_classes: int, setting: Setting) -> None:
        super().__init__()
        self.standardise = nn.ModuleList(Standardise(width) for width in widths.deep + widths.sentences)
        self.fusion = Fusion(row_of(row), widths, scaled=setting.scaled, dropout=setting.map_dropout)
        self.head = _head(self.fusion, n_classes, setting)
        self.n_deep = len(widths.deep)

    def roles(self, blocks: Sequence[Tensor]) -> Roles[Tensor]:
        """Standardise a batch and tell deep from sentence blocks."""
        blocks = [to(block) for to, block in zip(self.standardise, blocks, strict=True)]
        return Roles(tuple(blocks[: self.n_deep]), tuple(blocks[self.n_deep :]))

    @torch.no_grad()
    def measure(self, data: "Data", rows: Tensor, standardise: bool) -> None:
        """Take standardisation and sigma from the training rows."""
        if standardise:
            for to, block in zip(self.standardise, data.blocks, strict=True):
                to.measure(block[rows], data.weights[rows])  # type: ignore[operator]
        if self.fusion.co is not None:
            some = rows[:: max(1, len(rows) // CALIBRATION_ROWS)]
            given = self.roles([block[some] for block in data.blocks])
            self.fusion.co.eval().calibrate(given.deep, given.sentences)

    def forward(self, blocks: Sequence[Tensor]) -> Float[Tensor, "row class"]:
        """Logits of a batch."""
        given = self.roles(blocks)
        logits: Tensor = self.head(self.fusion(given.deep, given.sentences))
        return logits  # row class


def _head(fusion: Fusion, n_classes: int, setting: Setting) -> nn.Sequential:
    width, layers = fusion.width, []
    if setting.normalise and fusion.row.learns_maps:
        layers.append(nn.LayerNorm(width))
    for hidden in setting.hidden:
        norm = [nn.LayerNorm(hidden)] if setting.normalise else []
        layers += [nn.Linear(width, hidden), *norm, nn.ReLU(), nn.Dropout(setting.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


@dataclass(frozen=True)
class Data:
    """What training reads, as tensors over all rows of the problem."""

    blocks: tuple[Tensor, ...]
    """Deep blocks, then sentence blocks, each (row, width)."""
    indicator: Float[Tensor, "row class"]
    """Labels."""
    weights: Float[Tensor, "row"]
    """Sample weights."""
    multilabel: bool
    """Whether a row may have several labels."""
    seed: int
    """Of initial weights, order and dropout."""


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
    rows: Tensor,
    setting: Setting,
    learning_rate: float,
    watch: Tensor | None = None,
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
    if setting.averaging:
        average = copy.deepcopy(network)
    weights = data.weights / data.weights[rows].mean()
    size, steps = setting.batch or batch_rows(len(rows)), 0
    best, best_loss, best_epoch = average, math.inf, 0
    train_losses: list[float] = []
    validation_losses: list[float] = []
    for epoch in range(1, setting.epochs + 1):
        total = 0.0
        for batch in rows[torch.randperm(len(rows))].split(size):
            logits = network.train()([block.index_select(0, batch) for block in data.blocks])  # row class
            step_loss = (loss(logits, data.indicator[batch], data.multilabel) * weights[batch]).mean()
            optimizer.zero_grad(set_to_none=True)
            step_loss.backward()
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
    losses = loss(_logits(network, [block[rows] for block in data.blocks]), data.indicator[rows], data.multilabel)
    weights = data.weights[rows]
    value = float((losses * weights).sum() / weights.sum().clamp_min(1e-12))
    return value if math.isfinite(value) else math.inf


@torch.inference_mode()
def _logits(network: FusionNetwork, blocks: Sequence[Tensor]) -> Float[Tensor, "row class"]:
    network.eval()
    parts = zip(*(block.split(PREDICTION_ROWS) for block in blocks), strict=True)
    return torch.cat([network(part) for part in parts])  # row class


def fit(
    problem: Problem,
    deep: Sequence[str],
    sentences: Sequence[str],
    row: int,
    *,
    paper: bool = False,
    setting: Setting | None = None,
    loss: Loss = cross_entropy,
) -> Outcome:
    """Fit one row of LLMEmbed's Table 1.

    Parameters
    ----------
    problem : Problem
    deep : sequence of str
        Names of the deep backbone's blocks, the last layer first.
    sentences : sequence of str
        Names of the sentence embeddings: B, then R.
    row : int
        1 to 15.
    paper : bool
        Take `PAPER` in place of `DEFAULT`.
    setting : Setting, optional
        Overrides `paper`.
    loss : callable
        Logits, indicator, multilabel -> loss of each row.

    Returns
    -------
    Outcome
        Out-of-fold logits for the rows of the conformal and of the first choosing fold, NaN for others: a head is
        trained once for validation, not once a fold. The final model trains on all trainable rows with the learning
        rate and the number of epochs that had the lowest validation loss.

    Raises
    ------
    ArgumentError
        If there is no such row.
    RecipeError
        If a role is missing, or deep blocks of different widths are to be averaged.
    """
    setting = setting or (PAPER if paper else DEFAULT)
    task = _Task(problem, assign(row_of(row), deep, sentences), row, setting, loss)
    plans = _plans(problem.folds)
    held_out = np.full((problem.rows, problem.targets.n_classes), np.nan, dtype=np.float32)
    searched, chosen = task.choose(plans[0]) if plans else ([], None)
    rate = chosen.learning_rate if chosen else setting.learning_rates[0]
    epochs = chosen.epochs if chosen else setting.epochs if setting.patience is None else UNWATCHED_EPOCHS
    for place, plan in enumerate(plans):
        run = chosen if place == 0 and chosen else task.run(task.rows(plan.trained), rate, epochs)
        held_out[plan.unseen] = task.logits(run.network, plan.unseen)
    final = task.run(task.rows(problem.folds.trainable), rate, epochs)
    summary = _summary(row, setting, searched, chosen or final, final)
    return Outcome(FusionHead(task.names, row, problem.targets.n_classes, final.network, setting), held_out, summary)


@dataclass(frozen=True)
class _Plan:
    """A model that validates: what it trains on, what stops it, what it predicts."""

    trained: Bool[np.ndarray, " row"]
    watched: Bool[np.ndarray, " row"]
    unseen: Bool[np.ndarray, " row"]


def _plans(folds: Folds) -> list[_Plan]:
    """One model blind to the first choosing fold and the conformal rows, or one for each if that leaves too few."""
    if not folds.choosing.any():
        return []
    first = int(folds.held[folds.choosing].min())
    watched = folds.choosing & (folds.held == first)
    unseen = watched | folds.conformal
    if folds.n_folds != 2:
        return [_Plan(folds.trainable & ~unseen, watched, unseen)]
    return [
        _Plan(folds.train(first), watched, watched),
        _Plan(folds.trainable & ~folds.conformal, folds.conformal, folds.conformal),
    ]


class _Task:
    """The training runs of one fit."""

    def __init__(self, problem: Problem, names: Roles[str], row: int, setting: Setting, loss: Loss) -> None:
        self.names, self.setting, self.loss = names, setting, loss
        blocks = tuple(_tensor(problem.blocks[name]) for name in names.deep + names.sentences)
        targets = problem.targets
        self.data = Data(blocks, _tensor(targets.indicator), _tensor(problem.weights), targets.multilabel, problem.seed)
        n_deep = len(names.deep)
        widths = [block.shape[1] for block in blocks]
        self.shape = (row, Roles(tuple(widths[:n_deep]), tuple(widths[n_deep:])), targets.n_classes)

    def rows(self, mask: Bool[np.ndarray, " row"]) -> Tensor:
        """Indices of the rows of a mask that have a weight."""
        return torch.from_numpy(np.flatnonzero(mask)).masked_select(self.data.weights[torch.from_numpy(mask)] > 0)

    def run(self, rows: Tensor, rate: float, epochs: int | None = None, watch: Tensor | None = None) -> Run:
        """Train a new network; the same seed gives the same network, and nobody else's randomness changes."""
        setting = replace(self.setting, epochs=epochs or self.setting.epochs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.data.seed)
            network = FusionNetwork(*self.shape, setting)
            network.measure(self.data, rows, setting.standardise)
            return train(network, self.data, rows, setting, rate, watch, self.loss)

    def choose(self, plan: _Plan) -> tuple[list[Run], Run]:
        """All learning rates on at most `SEARCH_ROWS` rows, and the run of the best one on all."""
        rows, watch, rates = self.rows(plan.trained), self.rows(plan.watched), self.setting.learning_rates
        if len(rates) == 1:
            return [], self.run(rows, rates[0], watch=watch)
        if len(rows) <= SEARCH_ROWS:
            runs = [self.run(rows, rate, watch=watch) for rate in rates]
            return runs, min(runs, key=lambda run: run.loss)
        some = _sample(rows, self.data.seed)
        runs = [self.run(some, rate, SEARCH_EPOCHS, _sample(watch, self.data.seed)) for rate in rates]
        return runs, self.run(rows, min(runs, key=lambda run: run.loss).learning_rate, watch=watch)

    def logits(self, network: FusionNetwork, mask: Bool[np.ndarray, " row"]) -> Float32[np.ndarray, "row class"]:
        """Logits of the rows of a mask."""
        rows = torch.from_numpy(np.flatnonzero(mask))
        return _logits(network, [block[rows] for block in self.data.blocks]).numpy()


def _sample(rows: Tensor, seed: int) -> Tensor:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:SEARCH_ROWS]]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _summary(row: int, setting: Setting, searched: list[Run], chosen: Run, final: Run) -> dict[str, Any]:
    return {
        "row": row,
        "paper": setting == PAPER,
        "learning_rate": final.learning_rate,
        "epochs": chosen.epochs,
        "validation_loss": _finite(chosen.loss),
        "searched": {f"{run.learning_rate:g}": _finite(run.loss) for run in searched},
        "history": {"train": chosen.train_losses, "validation": [_finite(x) for x in chosen.validation_losses]},
        "final_history": {"train": final.train_losses},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


@dataclass(frozen=True)
class FusionHead:
    """A fitted row of LLMEmbed's Table 1."""

    names: Roles[str]
    """Blocks that it fuses."""
    row: int
    """Its number."""
    n_classes: int
    """Columns of its logits."""
    network: FusionNetwork
    """In evaluation mode."""
    setting: Setting
    """How it was built and trained."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the blocks that it reads: deep, then sentences."""
        return self.names.deep + self.names.sentences

    @property
    def reads_text(self) -> bool:
        """False: only blocks are read."""
        return False

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Softmax of these gives probabilities (multi-label: sigmoid)."""
        return _logits(self.network, [_tensor(blocks[name]) for name in self.needs]).numpy()

    def record(self) -> Record:
        """The model as plain data."""
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in self.network.state_dict().items()}
        widths = [standardise.mean.shape[0] for standardise in self.network.standardise]
        settings = {
            "row": self.row,
            "deep": list(self.names.deep),
            "sentences": list(self.names.sentences),
            "widths": widths,
            "n_classes": self.n_classes,
            "setting": asdict(self.setting),
        }
        return Record(settings, arrays)

    @classmethod
    def from_record(cls, record: Record) -> "FusionHead":
        """The model from plain data.

        Raises
        ------
        ModelError
            If settings are missing or arrays do not fit them.
        """
        try:
            return cls._from_record(record)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"The saved fusion head is damaged: {str(error).splitlines()[-1].strip()}") from error

    @classmethod
    def _from_record(cls, record: Record) -> "FusionHead":
        given = record.settings
        kept = {**given["setting"]}
        kept["hidden"], kept["learning_rates"] = tuple(kept["hidden"]), tuple(kept["learning_rates"])
        names, setting = Roles(tuple(given["deep"]), tuple(given["sentences"])), Setting(**kept)
        widths = given["widths"]
        if len(widths) != len(names.deep + names.sentences):
            raise ValueError(f"{len(widths)} widths for {len(names.deep + names.sentences)} blocks")
        shape = Roles(tuple(widths[: len(names.deep)]), tuple(widths[len(names.deep) :]))
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            network = FusionNetwork(given["row"], shape, given["n_classes"], setting).eval()
        network.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in record.arrays.items()})
        return cls(names, given["row"], given["n_classes"], network, setting)
