"""What commands read from files and options.

labelled           texts and labels of a file
opened             the columns of a file, or of rows drawn from it
texts_and_labels   of such a table
cells              the texts of a table, streamed
read_names         names of labels, from JSON
bound              --max-tokens, for one or several backbones
opened_cache       --cache and --no-cache
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ArgumentError, DataError, warn

if TYPE_CHECKING:
    from sonde.tables import Table


def labelled(
    path: Path, text: str, label: str, separator: str | None, names: dict[str, str]
) -> tuple[list[str], list[Any]]:
    """The texts and the labels of a file; the labels under their names."""
    return texts_and_labels(opened(path, [text, label]), text, label, separator, names)


def opened(path: Path, columns: Sequence[str], rows: int | None = None, seed: int = 0) -> "Table":
    """These columns of a file, or of so many rows drawn from it."""
    from sonde.tables import draw_table, read_table

    wanted = list(dict.fromkeys(columns))
    return read_table(path, wanted) if rows is None else draw_table(path, rows, wanted, seed)


def texts_and_labels(
    table: "Table", text: str, label: str, separator: str | None, names: dict[str, str]
) -> tuple[list[str], list[Any]]:
    """Of the rows of a table; the labels under their names."""
    from sonde.tables import label_column, text_column

    labels: list[Any] = label_column(table, label, separator)
    blank = sum(one is None for one in labels) if separator is not None else 0
    if blank:
        warn(
            f"{blank} cells of the column {label!r} are blank: their labels count as unknown. Where a text has none of "
            f"the labels, write {separator!r} alone.",
            "blank_label_cells",
            blank,
        )
    return text_column(table, text), [_rename(value, names) for value in labels] if names else labels


def _rename(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_rename(one, names) for one in value]
    if value is None:
        return None
    if str(value) not in names:
        raise DataError(f"The label {value!r} has no name in --label-names; it names {', '.join(list(names)[:12])}.")
    return names[str(value)]


def cells(source: Path, text: str) -> Iterator[str]:
    """The texts of a file, streamed."""
    from sonde.tables import iter_tables, text_column

    for table in iter_tables(source, columns=[text]):
        yield from text_column(table, text)


def read_names(path: Path | None) -> dict[str, str]:
    """A JSON list of names, an object label -> name, or an object with such a list under `label_names`."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--label-names {path} cannot be read: {error}.") from error
    content = content.get("label_names", content) if isinstance(content, dict) else content
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    names = {str(label): str(name) for label, name in pairs}
    if not names or len(set(names.values())) < len(names):
        raise DataError(f"--label-names {path} must hold distinct names: a JSON list, or an object from label to name.")
    return names


def bound(max_tokens: list[int] | None) -> int | tuple[int, ...] | None:
    """One number for all backbones, or one for each."""
    return None if not max_tokens else max_tokens[0] if len(max_tokens) == 1 else tuple(max_tokens)


def opened_cache(cache: Path | None, no_cache: bool) -> Any:
    """Where activations are kept: nowhere, a folder, or the shared cache."""
    if cache and no_cache:
        raise ArgumentError("--cache and --no-cache contradict each other; give one.")
    return None if no_cache else cache or "auto"
