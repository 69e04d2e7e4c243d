"""What users get wrong. Errors: a sentence of three lines at most, exit code 2. Oddities: a counted warning, exit 0."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import tiny
from samples import RECIPES, Done, Run, make, worded

import sonde
from sonde.errors import BackboneError, DataError, InputError, StoreError
from sonde.tables import read_table, write_table

TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(45, seed=1)
BERT = str(tiny.build("bert"))
LINEAR = ("--recipe", "linear", "--backbone", BERT, "--dtype", "float32", "--no-cache")
EXACT = ("--dtype", "float32", "--no-cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    make().fit(TEXTS, LABELS).save(folder)
    return folder


@pytest.fixture
def train(tmp_path: Path) -> Path:
    write_table(tmp_path / "train.csv", {"text": TEXTS, "label": LABELS})
    return tmp_path / "train.csv"


def refused(done: Done, *sentences: str) -> None:
    """The command ended with exit code 2, said this, and nothing but this."""
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ") and len(done.err.splitlines()) <= 3, done.err
    assert all(sentence in done.err for sentence in sentences), done.err


# -------------------------------------------------------------------------------------------------- files: errors


def test_no_such_file(train: Path, tmp_path: Path, model: Path, run: Run) -> None:
    lost, out = tmp_path / "trian.csv", tmp_path / "m"
    sentence = f"There is no file trian.csv in {tmp_path}. Similar names there: train.csv."
    refused(run("fit", lost, "--out", out, *LINEAR), sentence)
    refused(run("fit", train, "--out", out, "--validation", lost, *LINEAR), sentence)
    refused(run("evaluate", model, lost), sentence)
    refused(run("predict", model, lost, "--out", tmp_path / "o.csv"), sentence)
    refused(run("extract", lost, "--out", tmp_path / "s", "--backbone", BERT), sentence)
    refused(run("fit", tmp_path / "no" / "x.csv", "--out", out), "There is no file", "does not exist")
    assert not out.exists()


def test_no_such_column(train: Path, tmp_path: Path, model: Path, run: Run) -> None:
    out = tmp_path / "m"
    known = "Its columns: 'text', 'label'. Choose with --text and --label (explain: --column)."
    refused(run("fit", train, "--out", out, "--text", "Texts"), "has no column 'Texts'. Did you mean 'text'?", known)
    refused(run("fit", train, "--out", out, "--label", "class"), "has no column 'class'.", known)
    refused(run("evaluate", model, train, "--label", "lable"), "has no column 'lable'. Did you mean 'label'?", known)
    refused(run("predict", model, train, "--out", tmp_path / "o.csv", "--text", "body"), "has no column 'body'", known)
    refused(run("extract", train, "--out", tmp_path / "s", "--text", "body", "--backbone", BERT), "no column 'body'")


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl"])
def test_empty_file(name: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / name).write_bytes(b"")
    sentence = "is empty; it needs column names and at least one row"
    refused(run("fit", tmp_path / name, "--out", tmp_path / "m", *LINEAR), sentence)
    if name != "train.jsonl":
        (tmp_path / name).write_text("text,label\n" if name == "train.csv" else "text\tlabel\n")
        sentence = "holds column names but no rows; it needs at least one row"
        refused(run("fit", tmp_path / name, "--out", tmp_path / "m", *LINEAR), sentence)


def test_fewer_than_two_classes(tmp_path: Path, run: Run) -> None:
    write_table(tmp_path / "t.csv", {"text": TEXTS, "label": ["spam"] * 90})
    sentence = "The 90 rows have only one class, 'spam': a classifier needs at least two classes."
    refused(run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR), sentence)
    with pytest.raises(DataError, match="only one class, True"):
        make().fit(TEXTS, [True] * 90)


@pytest.mark.parametrize(
    ("encoding", "hint"), [("latin-1", "iconv -f WINDOWS-1252 -t UTF-8"), ("utf-16", "It looks like UTF-16")]
)
def test_wrong_encoding(encoding: str, hint: str, tmp_path: Path, run: Run) -> None:
    lines = ["text,label", *(f"{text} café,{label}" for text, label in zip(TEXTS, LABELS, strict=True))]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode(encoding))
    refused(run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR), "t.csv: ", "is not UTF-8: byte 0x", hint)


def test_ragged_rows(tmp_path: Path, run: Run) -> None:
    (tmp_path / "t.csv").write_text("text,label\nfine,a\nwith, a comma,b\nfine,b\n")
    sentence = "row 2 (line 3) has 3 fields, the header has 2; put a text that contains ',' or a line break between"
    refused(run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR), sentence)
    (tmp_path / "t.csv").write_text('text,label\n"never closed,a\nfine,b\n')
    sentence = "close every double quote"
    refused(run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR), sentence)


def test_a_bare_string_where_a_list_is_due() -> None:
    with pytest.raises(
        DataError, match=r"texts is one string; give a list of strings, for example \['a single text'\]"
    ):
        make().fit("a single text", LABELS)
    with pytest.raises(DataError, match="labels is one string, 'spam'; give one label for each text"):
        make().fit(TEXTS, "spam")
    with pytest.raises(DataError, match="texts is one string"):
        make().fit(TEXTS, LABELS).predict("a single text")


def test_numbers_where_text_is_due(model: Path, tmp_path: Path, run: Run) -> None:
    write_table(tmp_path / "t.jsonl", {"text": [*TEXTS[:89], 4711], "label": LABELS})
    sentence = "row 90, column 'text' holds a whole number (4711) where text is due"
    refused(run("fit", tmp_path / "t.jsonl", "--out", tmp_path / "m", *LINEAR), sentence)
    refused(run("evaluate", model, tmp_path / "t.jsonl"), sentence)
    with pytest.raises(DataError, match=r"texts: row 2 is 4711 \(int\) where text is due"):
        make().fit(["a", 4711], ["x", "y"])


def test_mixed_label_types(tmp_path: Path, run: Run) -> None:
    write_table(tmp_path / "t.jsonl", {"text": TEXTS, "label": [1, "two", *LABELS[2:]]})
    sentence = (
        "row 1, column 'label' holds a whole number (1), row 2 holds text ('two'); the labels of a column must be"
    )
    refused(run("fit", tmp_path / "t.jsonl", "--out", tmp_path / "m", *LINEAR), sentence)
    with pytest.raises(DataError, match=r"Labels mix int \(row 1: 1\) and str \(row 2: 'two'\)"):
        make().fit(TEXTS, [1, "two", *LABELS[2:]])
    with pytest.raises(DataError, match=r"a fraction\. Labels are text, whole numbers or booleans"):
        make().fit(TEXTS, [0.5] * 90)


def test_label_names_that_do_not_fit(train: Path, tmp_path: Path, run: Run) -> None:
    names = tmp_path / "names.json"
    options = ("--out", tmp_path / "m", "--label-names", names, *LINEAR)
    refused(run("fit", train, *options), f"--label-names {names} cannot be read")
    for content, sentence in [
        ("[]", "must hold distinct names"),
        ('["a", "a"]', "must hold distinct names"),
        ("5", "must hold distinct names"),
        ("{", "cannot be read"),
        ('["a", "b"]', "The label 'post' has no name in --label-names; it names 0, 1."),
    ]:
        names.write_text(content)
        refused(run("fit", train, *options), sentence)


def test_an_unknown_format(tmp_path: Path, run: Run) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    sentence = "has the unknown extension '.xlsx'; it must be one of: .csv, .csv.gz"
    refused(run("fit", tmp_path / "t.xlsx", "--out", tmp_path / "m"), sentence)


# -------------------------------------------------------------------------------------------- models and backbones


def test_a_folder_that_is_not_a_model(train: Path, tmp_path: Path, run: Run) -> None:
    for command_line in (["evaluate", tmp_path, train], ["predict", tmp_path, train, "--out", tmp_path / "o.csv"]):
        refused(run(*command_line), f"{tmp_path} is not a saved model: it has no sonde.json. Give a folder that")
    refused(run("inspect", tmp_path), "is not a saved model: it has no sonde.json")
    refused(run("inspect", tmp_path / "gone"), "does not exist. Give a folder that `sonde fit --out`")
    refused(run("evaluate", train, train), "is not a saved model: it has no sonde.json")


def test_a_damaged_model(model: Path, train: Path, tmp_path: Path, run: Run) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    (broken / "arrays.safetensors").write_bytes(b"")
    refused(run("evaluate", broken, train), "is cut or damaged")
    (broken / "sonde.json").write_text('{"format": "sonde model", "protocol": 1}')
    refused(run("inspect", broken), "lacks the entry")


def test_unknown_recipe(train: Path, tmp_path: Path, run: Run) -> None:
    sentence = "The recipe 'liner' is unknown; it must be one of: auto, linear, lexical, stc, stc-hidden"
    refused(run("fit", train, "--out", tmp_path / "m", "--recipe", "liner"), sentence, "llmembed-15, llmembed.")


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        ("hiden.3", "Site 'hiden.3' is unknown."),
        ("hidden.9", "Site 'hidden.9' is out of range."),
        ("hidden.x", "Site 'hidden.x' is not understood"),
        ("decoder.hidden.1", "Site 'decoder.hidden.1' does not exist: this backbone has one stack."),
    ],
)
def test_unknown_site(site: str, sentence: str, train: Path, tmp_path: Path, run: Run) -> None:
    options = ("--out", tmp_path / "s", "--backbone", BERT, "--site", site, "--dtype", "float32")
    existing = "It has hidden.0 to hidden.3, ffn.1 to ffn.3, pooler (where the checkpoint holds one) and sentence."
    refused(run("extract", train, *options), sentence, existing)


def test_unknown_pooling(train: Path, tmp_path: Path, run: Run) -> None:
    options = ("--out", tmp_path / "s", "--backbone", BERT, "--pooling", "average", "--dtype", "float32")
    refused(run("extract", train, *options), "pooling 'average' is unknown; it must be one of: mean, max, first, last")
    first = ("--out", tmp_path / "s", "--backbone", tiny.build("gpt2"), "--pooling", "first", "--dtype", "float32")
    refused(run("extract", train, *first), "'first'", "constant")


def test_unknown_backbone(train: Path, tmp_path: Path, run: Run) -> None:
    options = ("--out", tmp_path / "m", "--recipe", "linear", "--backbone")
    (tmp_path / "empty").mkdir()
    for name, sentence in [
        (
            "nobody/has-such-a-model",
            "Backbone 'nobody/has-such-a-model' is neither a local folder nor in the local cache",
        ),
        (tmp_path / "gone", "is not a folder. It must be a hub id or a folder that exists."),
        (tmp_path / "empty", "is a folder without config.json. A model's folder holds config.json"),
        (train, "is not a folder"),
    ]:
        refused(run("fit", train, *options, name), sentence)
    refused(run("fit", train, *options, "nobody/has-such-a-model"), "sentence-transformers/all-MiniLM-L6-v2")


def test_unknown_device(train: Path, tmp_path: Path, run: Run) -> None:
    options = ("--out", tmp_path / "m", *LINEAR)
    refused(run("fit", train, *options, "--device", "tpu"), "Device 'tpu' does not exist on this machine; it must be")
    refused(
        run("fit", train, "--out", tmp_path / "m", *LINEAR[:4], "--dtype", "int8"), "dtype 'int8' is unknown; it must"
    )


def test_senseless_numbers(train: Path, tmp_path: Path, run: Run) -> None:
    options = ("fit", train, "--out", tmp_path / "m", *LINEAR)
    refused(run(*options, "--max-tokens", 1), "max_tokens is 1; it must be a whole number of at least 4")
    refused(run(*options, "--max-tokens", 999), "max_tokens is 999, but", "has 64 positions. Give at most 64.")
    refused(run(*options, "--seed", -1), "--seed) is -1; it must lie between 0 and 2**32 - 1")
    refused(run(*options, "--class-weight", "equal"), "class_weight 'equal' is unknown; it must be one of: balanced")
    refused(run(*options, "--label-separator", ""), "The label separator is empty")


# ---------------------------------------------------------------------------------------------------- full disks


def test_a_disk_that_cannot_hold_the_activations(
    train: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any work."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**5))
    store = tmp_path / "store"
    options = ("--backbone", BERT, "--dtype", "float32")
    done = run("extract", train, "--out", store, *options)
    refused(done, "The activations need 0.00 GB", "0.00 GB are free", "--cache DIR or SONDE_CACHE", "--no-cache")
    refused(run("fit", train, "--out", tmp_path / "m", *LINEAR[:-1], "--cache", store), "The activations need")
    assert not store.exists() and not (tmp_path / "m").exists()


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def last_lines(done: Done) -> Done:
    """Without the progress that was shown before the disk was full."""
    return Done(done.code, done.out, done.err[done.err.index("error: ") :])


def test_a_disk_that_is_full_when_the_model_is_saved(
    train: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    done = run("fit", train, "--out", tmp_path / "m", *LINEAR)
    refused(last_lines(done), "Saving to", "No space left on device. Nothing was changed; make room or give another")
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_a_disk_that_is_full_when_predictions_are_written(
    train: Path, model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    done = run("predict", model, train, "--out", tmp_path / "o.csv", *EXACT)
    refused(
        last_lines(done), "o.csv.parts/job.json could not be written: No space left", "Make room or choose another disk"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_a_disk_that_is_full_while_activations_are_written(
    train: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonde.read import store as module

    good = os.fsync
    calls = iter([good, good])  # the header is written before the disk is full
    monkeypatch.setattr(module.os, "fsync", lambda file: next(calls, full_disk)(file))
    done = run("extract", train, "--out", tmp_path / "s", "--backbone", BERT, "--dtype", "float32")
    refused(last_lines(done), "failed", "No space left on device", "run the same command again")
    monkeypatch.undo()


@pytest.mark.slow
def test_a_real_limit_on_file_sizes(train: Path, tmp_path: Path) -> None:
    """Not simulated: the kernel refuses to write more than 2 kB into one file."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    script = Path(sys.executable).with_name("sonde")
    options = ["--recipe", "lexical", "--no-cache"]
    done = subprocess.run(
        [str(script), "fit", str(train), "--out", str(tmp_path / "m"), *options],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Saving to" in done.stderr, done.stderr
    assert not (tmp_path / "m").exists()


# ------------------------------------------------------------------------------------------------------- warnings


def counted(done: Done, **counts: int) -> dict[str, Any]:
    """The command succeeded, counted this under "warnings", and said each on standard error."""
    content = done.json
    assert counts.items() <= content["warnings"].items(), content["warnings"]
    assert done.err.count("warning: ") >= len(counts)
    return content


def texts_with(odd: dict[int, str], texts: list[str] = TEXTS) -> list[str]:
    return [odd.get(row, text) for row, text in enumerate(texts)]


def three_ways(kind: str, texts: list[str], count: int, sentence: str, tmp_path: Path, model: Path, run: Run) -> None:
    """Odd texts are counted by fit, evaluate and predict."""
    write_table(tmp_path / "odd.jsonl", {"text": texts, "label": LABELS})
    fitted = run("fit", tmp_path / "odd.jsonl", "--out", tmp_path / "m", *LINEAR, "--json")
    evaluated = run("evaluate", model, tmp_path / "odd.jsonl", *EXACT, "--json")
    predicted = run("predict", model, tmp_path / "odd.jsonl", "--out", tmp_path / "o.jsonl", *EXACT, "--json")
    for done in (fitted, evaluated, predicted):
        counted(done, **{kind: count})
        assert f"warning: {count} texts {sentence}" in done.err
    assert read_table(tmp_path / "o.jsonl").rows == 90


def test_blank_texts(tmp_path: Path, model: Path, run: Run) -> None:
    texts = texts_with({3: "", 50: "  \n "})
    three_ways("blank_texts", texts, 2, "are blank; they are kept", tmp_path, model, run)


def test_a_text_of_a_megabyte(tmp_path: Path, model: Path, run: Run) -> None:
    texts = texts_with({7: "wind " * 200_001})
    three_ways("huge_texts", texts, 1, "have a million characters or more", tmp_path, model, run)


def test_nul_bytes(tmp_path: Path, model: Path, run: Run) -> None:
    texts = texts_with({7: "the\0wind", 8: "\0"})
    three_ways("nul_texts", texts, 2, "hold NUL bytes; they are read as they are", tmp_path, model, run)
    write_table(tmp_path / "odd.csv", {"text": texts, "label": LABELS})
    counted(run("evaluate", model, tmp_path / "odd.csv", *EXACT, "--json"), nul_texts=2)


def test_lone_surrogates(tmp_path: Path, model: Path, run: Run) -> None:
    texts = texts_with({7: "the \ud800 wind"})
    three_ways("surrogate_texts", texts, 1, "hold lone surrogates; these are read as U+FFFD", tmp_path, model, run)
    assert run("predict", model, tmp_path / "odd.jsonl", "--out", tmp_path / "o.csv", *EXACT).code == 0
    assert read_table(tmp_path / "o.csv").columns["text"][7] == "the \ufffd wind"


@pytest.mark.parametrize("recipe", RECIPES)
def test_odd_texts_stop_no_recipe(recipe: str) -> None:
    odd = texts_with({0: "", 1: " ", 2: "\0", 3: "\ud800", 4: "wind " * 200_001, 5: "é\u2028🎉", 6: "x" * 10**6})
    with pytest.warns(sonde.errors.SondeWarning):
        classifier = make(recipe).fit(odd, LABELS)
        probabilities = classifier.predict_proba(odd)
    assert probabilities.shape == (90, 3) and (abs(probabilities.sum(axis=1) - 1) < 1e-5).all()


def test_missing_labels(tmp_path: Path, model: Path, run: Run) -> None:
    labels = ["" if row % 30 == 0 else label for row, label in enumerate(LABELS)]
    write_table(tmp_path / "t.csv", {"text": TEXTS, "label": labels})
    fitted = run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR, "--json")
    assert counted(fitted, missing_labels=3)["rows"] == 87
    assert "warning: 3 rows have no label and are left out." in fitted.err
    assert counted(run("evaluate", model, tmp_path / "t.csv", *EXACT, "--json"), missing_labels=3)["n"] == 87
    write_table(tmp_path / "t.csv", {"text": TEXTS, "label": [""] * 90})
    done = run("evaluate", model, tmp_path / "t.csv", *EXACT)
    assert done.code == 2 and "There are no labelled rows to evaluate on" in done.err
    done = run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR)
    assert done.code == 2 and "a classifier needs at least two classes" in done.err


def test_a_class_with_fewer_rows_than_folds(tmp_path: Path, run: Run) -> None:
    labels = ["rare" if row in (4, 44, 74) else "single" if row == 5 else label for row, label in enumerate(LABELS)]
    write_table(tmp_path / "t.csv", {"text": TEXTS, "label": labels})
    done = run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR, "--json")
    content = counted(done, rare_classes=2)
    sentence = (
        "2 classes have fewer different texts than the 5 folds; they train but are not validated: 'rare', 'single'."
    )
    assert f"warning: {sentence}" in done.err
    assert content["classes"] == 5 and content["out_of_fold"]["rows"] == 86
    assert sonde.load(tmp_path / "m", cache=None).classes_.tolist() == ["post", "rail", "rare", "single", "weather"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_hardly_any_rows(recipe: str) -> None:
    """Two rows, one a class: nothing can be chosen, and that is said."""
    with pytest.warns(sonde.errors.SondeWarning, match="No rows can be held out"):
        classifier = make(recipe).fit(["the cold wind", "three letters late"], ["weather", "post"])
    unknown = {"accuracy": None, "macro_f1": None, "log_loss": None}
    assert classifier.summary_["out_of_fold"] == {"rows": 0, **unknown}
    assert set(classifier.predict(NEW_TEXTS)) <= {"weather", "post"}
    with pytest.warns(sonde.errors.SondeWarning, match="need at least 19 texts held out"):
        assert classifier.predict_set(["wind"]) == [["post", "weather"]]


def test_duplicates_with_different_labels(tmp_path: Path, run: Run) -> None:
    texts = [*TEXTS, TEXTS[0].upper(), TEXTS[1], TEXTS[2]]
    write_table(tmp_path / "t.csv", {"text": texts, "label": [*LABELS, "rail", "post", LABELS[2]]})
    done = run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR, "--json")
    assert counted(done, conflicting_labels=2)["rows"] == 93
    assert "warning: 2 texts stand more than once with different labels; all are kept." in done.err


def test_labels_never_seen(tmp_path: Path, model: Path, run: Run) -> None:
    labels = ["sail" if row < 4 else label for row, label in enumerate(NEW_LABELS)]
    write_table(tmp_path / "t.csv", {"text": NEW_TEXTS, "label": labels})
    done = run("evaluate", model, tmp_path / "t.csv", *EXACT, "--json")
    content = counted(done, unseen_labels=4)
    assert "warning: 4 rows have labels that the model never saw; counted as wrong: 'sail' (4)." in done.err
    assert content["n"] == 45 and content["accuracy"] <= 41 / 45


def test_test_texts_that_stand_in_train(tmp_path: Path, model: Path, run: Run) -> None:
    write_table(tmp_path / "t.csv", {"text": [*TEXTS[:6], *NEW_TEXTS[6:]], "label": NEW_LABELS})
    done = run("evaluate", model, tmp_path / "t.csv", *EXACT, "--json")
    counted(done, seen_in_training=6)
    assert "warning: 6 of 45 texts stand in the training or validation rows too" in done.err


def test_long_texts_are_counted(tmp_path: Path, model: Path, run: Run) -> None:
    texts = texts_with(dict.fromkeys(range(5), "the wind " * 60), NEW_TEXTS)
    write_table(tmp_path / "t.csv", {"text": texts, "label": NEW_LABELS})
    assert run("evaluate", model, tmp_path / "t.csv", *EXACT, "--json").json["truncated_rows"] == 5
    done = run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR, "--json")
    content = counted(done, truncated_rows=5)
    assert content["truncated_rows"] == 5 and content["lost_tokens"] == 5 * (120 - 62)


def test_warnings_are_printed_once_and_counted_at_the_end(tmp_path: Path, model: Path, run: Run) -> None:
    """A long file is judged in stretches; its warnings are summed and at most three of a kind are printed."""
    rows = 5 * 8192 + 1
    texts = ["" if row % 8192 < row // 8192 + 1 else NEW_TEXTS[row % 45] for row in range(rows)]
    write_table(tmp_path / "t.csv", {"text": texts})
    done = run("predict", model, tmp_path / "t.csv", "--out", tmp_path / "o.csv", *EXACT)
    blank = sum(not text for text in texts)
    assert done.code == 0 and f"warnings: blank_texts {blank}" in done.err
    assert done.err.count("warning: ") == 3


# ----------------------------------------------------------------------------------------------------------- all


def test_every_error_of_the_tree_that_users_cause_ends_with_2() -> None:
    assert {DataError, BackboneError, StoreError} <= set(InputError.__subclasses__())
    assert issubclass(InputError, ValueError)  # so that scikit-learn's error_score treats them as wrong parameters


def test_json_of_a_failed_command_is_empty(tmp_path: Path, run: Run) -> None:
    done = run("evaluate", tmp_path / "none", tmp_path / "none.csv", "--json")
    assert (done.code, done.out) == (2, "") and "does not exist" in done.err
    assert json.loads(run("recipes", "--json").out)
