"""Datasets of Ray: texts in, labels out, as a step of one's own pipeline.

predict         a `ray.data.Dataset` -> the same with label, probability, and why there are none
write_parquet   a `ray.data.Dataset` -> a folder of Parquet files that appears when it is whole
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sonde.errors import ArgumentError, DataError, need
from sonde.scale.attempt import attempt
from sonde.scale.cluster import actors
from sonde.scale.parts import PART_ROWS
from sonde.scale.predicting import free, resolved
from sonde.scale.work import Added, Predicting
from sonde.scale.workers import Workers

if TYPE_CHECKING:
    from ray.data import Dataset


def predict(
    dataset: "Dataset",
    model: Path | str,
    *,
    text: str = "text",
    workers: int = 1,
    worker_cpus: float | None = None,
    worker_gpus: float = 0.0,
    batch_rows: int = PART_ROWS,
    threshold: float | None = None,
    backbones: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cache: str | Path | bool | None = None,
) -> "Dataset":
    """Label the rows of a data set of Ray.

    Lazy, as all steps of Ray Data: it runs when the result is read or written. Each worker is an actor with a model of
    its own; one that dies is replaced, and its rows are done again.

    Parameters
    ----------
    dataset : ray.data.Dataset
        With a column of texts, from `ray.data.read_parquet`, `read_csv`, `read_json` or anything else.
    model : path or str
        A saved model: a folder that all machines find under this path, or an id on the model hub.
    text : str
        The column of texts; a missing cell is a blank text.
    workers : int
        Actors.
    worker_cpus : float, optional
        Processors that Ray reserves for each, by default 1. Leave some for Ray's own tasks: actors that hold all of
        them can keep a reading or shuffling step waiting for ever.
    worker_gpus : float
        GPUs that Ray reserves for each; a fraction where several share one.
    batch_rows : int
        Rows that are sorted by length and read together.
    threshold : float, optional
        The label is null below this probability.
    backbones, dtype, device, cache
        As in `load`; nothing is kept in a store unless `cache` says where.

    Returns
    -------
    ray.data.Dataset
        With the columns `label`, `probability` and `reason`, which is null but for rows that could not be read. A name
        that is taken gets `predicted_` before it.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    ArgumentError
        The data set has no such column, a number is out of range, or the model is multi-label and has no threshold.
    ModelError
        There is no such model.
    """
    need("ray.data", "ray")
    from sonde import saving
    from sonde.loading import located, recall

    crew = Workers(workers, "ray", cpus=worker_cpus, gpus=worker_gpus)
    if batch_rows < 1:
        raise ArgumentError(f"batch_rows is {batch_rows}; it must be 1 or more.")
    names = dataset.columns()
    if names is not None and text not in names:
        raise ArgumentError(f"The data set has no column {text!r}; its columns: {', '.join(names)}. Choose with text=.")
    moved = None if backbones is None else tuple(backbones)
    where, kept = resolved(model, cache)
    seal = saving.seal(located(where))
    classifier = recall(where, backbones=moved, dtype=dtype, device=device, cache=kept)
    least = None if threshold is None else classifier.answer_threshold(threshold=threshold)
    work = Predicting(where, moved, dtype, device, kept, Added(least), seal)
    return dataset.map_batches(
        Labeller, batch_size=batch_rows, batch_format="pandas", fn_constructor_args=(work, text), **actors(crew, False)
    )


class Labeller:
    """One model, as an actor."""

    def __init__(self, work: Predicting, text: str) -> None:
        self.do = work.open()
        self.text = text

    def __call__(self, batch: Any) -> Any:
        """Add three columns to a pandas frame."""
        texts = [_text(cell) for cell in batch[self.text].tolist()]
        outcome = attempt(self.do, texts, 0, lambda _: None)
        reasons: list[str | None] = [None] * len(texts)
        for failure in outcome.failed:
            reasons[failure.row - 1] = failure.reason
        taken = list(batch.columns)
        unread: list[Any] = [None] * len(texts)
        added = {"label": unread, "probability": unread, **outcome.columns, "reason": reasons}
        return batch.assign(**{free(name, taken): _objects(cells) for name, cells in added.items()})


def _objects(cells: list[Any]) -> Any:
    """As they are: whole numbers among which one is missing stay whole."""
    return np.fromiter(cells, dtype=object, count=len(cells))


def _text(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or cell != cell:
        return ""
    raise DataError(f"The column of texts holds {cell!r:.60} where text is due; choose another with text=.")


def write_parquet(dataset: "Dataset", folder: Path | str) -> list[Path]:
    """Write a data set as Parquet files; the folder appears when all are written, and never in part.

    Parameters
    ----------
    dataset : ray.data.Dataset
    folder : path or str
        Must not exist; all machines must find its parent under the same path.

    Returns
    -------
    list of Path

    Raises
    ------
    DataError
        The folder exists, or its parent does not.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise DataError(f"{folder} exists; give the name of a folder that does not.")
    if not folder.parent.is_dir():
        raise DataError(f"{folder} cannot be written: the folder {folder.parent} does not exist.")
    temporary = folder.with_name(f".sonde-{secrets.token_hex(8)}.tmp")
    try:
        dataset.write_parquet(str(temporary))
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(folder.glob("*.parquet"))
