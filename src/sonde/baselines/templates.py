"""Templates: prompts as text files that a user can read, copy and replace.

Template        a file with placeholders such as {text}
read_template   one of the package's files, or a file of the same name in the user's folder
PLACEHOLDERS    what each file must hold

A placeholder is a name in braces; all other braces stay as they are. What is filled in is not searched for any.
"""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sonde.errors import ArgumentError, choose

PLACEHOLDERS = {
    "io": ("task", "labels", "demonstrations", "text"),
    "io_demonstration": ("text", "label"),
    "carp": ("task", "labels", "demonstrations", "text"),
    "carp_demonstration": ("text", "clues", "reasoning", "label"),
    "clues": ("task", "labels", "text", "label"),
    "reasoning": ("task", "labels", "text", "clues", "label"),
}
_NAMES = sorted({name for names in PLACEHOLDERS.values() for name in names})
_PLACEHOLDER = re.compile(rf"\{{({'|'.join(_NAMES)})\}}")


@dataclass(frozen=True)
class Template:
    """A prompt with places to fill."""

    name: str
    """Name of the file, without `.txt`."""
    content: str
    """Its text, without white space at the end: a model goes on from the last word."""

    def fill(self, **values: str) -> str:
        """The prompt; every placeholder must be given a value."""
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.content)

    def header(self, placeholder: str) -> str:
        """What stands before a placeholder on its line, such as "Label:"; empty if nothing does."""
        found = re.search(rf"^(.*)\{{{placeholder}\}}", self.content, re.MULTILINE)
        return found[1].rpartition("}")[2].strip() if found else ""


def read_template(name: str, folder: str | Path | None = None) -> Template:
    """Read `<name>.txt` from the user's folder if it is there, else from the package.

    Raises
    ------
    ArgumentError
        If the folder does not exist, the file is not UTF-8, or it lacks a placeholder.
    """
    choose("Prompt", name, PLACEHOLDERS)
    path = _find(name, folder)
    try:
        content = (path or files("sonde.baselines") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"The prompt {path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    held = set(_PLACEHOLDER.findall(content))
    lacking = [f"{{{one}}}" for one in PLACEHOLDERS[name] if one not in held]
    foreign = sorted(f"{{{one}}}" for one in held - set(PLACEHOLDERS[name]))
    if lacking or foreign:
        wrong = f"lacks {', '.join(lacking)}" if lacking else f"holds {', '.join(foreign)}, which nothing can fill"
        every = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS[name])
        raise ArgumentError(f"The prompt {path} {wrong}. Its placeholders are: {every}.")
    return Template(name, content.rstrip())


def _find(name: str, folder: str | Path | None) -> Path | None:
    if folder is None:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ArgumentError(f"prompts is {str(folder)!r}, which is no folder; it may hold any of: {_listed()}.")
    if not any((path / f"{one}.txt").is_file() for one in PLACEHOLDERS):
        raise ArgumentError(f"The folder of prompts {path} holds none of: {_listed()}.")
    return path / f"{name}.txt" if (path / f"{name}.txt").is_file() else None


def _listed() -> str:
    return ", ".join(f"{name}.txt" for name in PLACEHOLDERS)
