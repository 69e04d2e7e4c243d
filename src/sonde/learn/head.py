"""LLMEmbed's classifier (arXiv 2406.03725, section 3): blocks -> fusion -> hidden layers -> logits.

Setting, DEFAULT, PAPER    how a head is built and trained: our choices, and the paper's
Standardise                one block on a scale of its own
FusionNetwork              standardised blocks, fused by one row of Table 1, through the head
FusionHead                 a fitted one
predict                    logits of a network for any number of rows
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from sonde.errors import ModelError
from sonde.learn.fusion import PAPER_MAP_DROPOUT, Dropout, Fusion, Roles, row_of
from sonde.learn.problem import Blocks, Record
from sonde.learn.regressions import varies

CALIBRATION_ROWS = 4096  # a median of |x.y| needs no more
PREDICTION_ROWS = 4096  # rows per forward pass: bounds memory, does not change results


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
    """On the training rows: each feature, or where Co multiplies blocks (rows 14 and 15) each block as a whole."""
    calibrated: bool
    """Choose sigma from the data, in place of .2."""
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


# Chosen on R52 with a small LLaMA and MiniLM, one seed; R8 and 6,000 rows of AG News and SST-2 confirmed that row 14
# learns. A second hidden layer cost a point in rows 2 and 4 and time; layer normalisation gave 2 in row 2, averaged
# weights 1 in rows 2 and 14. Dropout on the maps, as in the released code, cost row 14 up to 18 (SST-2). Co of blocks
# without their means lacks what is linear in a sentence embedding: row 15 lost 6 points on SST-2 and 9 on AG News.
DEFAULT = Setting(
    hidden=(512,),
    dropout=0.5,
    map_dropout=0.0,
    normalise=True,
    standardise=True,
    calibrated=True,
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
    calibrated=False,
    learning_rates=(1e-4,),
    weight_decay=0.0,
    averaging=0.0,
    batch=1024,
    epochs=100,
    patience=None,
)


class Standardise(nn.Module):
    """One block on a scale of its own; the identity until `measure` is called.

    (x - mean) / deviation of each feature; or with `whole` x / its root mean square over rows and features.
    """

    mean: Tensor
    """The average training text, where explanations start."""
    scale: Tensor

    def __init__(self, width: int, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def measure(
        self, block: Float[Tensor, "row feature"], weights: Float[Tensor, " row"], rows: Int64[Tensor, " trained"]
    ) -> None:
        """Take mean and deviation of weighted rows; a feature that is constant or shut is centred and not scaled."""
        parts, total = torch.split(rows, PREDICTION_ROWS), weights[rows].sum()
        mean, variance = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for part in parts:
            mean += weights[part] / total @ block[part]  # part, part feature -> feature
        for part in parts:  # two passes, so that a large mean cancels nothing
            variance += weights[part] / total @ (block[part] - mean).square()
        self.mean.copy_(mean)
        if self.whole:
            square = float((variance + mean.square()).mean())
            self.scale.fill_(square**-0.5 if square else 1.0)
            return
        deviation = variance.sqrt()
        self.scale.copy_(torch.where(varies(mean, deviation), 1 / deviation, 1.0))  # products are cheap

    def forward(self, block: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """Scale a batch."""
        return block * self.scale if self.whole else (block - self.mean) * self.scale


class FusionNetwork(nn.Module):
    """Blocks -> standardised -> fused (one row of Table 1) -> hidden layers -> logits."""

    def __init__(self, row: int, widths: Roles[int], n_classes: int, setting: Setting) -> None:
        super().__init__()
        whole = row_of(row).learns_maps
        self.standardise = nn.ModuleList(Standardise(width, whole=whole) for width in widths.deep + widths.sentences)
        self.fusion = Fusion(row_of(row), widths, calibrated=setting.calibrated, dropout=setting.map_dropout)
        self.head = _head(self.fusion, n_classes, setting)
        self.widths, self.setting = widths, setting

    def roles(self, standardised: Sequence[Tensor]) -> Roles[Tensor]:
        """Tell deep from sentence blocks."""
        deep = len(self.widths.deep)
        return Roles(tuple(standardised[:deep]), tuple(standardised[deep:]))

    @torch.no_grad()
    def measure(
        self, blocks: Sequence[Tensor], weights: Float[Tensor, " row"], rows: Int64[Tensor, " trained"]
    ) -> None:
        """Take standardisation and sigma from the training rows, as far as the setting asks for them."""
        if self.setting.standardise:
            for to, block in zip(self.standardise, blocks, strict=True):
                to.measure(block, weights, rows)  # type: ignore[operator]
        if self.fusion.co is not None:
            some = rows[:: max(1, len(rows) // CALIBRATION_ROWS)]
            given = self.roles(self.standardised([block[some] for block in blocks]))
            self.fusion.co.eval().calibrate(given.deep, given.sentences)

    def standardised(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The blocks of a batch, each standardised."""
        return [to(block) for to, block in zip(self.standardise, blocks, strict=True)]

    @torch.no_grad()
    def prepared(self, blocks: Sequence[Tensor], precision: torch.dtype) -> list[Tensor]:
        """Blocks of any number of rows, standardised, as a training loop takes them batch by batch."""
        taken = [torch.empty(block.shape, dtype=precision, device=block.device) for block in blocks]
        for start in range(0, len(taken[0]), PREDICTION_ROWS):
            rows = slice(start, start + PREDICTION_ROWS)
            for out, part in zip(taken, self.standardised([block[rows] for block in blocks]), strict=True):
                out[rows] = part
        return taken

    def forward(self, blocks: Sequence[Tensor]) -> Float[Tensor, "row class"]:
        """Logits of a batch."""
        return self.classify(self.standardised(blocks))

    def classify(self, standardised: Sequence[Tensor]) -> Float[Tensor, "row class"]:
        """Logits of a batch that is standardised."""
        given = self.roles(standardised)
        logits: Tensor = self.head(self.fusion(given.deep, given.sentences))
        return logits  # row class


def _head(fusion: Fusion, n_classes: int, setting: Setting) -> nn.Sequential:
    width = fusion.width
    layers: list[nn.Module] = []
    if setting.normalise and fusion.row.learns_maps:
        layers.append(nn.LayerNorm(width))
    for hidden in setting.hidden:
        norm: list[nn.Module] = [nn.LayerNorm(hidden)] if setting.normalise else []
        layers += [nn.Linear(width, hidden), *norm, nn.ReLU(), Dropout(setting.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


@torch.inference_mode()
def predict(
    network: FusionNetwork, blocks: Sequence[Tensor], rows: Int64[Tensor, " asked"] | None = None
) -> Float[Tensor, "row class"]:
    """Logits of some rows, or of all, in evaluation mode, a bounded number at a time."""
    network.eval()
    parts = torch.split(torch.arange(len(blocks[0])) if rows is None else rows, PREDICTION_ROWS)
    return torch.cat([network([block[part] for block in blocks]) for part in parts])  # row class


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
    def columns(self) -> Mapping[str, Int64[np.ndarray, " _"]]:
        """None: blocks are read whole."""
        return {}

    @property
    def reads_text(self) -> bool:
        """False: only blocks are read."""
        return False

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Softmax of these gives probabilities (multi-label: sigmoid)."""
        return predict(self.network, [_tensor(blocks[name]) for name in self.needs]).numpy()

    def record(self) -> Record:
        """The model as plain data."""
        arrays = {name: tensor.detach().numpy().copy() for name, tensor in self.network.state_dict().items()}
        settings = {
            "row": self.row,
            "deep": list(self.names.deep),
            "sentences": list(self.names.sentences),
            "widths": [*self.network.widths.deep, *self.network.widths.sentences],
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
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"The saved fusion head is damaged: {str(error).splitlines()[-1].strip()}") from error

    @classmethod
    def _from_record(cls, record: Record) -> "FusionHead":
        given = record.settings
        kept = {**given["setting"]}
        kept["hidden"], kept["learning_rates"] = tuple(kept["hidden"]), tuple(kept["learning_rates"])
        if "scaled" in kept:  # in the place of `calibrated`, as long as Co was one of directions
            kept["calibrated"] = kept.pop("scaled")
            if kept["calibrated"] and row_of(given["row"]).learns_maps:
                raise ValueError("row 14 or 15 of an earlier sonde, whose co-occurrence was another; fit it again")
        names, setting = Roles(tuple(given["deep"]), tuple(given["sentences"])), Setting(**kept)
        widths = given["widths"]
        if len(widths) != len(names.deep + names.sentences):
            raise ValueError(f"{len(widths)} widths for {len(names.deep + names.sentences)} blocks")
        shape = Roles(tuple(widths[: len(names.deep)]), tuple(widths[len(names.deep) :]))
        if len(kept["hidden"]) > len(record.arrays):
            raise ValueError(f"{len(kept['hidden'])} hidden layers for {len(record.arrays)} arrays")
        with torch.device("meta"):  # takes no memory: what a stranger's numbers would take must be there already
            sketch = FusionNetwork(given["row"], shape, given["n_classes"], setting).state_dict()
        if odd := sorted(name for name, t in sketch.items() if record.arrays[name].shape != tuple(t.shape)):
            raise ValueError(f"the array {odd[0]!r} is no {tuple(sketch[odd[0]].shape)}")
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten
            network = FusionNetwork(given["row"], shape, given["n_classes"], setting).eval()
        network.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in record.arrays.items()})
        return cls(names, given["row"], given["n_classes"], network, setting)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
