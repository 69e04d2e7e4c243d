"""Parameters: how many numbers models hold.

parameters_of       those of a fitted `TextClassifier`
stored_parameters   those in the weight files of a checkpoint
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sonde.cost.records import Parameters
from sonde.errors import BackboneError


def parameters_of(classifier: Any) -> Parameters:
    """Count the numbers of a fitted `TextClassifier`: those stored in its backbones' checkpoints, and its own.

    Its own are the arrays of its learner; conformal scores and hashes of training texts are no parameters.
    """
    folders = {source.backbone.path for source in classifier.sources().values()}
    learned = [array for name, array in classifier.arrays().items() if name.startswith("learner/")]
    return Parameters(sum(map(stored_parameters, folders)), sum(int(array.size) for array in learned))


def stored_parameters(folder: Path) -> int:
    """How many numbers the weight files of a checkpoint's folder hold; of safetensors, only the headers are read.

    Raises
    ------
    BackboneError
        If the folder holds no weights.
    """
    index = Path(folder) / "model.safetensors.index.json"
    names = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    files = [Path(folder) / name for name in sorted(names)] or [Path(folder) / "model.safetensors"]
    if all(file.is_file() for file in files):
        return sum(map(_in_safetensors, files))
    old = sorted(Path(folder).glob("pytorch_model*.bin"))
    if not old:
        raise BackboneError(f"{folder} holds no weights to count (model.safetensors).")
    return sum(tensor.numel() for file in old for tensor in _load(file).values())


def _in_safetensors(file: Path) -> int:
    with safe_open(file, framework="np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _load(file: Path) -> dict[str, Any]:
    import torch

    loaded: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return loaded
