"""Words of strangers: whatever labels, texts, names and manifests hold, a terminal and a page show it as text."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import Done, Run, make, worded

from sonde import saving
from sonde.read.store import Store, hash_texts
from sonde.show import terminal
from sonde.show.terminal import visible
from sonde.tables import read_table, write_table

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
TEXTS, LABELS = worded(90)
EVIL = {
    "post": "\x1b]0;title\x07\x1b[2J\x9b31m[bold red]post[/bold red]",
    "rail": "rail\r\x08\x08safe\u202egnp\u2066\u200b\x00.",
    "weather": "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;'\"",
}
EXACT = ["--dtype", "float32", "--no-cache"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    evil = [f"{text} {EVIL[label]}" for text, label in zip(TEXTS, LABELS, strict=True)]
    write_table(tmp_path / "t.jsonl", {"text": evil, "label": [EVIL[label] for label in LABELS]})
    return tmp_path / "t.jsonl"


def harmless(done: Done, code: int = 0) -> None:
    assert done.code == code, done.err
    odd = {character for character in done.out + done.err if not character.isprintable() and character != "\n"}
    assert not odd, (odd, done.out, done.err)


def test_a_terminal_is_not_driven_by_labels_and_texts(table: Path, tmp_path: Path, run: Run) -> None:
    model, text = tmp_path / "m", "the cold wind " + EVIL["post"]
    recipe = ["--recipe", "lexical"]
    harmless(run("fit", table, "--out", model, *recipe, "--no-cache"))
    for arguments in (
        ("evaluate", model, table, *EXACT),
        ("predict", model, table, "--out", tmp_path / "out.csv", *EXACT),
        ("explain", model, "--text", text, "--dtype", "float32"),
        ("inspect", model),
        ("report", model, table, "--out", tmp_path / "r.html", *EXACT),
    ):
        done = run(*arguments)
        harmless(done)
        if arguments[0] in ("evaluate", "predict", "inspect"):
            assert "\\x1b]0;title" in done.out and "[bold red]post[/bold red]" in done.out.replace("\n", "")
    assert set(read_table(tmp_path / "out.csv").columns["predicted_label"]) <= set(EVIL.values()), "tables keep them"
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "<img src=x" not in page and "\x1b" not in page and "\u202e" not in page
    done = run("evaluate", model, table, *EXACT, "--json")
    assert done.out.isascii() and "\x1b" not in done.out


def test_a_terminal_is_not_driven_by_a_saved_model(tmp_path: Path, run: Run) -> None:
    make().fit(TEXTS, LABELS).save(tmp_path / "m")
    content = saving.manifest(tmp_path / "m")
    for evil in EVIL.values():
        shutil.rmtree(tmp_path / "evil", ignore_errors=True)
        shutil.copytree(tmp_path / "m", tmp_path / "evil")
        content["backbones"]["0"]["id"] = evil
        content["summary"]["learner"] = {"weights": {evil: 1.0}}
        content["sha256"][saving.MANIFEST] = saving.digest(content)
        (tmp_path / "evil" / saving.MANIFEST).write_text(json.dumps(content))
        harmless(run("inspect", tmp_path / "evil"))
        harmless(run("evaluate", tmp_path / "evil", tmp_path / "none.csv"), 2)


@pytest.mark.parametrize("summary", [{}, {"rows": 1}, {"rows": [], "learner": 3, "out_of_fold": {}}])
def test_a_manifest_that_no_fit_has_written_is_a_sentence(tmp_path: Path, run: Run, summary: Any) -> None:
    make("lexical").fit(TEXTS, LABELS).save(tmp_path / "m")
    content = saving.manifest(tmp_path / "m")
    content["summary"] = summary
    content["sha256"][saving.MANIFEST] = saving.digest(content)
    (tmp_path / "m" / saving.MANIFEST).write_text(json.dumps(content))
    done = run("inspect", tmp_path / "m")
    harmless(done, 2)
    assert "holds entries that sonde never writes" in done.err


def test_a_terminal_is_not_driven_by_a_store(tmp_path: Path, run: Run) -> None:
    import torch

    store = Store(tmp_path / "s")
    store.write_header()
    for number, evil in enumerate(EVIL.values()):
        about = {"backbone": evil, "site": evil, "pooling": evil, "dtype": "float32"}
        store.column(about).append(hash_texts([f"{number}"]), torch.zeros(1, 3))
    harmless(run("inspect", tmp_path / "s"))
    store.column({"backbone": "without a site"}).append(hash_texts(["4"]), torch.zeros(1, 3))
    harmless(run("inspect", tmp_path / "s"), 2)


def test_loggers_do_not_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    handler = terminal.log_lines()
    handler.handle(logging.LogRecord("sonde", logging.WARNING, "here", 1, "%s was read", (EVIL["post"],), None))
    assert capsys.readouterr().err == visible(EVIL["post"]) + " was read\n"


@pytest.mark.parametrize("name", [b"[" * 100_000, b"\xff", b"{}", b"[1, 1]", b'"x"', b"", b'{"label_names": {"a": "b"'])
def test_label_names_that_are_none_are_a_sentence(tmp_path: Path, run: Run, name: bytes) -> None:
    (tmp_path / "names.json").write_bytes(name)
    write_table(tmp_path / "t.csv", {"text": TEXTS, "label": LABELS})
    done = run(
        "fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--label-names", tmp_path / "names.json", "--no-cache"
    )
    harmless(done, 2)
    assert "--label-names" in done.err


def test_odd_labels_survive_a_saved_model_to_the_character(tmp_path: Path) -> None:
    labels = [EVIL[label] for label in LABELS]
    make("lexical").fit(TEXTS, labels).save(tmp_path / "m")
    import sonde

    again = sonde.load(tmp_path / "m", cache=None)
    assert again.classes_.tolist() == sorted(EVIL.values())
    assert np.isin(again.predict(TEXTS), again.classes_).all()
