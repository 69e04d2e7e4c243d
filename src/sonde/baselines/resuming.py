"""Resuming: a run that was killed goes on from its folder.

    States    the folder: whose run it is, where it stands, the best weights so far
    State     where a run stands

    run.json               what makes it this run and no other
    state.safetensors      weights, optimiser, generator; the position stands in its header, so that one file is all
    best-<n>.safetensors   weights after epoch n, the best

Every file appears whole or not at all, and a state never names best weights that are not there. No pickle.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sonde.errors import ArgumentError, ModelError
from sonde.tables import write_atomically

RUN, STATE = "run.json", "state.safetensors"
_HIDDEN = {"rows": "other texts, labels or weights", "backbone": "another checkpoint"}
"""Entries that are hashes, which say nothing to a reader."""


@dataclass(frozen=True)
class State:
    """Where a run stands."""

    position: dict[str, Any]
    """JSON values."""
    tensors: dict[str, Tensor]
    """By name."""


class States:
    """The folder of a run.

    Parameters
    ----------
    folder : path
        Made if absent.
    run : mapping
        JSON values that make it this run: settings, hashes of rows and checkpoint.

    Raises
    ------
    ArgumentError
        If the folder holds another run or something else, or cannot be made.
    """

    def __init__(self, folder: Path | str, run: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        known = self._known()
        if known is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._write(RUN, json.dumps(run, indent=1).encode())
            except OSError as error:
                raise ArgumentError(f"resume: {folder} cannot be written ({error}). Give another folder.") from error
        elif known != json.loads(json.dumps(run)):
            raise ArgumentError(
                f"resume: {folder} holds another run. It differs in {_differences(known, run)}. Repeat that call to go "
                "on with it, or give another folder."
            )

    def _known(self) -> Any:
        held = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        others = [name for name in held if not name.startswith(".sonde.tmp-")]  # of a writer that was killed at once
        if self.folder.is_file() or (others and RUN not in others):
            raise ArgumentError(f"resume: {self.folder} is not the folder of a run. Give one that is new or empty.")
        if not self.folder.is_dir() or not (self.folder / RUN).is_file():
            return None
        try:
            return json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(RUN, error) from error

    def load(self) -> State | None:
        """Where the run stood when it was last written; None if never."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                position = json.loads((file.metadata() or {})["position"])
            if not isinstance(position, dict):
                raise ValueError("it says no position")
            return State(position, load_file(path))
        except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
            raise self._damaged(STATE, error) from error

    def save(self, state: State) -> None:
        """Write where the run stands."""
        self._write(STATE, save(_whole(state.tensors), {"position": json.dumps(state.position)}))

    def best(self, epoch: int) -> dict[str, Tensor]:
        """The weights after an epoch that was the best."""
        try:
            weights: dict[str, Tensor] = load_file(self._best(epoch))
            return weights
        except (OSError, SafetensorError) as error:
            raise self._damaged(self._best(epoch).name, error) from error

    def save_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Write the weights after an epoch that is the best; those before it stay until `forget`."""
        self._write(self._best(epoch).name, save(_whole(weights)))

    def forget(self, but: int) -> None:
        """Delete the best weights of other epochs than this one, once a state names it."""
        for path in self.folder.glob("best-*.safetensors"):
            if path != self._best(but):
                path.unlink()

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}.safetensors"

    def _write(self, name: str, blob: bytes) -> None:
        with write_atomically(self.folder / name, "wb") as file:
            file.write(blob)

    def _damaged(self, name: str, error: Exception) -> ModelError:
        return ModelError(
            f"resume: {self.folder / name} is cut or damaged ({error}). Delete the folder, and train from the start."
        )


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share nothing: two names of one tensor are two entries."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _differences(known: Any, run: Mapping[str, Any]) -> str:
    if not isinstance(known, dict):
        return "everything"
    names = sorted(name for name in {*known, *run} if known.get(name) != json.loads(json.dumps(run.get(name))))
    return ", ".join(
        f"{name} ({_HIDDEN[name]})"
        if name in _HIDDEN
        else f"{name:.60} ({_short(known.get(name))} there, {_short(run.get(name))} here)"
        for name in names
    )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
