"""The cells of a table in a JSON file, written one by one: a run that is stopped goes on where it was.

Cells         finished cells under their keys, with what they were measured with
opened        the same, where cells of another setting must not be written over
attempted     a finished cell, or the sentence by which it was refused
write_json    the figures of a bench, at once or not at all
write_page    the Markdown beside them
table         heads and rows -> a table in Markdown
share         how many of how many
commands      what makes the cells again
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.bench import machine
from sonde.errors import ArgumentError, SondeError
from sonde.tables import write_atomically


class Cells:
    """Finished cells; those that were measured under another setting are not taken over."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path = Path(path)
        self.content: dict[str, Any] = {"setting": setting, "cells": {}}
        if self.path.is_file():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("setting") == json.loads(json.dumps(setting)):
                self.content = found

    def __contains__(self, key: str) -> bool:
        return key in self.content["cells"]

    def lacks(self, key: str) -> bool:
        """Whether a cell is to be made: absent, or refused when it was tried, for what may be mended by now."""
        return key not in self or "failed" in self.content["cells"][key]

    def put(self, key: str, cell: dict[str, Any]) -> None:
        """Keep a finished cell, with machine, versions and date."""
        self.content["machine"] = machine.describe()
        self.content["cells"][key] = cell
        write_json(self.path, self.content)


def opened(path: Path, setting: dict[str, Any]) -> Cells:
    """Cells that took hours are not lost to a changed option.

    Raises
    ------
    ArgumentError
        If the file holds cells of another setting.
    """
    try:
        cells = Cells(path, setting)
    except ValueError as error:
        raise ArgumentError(
            f"{path} holds no cells of a bench: {error}. Give --out another folder, or move it away."
        ) from error
    if cells.path.is_file() and not cells.content["cells"]:
        raise ArgumentError(
            f"{path} holds cells of other backbones, rows or settings. Give --out another folder, or delete the file."
        )
    return cells


def attempted(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives; what it refuses is a cell too, `failed`, which the next run tries again."""
    try:
        return make()
    except SondeError as error:
        return {"failed": str(error)}


def write_json(path: Path, content: Any) -> None:
    """Write the figures of a bench, at once or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        json.dump(content, file, indent=1)


def write_page(path: Path, page: str, folder: Path | None = None) -> list[Path]:
    """Write the Markdown beside the JSON file `path`, or into a folder; both paths."""
    beside = (folder or path.parent) / f"{path.stem}.md"
    beside.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(beside) as file:
        file.write(page)
    return [path, beside]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; its cells are shown as `str` shows them."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [heads, ["---"] * len(heads), *rows])


def share(some: int, whole: int) -> str:
    """`10,000 of 40,000`, or the number alone where it is all."""
    return f"{some:,} of {whole:,}" if some < whole else f"{some:,}"


def commands(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The commands that make the cells again, each once, as a block of Markdown."""
    return "\n".join(["```text", *dict.fromkeys(c["command"] for c in cells.values() if "command" in c), "```"])
