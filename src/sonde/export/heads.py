"""A fitted learner as a module: the blocks that it reads in, logits out.

head_of    fitted learner -> module
HEADS      name of the class of a fitted learner -> how it is made
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sonde.errors import RecipeError
from sonde.learn.problem import Fitted

if TYPE_CHECKING:
    from sonde.learn.blend import Blend
    from sonde.learn.cascade import Cascade
    from sonde.learn.head import FusionHead
    from sonde.learn.logistic import Logistic
    from sonde.learn.sparse import Sparse

Named: TypeAlias = Mapping[str, Tensor]
"""Block name -> (row, dim), all features of the block."""


def head_of(model: Fitted, recipe: str) -> nn.Module:
    """The module of a fitted learner: blocks -> logits (row, class), as its `logits` gives them.

    Raises
    ------
    RecipeError
        If it reads the text itself, or this kind of learner has no module.
    """
    if model.reads_text:
        raise RecipeError(_reads_text(model, recipe))
    kind = type(model).__name__
    if kind not in HEADS:
        raise RecipeError(f"A model of kind {kind} cannot be exported; these can: {', '.join(HEADS)}.")
    return HEADS[kind](model)


def _reads_text(model: Fitted, recipe: str) -> str:
    """Why, and what to train instead."""
    if not model.needs:
        return (
            f"The recipe {recipe!r} cannot be exported: it counts words and characters of the text, and an ONNX graph "
            "sees token ids alone. Train `--recipe linear`, or keep this model behind `sonde serve`."
        )
    return (
        f"This model of the recipe {recipe!r} cannot be exported: a part of it counts words and characters of the "
        "text, and an ONNX graph sees token ids alone. Train what it knows of the layers: `--recipe linear --site "
        "'hidden.*' --pooling mean --pooling max`, or `--recipe stc`, which is smaller; or keep this one behind "
        "`sonde serve`."
    )


class _Linear(nn.Module):
    """`Logistic` and `Sparse`: standardised features times coefficients."""

    mean: Tensor
    scale: Tensor
    coefficients: Tensor
    intercept: Tensor

    def __init__(self, model: "Logistic | Sparse") -> None:
        super().__init__()
        self.needs = model.needs
        for name in ("mean", "scale", "coefficients", "intercept"):
            self.register_buffer(name, _tensor(getattr(model, name)))
        self.kept = {name: torch.from_numpy(columns.copy()) for name, columns in model.columns.items()}

    def forward(self, blocks: Named) -> Tensor:
        taken = [_columns(blocks[name], self.kept.get(name)) for name in self.needs]  # row feature
        standard = (torch.cat(taken, dim=1) - self.mean) * self.scale  # row feature
        logits: Tensor = standard @ self.coefficients + self.intercept  # row class
        return logits


def _columns(block: Tensor, kept: Tensor | None) -> Tensor:
    return block if kept is None or len(kept) == block.shape[1] else block.index_select(1, kept)


class _Fusion(nn.Module):
    """A row of LLMEmbed's Table 1 and its network."""

    def __init__(self, model: "FusionHead") -> None:
        super().__init__()
        self.needs, self.network = model.needs, model.network.eval()

    def forward(self, blocks: Named) -> Tensor:
        logits: Tensor = self.network([blocks[name] for name in self.needs])
        return logits  # row class


class _Blend(nn.Module):
    """The weighted sum of several learners' logits."""

    def __init__(self, model: "Blend") -> None:
        super().__init__()
        self.children_ = nn.ModuleList(HEADS[type(child).__name__](child) for child in model.children)
        self.scales = model.scales

    def forward(self, blocks: Named) -> Tensor:
        terms = [scale * child(blocks) for child, scale in zip(self.children_, self.scales, strict=True)]
        return torch.stack(terms).sum(dim=0)  # part row class -> row class


class _Cascade(nn.Module):
    """Heads at several depths. All are computed, since a graph runs whole batches to the end; each row takes the
    logits of the exit at which it would have left.
    """

    def __init__(self, model: "Cascade") -> None:
        super().__init__()
        self.exits = nn.ModuleList(_Linear(one) for one in model.exits)
        self.temperatures, self.threshold = model.temperatures, model.threshold
        self.multilabel = model.multilabel

    def forward(self, blocks: Named) -> Tensor:
        said: list[Tensor] = [one(blocks) / own for one, own in zip(self.exits, self.temperatures, strict=True)]
        logits = said[-1]  # row class
        for early in reversed(said[:-1]):  # the shallowest exit that is sure enough has the last word
            logits = torch.where(self._confidence(early) < self.threshold, logits, early)
        return logits

    def _confidence(self, logits: Tensor) -> Tensor:
        """As the cascade measures it, (row, 1)."""
        if self.multilabel:
            return torch.sigmoid(logits.abs()).amin(dim=1, keepdim=True)  # of yes or no, whichever is likelier
        return torch.softmax(logits, dim=1).amax(dim=1, keepdim=True)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


HEADS: dict[str, Callable[[Any], nn.Module]] = {
    "Logistic": _Linear,
    "Sparse": _Linear,
    "FusionHead": _Fusion,
    "Blend": _Blend,
    "Cascade": _Cascade,
}
"""Name of the class of a fitted learner -> its module; by name, so that no learner is imported for another."""
