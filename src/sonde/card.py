"""The card of a saved model: its README.md, for those who find the folder.

CARD        the name of the file
card        a manifest -> the page
untouched   whether nobody has edited a page since it was written

Everything comes from the manifest. What nobody but its owner can know, licences above all, is left to be filled in; a
page that was edited is known by the digest in its last line, and never written over.
"""

import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

CARD = "README.md"

NAMED_CLASSES = 50
"""Classes that the page names; the manifest has all."""

_MARKS = re.compile(r"[|`*_~\[\]\\]")
_SEAL = "\n<!-- written by sonde; sha256 of what stands above: {} -->\n"


def card(manifest: Mapping[str, Any]) -> str:
    """The page of a model, in Markdown with the header that model hubs read.

    Parameters
    ----------
    manifest : mapping
        As in `sonde.json`.
    """
    parts = [*_header(manifest), "", *_what(manifest), "", *_data(manifest), "", *_limits(), "", *_use()]
    body = "\n".join(parts) + "\n"
    return body + _SEAL.format(_digest(body))


def untouched(page: str) -> bool:
    """Whether a page is still as it was written."""
    body, _, seal = page.rstrip("\n").rpartition("\n")
    return seal == _SEAL.format(_digest(body)).strip("\n")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "backslashreplace")).hexdigest()


def _header(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield "---"
    yield "library_name: sonde"
    yield "pipeline_tag: text-classification"
    yield "tags: [sonde, text-classification]"
    ids = [about["id"] for about in manifest["backbones"].values()]
    if names := [one for one in ids if one == _name(one) and not Path(one).exists()]:  # a folder is nobody's repository
        yield f"base_model: {json.dumps(list(dict.fromkeys(names)))}"
    yield "license: other  # to be filled in: the licence under which this model is given away"
    yield "---"


def _what(manifest: Mapping[str, Any]) -> Iterator[str]:
    classes = [str(one) for one in manifest["classes"]]
    more = f" and {len(classes) - NAMED_CLASSES:,} more" if len(classes) > NAMED_CLASSES else ""
    several = ", of which a text may have any number" if manifest["multilabel"] else ""
    yield f"# Text classifier: {len(classes):,} classes, recipe {_code(manifest['recipe'])}"
    yield ""
    inside = "A small head on what frozen language models compute; their weights are not in this folder."
    how = inside if manifest["backbones"] else "It reads words and characters; no language model is needed."
    if own := _settings(manifest):
        yield f"Trained with {', '.join(own)}."
        yield ""
    yield f"Tells {', '.join(map(_code, classes[:NAMED_CLASSES]))}{more}{several}. {how}"
    if manifest["backbones"]:
        yield ""
        yield "| backbone | fingerprint | read in | most tokens | longer texts | licence |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for about in manifest["backbones"].values():
            yield (
                f"| {_code(_name(about['id']))} | {_code(about['fingerprint'][:12])} | {about['dtype']} | "
                f"{about['max_tokens']} | {about['long_text']} | to be filled in |"
            )


def _settings(manifest: Mapping[str, Any]) -> list[str]:
    """Settings of the fit that are not the default."""
    given = manifest["settings"]
    return [_code(f"{name}={given[name]}") for name, usual in _USUAL.items() if given.get(name, usual) != usual]


_USUAL = {
    "metric": "accuracy", "class_weight": None, "random_state": 0, "paper": False, "eta": None, "layers": None,
    "exit_loss": None, "sites": None, "poolings": None,
}  # fmt: skip


def _data(manifest: Mapping[str, Any]) -> Iterator[str]:
    summary = manifest["summary"]
    held = summary["out_of_fold"]
    yield "## Data and figures"
    yield ""
    yield (
        f"Trained on {summary['rows']:,} rows; {summary['truncated_rows']:,} were longer than the model reads.\n"
        "Where the texts come from, what they are about, and their licence: to be filled in."
    )
    yield ""
    yield f"Out of fold, on {held['rows']:,} of these rows, each judged by a model that had not seen it:"
    yield ""
    yield "| accuracy | macro F1 | log loss |"
    yield "| --- | --- | --- |"
    yield f"| {' | '.join('' if held.get(key) is None else f'{held[key]:.3f}' for key in _FIGURES)} |"


_FIGURES = ("accuracy", "macro_f1", "log_loss")


def _limits() -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- It knows its classes alone: a text of another kind gets one of them, with whatever probability."
    yield "- Probabilities, label sets and thresholds hold for texts like those of training; measure on rows of today."
    yield "- What the language model learned about people and their words is in its activations, and so in the answers."
    yield "- To be filled in: what it must not be used for."


def _use() -> Iterator[str]:
    yield "## Use"
    yield ""
    yield "```python"
    yield "import sonde"
    yield ""
    yield 'print(sonde.load("path/to/this/folder").predict(["a text"]))'
    yield "```"
    yield ""
    yield "`sonde evaluate`, `sonde report` and `sonde explain` say how good it is on other rows, and why."


def _name(backbone: str) -> str:
    """A hub id as it is; of a folder the last part, because others have other folders."""
    path = PurePath(backbone)
    return path.name if path.is_absolute() or backbone.startswith(("~", ".")) or "\\" in backbone else backbone


def _code(text: str) -> str:
    """Inline code that no label can break out of: what Markdown and HTML read as their own stands as entities."""
    shown = html.escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), quote=False)
    return f"<code>{_MARKS.sub(lambda found: f'&#{ord(found[0])};', shown)}</code>"
