"""Predicting: a file -> a file with labels, by one process, several, or a cluster.

predict_file   label every row of a file of any length

What is done is kept in OUT.parts until all is; then OUT appears in one step. A second run goes on where one stopped.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ArgumentError, DataError, SondeWarning, warn
from sonde.progress import track
from sonde.scale.crews import done, open_crew
from sonde.scale.job import Job, identity
from sonde.scale.outcome import Failure, Outcome
from sonde.scale.parts import cut
from sonde.scale.work import Added, Predicting
from sonde.scale.workers import Workers, as_workers
from sonde.tables import TableWriter, iter_tables, write_table
from sonde.tables.columns import check_separator
from sonde.tables.table import kind_of

if TYPE_CHECKING:
    from sonde.classifier import TextClassifier


def predict_file(
    model: Path | str,
    source: Path | str,
    out: Path | str,
    *,
    text: str = "text",
    threshold: float | None = None,
    target_error: float | None = None,
    alpha: float | None = None,
    probabilities: bool = False,
    separator: str | None = None,
    backbones: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cache: str | Path | bool | None = "auto",
    workers: int | Workers = 1,
) -> dict[str, Any]:
    """Label every row of a file; its columns are kept, label and probability are added, the order stays.

    Memory does not grow with the number of rows. A row that the model cannot read has no label, and stands in
    OUT.failed.jsonl with its number and the reason.

    Parameters
    ----------
    model : path or str
        A saved model: a folder, or its id on the model hub.
    source, out : path or str
        Files, .csv, .tsv, .jsonl (.gz) or .parquet.
    text : str
        The column of texts.
    threshold, target_error : float, optional
        As in `TextClassifier.predict_or_abstain`.
    alpha : float, optional
        Adds a column `label_set`: as in `TextClassifier.predict_set`.
    probabilities : bool
        Adds a column `probability_LABEL` for every label.
    separator : str, optional
        Between labels where a cell has several (of a multi-label model, or a label set), as `sonde fit
        --label-separator` reads them: none of them is the separator alone. Without it .csv and .tsv have lists as JSON.
    backbones, dtype, device, cache
        As in `load`.
    workers : int or Workers
        Processes, each with a model of its own and its share of the cores or GPUs; or actors of a Ray cluster, all of
        whose machines find `model` and `source` under the same paths.

    Returns
    -------
    dict
        `out`, `rows`, `labels` (in how many rows each stands); with a threshold `abstained` and `threshold`; where rows
        failed, `failed_rows` and `failed`, the file that names them.

    Raises
    ------
    InputError
        The model, the file or an option is wrong.

    Warns
    -----
    SondeWarning
        failed_rows, and what predicting warns of.
    """
    from sonde import saving
    from sonde.loading import located, recall

    source, out = Path(source), Path(out)
    kind_of(out)
    seal = saving.seal(located(model))  # before it is loaded: if it changes in between, the first worker says so
    classifier = recall(model, backbones=backbones, dtype=dtype, device=device, cache=cache)
    least = None
    if threshold is not None or target_error is not None:
        least = classifier.answer_threshold(threshold=threshold, target_error=target_error)
    if alpha is not None:
        from sonde.learn.conformal import conformal_threshold

        conformal_threshold(classifier.conformal_scores_, alpha)  # judged before the texts are read
    if separator is not None:
        _check_separator(separator, classifier.classes_.tolist())
        if alpha is None and not classifier.multilabel_:
            warn("The model gives one label a text: the label separator has nothing to join.", "unused_options")
    moved = None if backbones is None else tuple(backbones)
    where, kept = resolved(model, cache)
    added = Added(least, alpha, probabilities)
    work = Predicting(where, moved, dtype, device, kept, added, seal)
    read = identity(source) if source.is_file() else {}  # before the first look: what is added later changes it
    parts = cut(source, text)
    about = {
        "input": read,
        "text": text,
        "model": _digest(classifier),
        "dtype": dtype,
        "added": repr(added),
    }
    with (
        open_crew(work, as_workers(workers)) as crew,
        Job(out, about, parts) as job,
    ):
        with track("reading", sum(part.rows for part in parts), "rows") as advance:
            advance(sum(part.rows for part in parts if part.number in job.done))
            for part, outcome in done(crew, source, text, job.left, advance):
                job.keep(part, outcome)
        if identity(source) != read:
            raise DataError(f"{source} was changed while it was read. Run again, on a file that stays as it is.")
        return _finish(job, source, out, least, added.typical(classifier), separator)


def resolved(model: Path | str, cache: Any) -> tuple[str, Any]:
    """A model and a cache as workers find them, who have a working folder of their own."""
    named = isinstance(cache, Path) or (isinstance(cache, str) and cache != "auto")
    return str(Path(model).resolve() if Path(model).exists() else model), Path(cache).resolve() if named else cache


def _digest(classifier: "TextClassifier") -> str:
    """What makes a model this model: what `save` writes, and the fingerprints of its backbones."""
    digest = hashlib.blake2b(json.dumps(classifier.manifest(), sort_keys=True).encode(), digest_size=16)
    for name, array in sorted(classifier.arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _check_separator(separator: str, labels: Sequence[Any]) -> None:
    """A label that holds the separator would be read as two."""
    check_separator(separator)
    if (inside := next((one for one in labels if separator in str(one)), None)) is not None:
        raise ArgumentError(
            f"The label separator {separator!r} stands in the label {inside!r}; give other characters, for example ';'."
        )


def _finish(
    job: Job, source: Path, out: Path, least: float | None, typical: Mapping[str, list[Any]], separator: str | None
) -> dict[str, Any]:
    """Write the output from the input and the parts, and say what is in it."""
    labels: Counter[Any] = Counter()
    failed: list[Failure] = []
    rows = unlabelled = 0
    gathered = _Cells(_told(job.outcomes(), failed), list(typical))

    def shown(cells: list[Any]) -> list[Any]:
        return cells if separator is None else [_joined(cell, separator) for cell in cells]

    with TableWriter(out, like=source) as writer:
        for table in iter_tables(source):
            names = {name: free(name, table.names) for name in typical}
            writer.typical = {names[name]: shown(cells) for name, cells in typical.items()}
            added = gathered.take(table.rows)
            rows += table.rows
            unlabelled += sum(one is None for one in added["label"])
            labels.update(str(one) for cell in added["label"] for one in _listed(cell))
            writer.write({**table.columns, **{names[name]: shown(cells) for name, cells in added.items()}})
    result: dict[str, Any] = {"out": str(out), "rows": rows, **report(failed, out)}
    if least is not None:  # a threshold that nothing reaches is none
        result |= {"abstained": unlabelled - len(failed), "threshold": least if least <= 1 else None}
    return {**result, "labels": dict(labels.most_common())}


def _listed(cell: Any) -> list[Any]:
    """The labels of a cell: of a list, none, or one."""
    return cell if isinstance(cell, list) else [] if cell is None else [cell]


def _joined(cell: Any, separator: str) -> Any:
    """A list of labels as one text; numbers, such as the probabilities of a multi-label model, stay a list."""
    if not isinstance(cell, list) or any(isinstance(one, float) for one in cell):
        return cell
    return separator.join(map(str, cell)) or separator


def report(failed: Sequence[Failure], out: Path) -> dict[str, Any]:
    """Write the rows that failed beside the output, and warn of them; a report of an earlier run goes."""
    path = out.with_name(out.name + ".failed.jsonl")
    if not failed:
        path.unlink(missing_ok=True)
        return {}
    write_table(path, {"row": [one.row for one in failed], "reason": [one.reason for one in failed]})
    warn(
        f"{len(failed)} rows could not be read and have no result, the first is row {failed[0].row:,}: see {path}.",
        "failed_rows",
        len(failed),
    )
    return {"failed_rows": len(failed), "failed": str(path)}


def _told(outcomes: Iterator[Outcome], failed: list[Failure]) -> Iterator[Outcome]:
    """Pass outcomes on, with the warnings that workers met; rows that failed are gathered."""
    for outcome in outcomes:
        repeat(outcome)
        failed += outcome.failed
        yield outcome


def repeat(outcome: Outcome) -> None:
    """Warn here of what a worker was warned of."""
    import warnings

    for sentence, code, count in outcome.warnings:
        warnings.warn(SondeWarning(sentence, code, count), stacklevel=2)


class _Cells:
    """The new columns, in stretches of another length than the parts."""

    def __init__(self, outcomes: Iterator[Outcome], names: Sequence[str]) -> None:
        self.outcomes = outcomes
        self.held: dict[str, list[Any]] = {name: [] for name in names}

    def take(self, rows: int) -> dict[str, list[Any]]:
        """The next rows."""
        while len(self.held["label"]) < rows:
            outcome = next(self.outcomes)
            for name, cells in self.held.items():
                cells += outcome.columns.get(name, [None] * outcome.rows)
        taken = {name: cells[:rows] for name, cells in self.held.items()}
        self.held = {name: cells[rows:] for name, cells in self.held.items()}
        return taken


def free(name: str, taken: Sequence[str]) -> str:
    """`name`, or `predicted_name` where the input has such a column already."""
    while name in taken:
        name = f"predicted_{name}"
    return name
