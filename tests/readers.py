"""Every format that sonde reads, as a function from bytes: it returns, or raises a sentence, and nothing else.

READERS   name -> Reader
Reader    sound files, and how one that was changed is read
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

import sonde
from sonde import TextClassifier, saving
from sonde.baselines.answers import AnswerFile
from sonde.baselines.generation import Answer
from sonde.baselines.parsing import LabelReader
from sonde.baselines.resuming import State, States
from sonde.baselines.templates import read_template
from sonde.card import untouched
from sonde.cli.files import read_names
from sonde.errors import SondeError, SondeWarning
from sonde.explanation import map_layers
from sonde.read.checkpoint import lacking, read_config, read_sentence, refuse_giants
from sonde.read.sites import MAIN, Site
from sonde.read.store import Store, hash_texts
from sonde.show.terminal import visible
from sonde.tables import iter_tables, label_column, text_column, write_table

TEXTS = [f"{word} {row} of the {kind}" for row in range(8) for word, kind in (("good", "sea"), ("bad", "land"))]
LABELS = ["sea", "land"] * 8
ABOUT = {"backbone": "b", "fingerprint": "f", "site": "hidden.1", "pooling": "mean", "dtype": "float32"}
LAST = Site(MAIN, "hidden", 3)


@dataclass(frozen=True)
class Reader:
    """One format."""

    sound: Callable[[Path], bytes]
    """Writes sound files into a folder and returns the bytes that are changed."""
    read: Callable[[Path, bytes], object]
    """Puts changed bytes there and reads them."""

    def survives(self, folder: Path, content: bytes) -> str:
        """Read changed bytes: "" if they are taken, else the sentence that refuses them."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.read(folder, content)
        except SondeError as error:
            said = str(error)
            assert len(visible(said)) < 2000, f"a sentence of {len(said)} characters"
            return said or "without a word"
        return ""


def _table(name: str) -> Reader:
    def sound(folder: Path) -> bytes:
        write_table(folder / name, {"text": TEXTS, "label": LABELS, "more": list(range(16))})
        return (folder / name).read_bytes()

    def read(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        for table in iter_tables(folder / name, rows=5):
            for column in table.columns:
                for sort in (text_column, label_column):
                    try:
                        sort(table, column)
                    except SondeError:
                        continue

    return Reader(sound, read)


@cache
def _model(recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        classifier = TextClassifier(recipe, cache=None).fit(TEXTS, LABELS)
    return classifier.manifest(), classifier.arrays()


def _saved(file: str, trusted: bool = False) -> Reader:
    """A file of a saved model; trusted = whoever changed it has renewed the checksums, as a stranger can."""

    def sound(folder: Path) -> bytes:
        saving.save(folder / "m", *_model("lexical"))
        return (folder / "m" / file).read_bytes()

    def read(folder: Path, content: bytes) -> None:
        (folder / "m" / file).write_bytes(content)
        if trusted:
            _renew(folder / "m")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                sonde.load(folder / "m", cache=None).predict(["good sea"])
            finally:
                map_layers(folder / "m")

    return Reader(sound, read)


def _renew(folder: Path) -> None:
    try:
        given = json.loads((folder / saving.MANIFEST).read_bytes())
        arrays = hashlib.sha256((folder / saving.ARRAYS).read_bytes()).hexdigest()
        given["sha256"] = {saving.ARRAYS: arrays, saving.MANIFEST: saving.digest(given)}
        (folder / saving.MANIFEST).write_text(json.dumps(given))
    except (ValueError, TypeError, AttributeError, RecursionError):  # no manifest any more
        return


def _store(file: str) -> Reader:
    def sound(folder: Path) -> bytes:
        store = Store(folder / "s")
        store.write_header()
        store.column(ABOUT).append(hash_texts(TEXTS), torch.arange(48.0).reshape(16, 3))
        return _only(folder, file).read_bytes()

    def read(folder: Path, content: bytes) -> None:
        if not list(folder.glob(f"s/**/{file}")):  # the last one was damaged, and dropped
            shutil.rmtree(folder / "s", ignore_errors=True)
            sound(folder)
        _only(folder, file).write_bytes(content)
        store = Store(folder / "s")
        column = store.column(ABOUT, 3)
        found = column.find(hash_texts(TEXTS))
        if found.any():
            values = column.read(hash_texts(TEXTS)[found])
            assert values.isfinite().all() and values.shape[1] == 3 and values.dtype == torch.float32
        store.describe()

    return Reader(sound, read)


def _only(folder: Path, file: str) -> Path:
    (path,) = folder.glob(f"s/**/{file}")
    return path


def _answers(folder: Path) -> bytes:
    file = AnswerFile(folder / "a.jsonl", "model")
    file.keep("one", Answer("sea", 3, 1))
    file.keep("two", Answer("land", 3, 1, logprobs=(-0.5,), ends=(4,)))
    return (folder / "a.jsonl").read_bytes()


def _read_answers(folder: Path, content: bytes) -> None:
    (folder / "a.jsonl").write_bytes(content)
    file = AnswerFile(folder / "a.jsonl", "model")
    for key in ("one", "two"):
        file.find(key)
    LabelReader(["sea", "land"], "Label:", "Text:").read(content.decode("utf-8", "replace"))


def _run(folder: Path) -> bytes:
    States(folder / "run", {"seed": 1}).save(State({"epoch": 1}, {"w": torch.ones(3)}))
    return (folder / "run" / "state.safetensors").read_bytes()


def _read_run(folder: Path, content: bytes) -> None:
    (folder / "run" / "state.safetensors").write_bytes(content)
    States(folder / "run", {"seed": 1}).load()


def _run_json(folder: Path) -> bytes:
    _run(folder)
    return (folder / "run" / "run.json").read_bytes()


def _read_run_json(folder: Path, content: bytes) -> None:
    (folder / "run" / "run.json").write_bytes(content)
    States(folder / "run", {"seed": 1})


def _template(folder: Path) -> bytes:
    return read_template("io").content.encode()


def _read_template(folder: Path, content: bytes) -> None:
    (folder / "io.txt").write_bytes(content)
    values = dict.fromkeys(("task", "labels", "demonstrations", "text"), "{text}")
    template = read_template("io", folder)
    template.fill(**values)
    template.header("text")


def _names(folder: Path) -> bytes:
    return json.dumps({"label_names": {"0": "sea", "1": "land"}}).encode()


def _read_names(folder: Path, content: bytes) -> None:
    (folder / "names.json").write_bytes(content)
    read_names(folder / "names.json")


def _checkpoint(name: str) -> Reader:
    contents = {
        "config.json": {
            "model_type": "bert",
            "vocab_size": 30,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "a": {"b": 1},
        },
        "modules.json": [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}],
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8},
        "model.safetensors.index.json": {"weight_map": {"w": "model-1.safetensors"}},
    }

    def sound(folder: Path) -> bytes:
        (folder / "1_Pooling").mkdir()
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content))
        (folder / "vocab.txt").write_text("sea\nland\n")
        (folder / "model-1.safetensors").write_bytes(save_tensors({"w": torch.ones(30, 8)}))
        return (folder / name).read_bytes()

    def read(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        if not lacking(folder):
            refuse_giants(folder, read_config(folder))
        read_sentence(folder, LAST)

    return Reader(sound, read)


def _card(folder: Path) -> bytes:
    saving.save(folder / "m", *_model("lexical"))
    return (folder / "m" / "README.md").read_bytes()


def _read_card(folder: Path, content: bytes) -> None:
    (folder / "m" / "README.md").write_bytes(content)
    untouched(content.decode("utf-8", "replace"))
    saving.check_target(folder / "m")


READERS: dict[str, Reader] = {
    **{name: _table(f"t.{name}") for name in ("csv", "tsv", "jsonl", "csv.gz", "parquet")},
    "manifest": _saved(saving.MANIFEST),
    "manifest, checksum renewed": _saved(saving.MANIFEST, trusted=True),
    "arrays": _saved(saving.ARRAYS),
    "arrays, checksum renewed": _saved(saving.ARRAYS, trusted=True),
    "shard": _store("*.safetensors"),
    "block.json": _store("block.json"),
    "store header": _store("sonde-store.json"),
    "answers": Reader(_answers, _read_answers),
    "state": Reader(_run, _read_run),
    "run.json": Reader(_run_json, _read_run_json),
    "template": Reader(_template, _read_template),
    "label names": Reader(_names, _read_names),
    **{
        name: _checkpoint(name)
        for name in ("config.json", "modules.json", "1_Pooling/config.json", "model.safetensors.index.json")
    },
    "card": Reader(_card, _read_card),
}
