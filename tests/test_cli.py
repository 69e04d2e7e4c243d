"""The command line: every command and option, what goes to which stream, exit codes, widths."""

import csv
import errno
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from samples import Run, worded

import sonde
from sonde.tables import read_table, write_table

TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(45, seed=1)
BERT = str(tiny.build("bert"))
LINEAR = ("--recipe", "linear", "--backbone", BERT, "--dtype", "float32", "--no-cache")
EXACT = ("--dtype", "float32", "--no-cache")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv, test.csv, new.csv (no labels) and a model trained on the first."""
    folder = tmp_path_factory.mktemp("files")
    write_table(folder / "train.csv", {"text": TEXTS, "label": LABELS})
    write_table(folder / "test.csv", {"text": NEW_TEXTS, "label": NEW_LABELS})
    write_table(folder / "new.csv", {"id": list(range(45)), "text": NEW_TEXTS})
    sonde.TextClassifier("linear", (BERT,), dtype="float32", cache=None).fit(TEXTS, LABELS).save(folder / "model")
    return folder


def narrow(text: str) -> bool:
    return all(len(line) <= 100 for line in text.splitlines())


# --------------------------------------------------------------------------------------------------------- fit


def test_fit_saves_a_model_and_says_what_it_did(files: Path, tmp_path: Path, run: Run) -> None:
    done = run("fit", files / "train.csv", "--out", tmp_path / "model", *LINEAR)
    assert done.code == 0
    assert "out-of-fold accuracy" in done.out and "linear" in done.out and narrow(done.out)
    assert "reading" in done.err and "90/90" in done.err and "rows/s" in done.err
    again = sonde.load(tmp_path / "model", cache=None)
    expected = sonde.load(files / "model", cache=None).predict_proba(NEW_TEXTS)
    np.testing.assert_array_equal(again.predict_proba(NEW_TEXTS), expected)


def test_fit_json_is_one_object(files: Path, tmp_path: Path, run: Run) -> None:
    done = run("fit", files / "train.csv", "--out", tmp_path / "model", *LINEAR, "--json")
    content = done.json
    assert content["model"] == str(tmp_path / "model") and content["recipe"] == "linear" and content["rows"] == 90
    assert content["classes"] == 3 and content["warnings"] == {}
    assert content["out_of_fold"]["accuracy"] > 0.5 and content["seconds"].keys() == {"reading", "training"}
    assert "90/90" in done.err


def test_fit_takes_every_option(files: Path, tmp_path: Path, run: Run) -> None:
    table = read_table(files / "train.csv")
    numbers = [str(sorted(set(LABELS)).index(str(label))) for label in table.columns["label"]]
    write_table(tmp_path / "train.tsv.gz", {"words": table.columns["text"], "kind": numbers})
    held = [str(sorted(set(LABELS)).index(label)) for label in NEW_LABELS]
    write_table(tmp_path / "held.jsonl", {"words": NEW_TEXTS, "kind": held})
    (tmp_path / "names.json").write_text(json.dumps({"label_names": ["Post", "Rail", "Weather"]}))
    done = run(
        *("fit", tmp_path / "train.tsv.gz", "--out", tmp_path / "model", "--text", "words", "--label", "kind"),
        *("--label-names", tmp_path / "names.json", "--validation", tmp_path / "held.jsonl", "--recipe", "linear"),
        *("--backbone", BERT, "--backbone", tiny.build("electra"), "--max-tokens", 32, "--long-text", "head_tail"),
        *("--class-weight", "balanced", "--metric", "macro_f1", "--seed", 7, "--dtype", "float32", "--device", "cpu"),
        *("--cache", tmp_path / "cache", "--json"),
    )
    content = done.json
    assert content["recipe"] == "linear" and content["out_of_fold"]["rows"] == 45
    assert (tmp_path / "cache" / "sonde-store.json").is_file()
    classifier = sonde.load(tmp_path / "model", cache=None)
    assert classifier.classes_.tolist() == ["Post", "Rail", "Weather"]
    assert (classifier.max_tokens, classifier.long_text, classifier.metric) == (32, "head_tail", "macro_f1")
    assert [about["dtype"] for about in classifier.backbones_.values()] == ["float32", "float32"]


def test_fit_options_arrive_at_the_classifier(
    files: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    plain = sonde.TextClassifier.fit

    def fit(self: sonde.TextClassifier, *arguments: Any, **more: Any) -> sonde.TextClassifier:
        seen.update(self.get_params())
        return plain(self, *arguments, **more)

    monkeypatch.setattr(sonde.TextClassifier, "fit", fit)
    options = ("--class-weight", "balanced", "--seed", 7, "--metric", "macro_f1", "--device", "cpu", "--no-cache")
    assert run("fit", files / "train.csv", "--out", tmp_path / "m", "--recipe", "lexical", *options).code == 0
    stated = {"recipe": "lexical", "class_weight": "balanced", "random_state": 7, "metric": "macro_f1", "device": "cpu"}
    assert stated.items() <= seen.items() and seen["cache"] is None and seen["dtype"] == "auto"
    assert seen["backbones"] == ("sentence-transformers/all-MiniLM-L6-v2",) and seen["paper"] is False


def test_fit_holds_out_the_rows_of_a_group_together(files: Path, tmp_path: Path, run: Run) -> None:
    names = [f"author{row // 6}" for row in range(90)]
    texts = [f"{name} writes {row}" for row, name in enumerate(names)]
    write_table(tmp_path / "t.csv", {"text": texts, "label": [row // 6 % 2 for row in range(90)], "author": names})
    fit = ("fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--recipe", "lexical", "--json")
    easy, hard = (run(*fit, *more).json["out_of_fold"]["accuracy"] for more in ((), ("--group", "author")))
    assert easy > 0.9 > 0.7 > hard
    refused = run(*fit, "--group", "writer")
    assert refused.code == 2 and "no column 'writer'" in refused.err


@pytest.mark.slow
def test_fit_in_the_setting_of_the_paper(files: Path, tmp_path: Path, run: Run) -> None:
    options = ("--recipe", "llmembed-1", *LINEAR[2:], "--paper", "--json")
    assert run("fit", files / "train.csv", "--out", tmp_path / "m", *options).json["paper"] is True
    refused = run("fit", files / "train.csv", "--out", tmp_path / "m", *LINEAR, "--paper")
    assert refused.code == 2 and "The recipe 'linear' has no paper setting" in refused.err


def test_several_labels_in_a_cell(files: Path, tmp_path: Path, run: Run) -> None:
    def cells(texts: list[str], labels: list[str]) -> list[str]:
        return [f"{label}; late" if "late" in text else label for text, label in zip(texts, labels, strict=True)]

    write_table(tmp_path / "train.csv", {"text": TEXTS, "label": cells(TEXTS, LABELS)})
    write_table(tmp_path / "test.csv", {"text": NEW_TEXTS, "label": cells(NEW_TEXTS, NEW_LABELS)})
    separated = ("--label-separator", ";")
    run("fit", tmp_path / "train.csv", "--out", tmp_path / "m", *LINEAR, *separated, "--json").json  # noqa: B018
    report = run("evaluate", tmp_path / "m", tmp_path / "test.csv", *separated, *EXACT, "--json").json
    assert {"micro_f1", "subset_accuracy", "mean_average_precision"} <= report.keys()
    assert [row["label"] for row in report["per_class"]] == ["late", "post", "rail", "weather"]
    assert run("predict", tmp_path / "m", files / "new.csv", "--out", tmp_path / "out.jsonl", *EXACT).code == 0
    predicted = read_table(tmp_path / "out.jsonl").columns["label"]
    assert all(isinstance(row, list) for row in predicted) and any("late" in row for row in predicted)  # type: ignore[operator]


def test_fit_refuses_a_foreign_folder_before_it_reads(files: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = run("fit", files / "train.csv", "--out", tmp_path, *LINEAR)
    assert done.code == 2 and "exists and is not a saved model; nothing was written" in done.err
    assert "reading" not in done.err and [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ----------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_the_figures(files: Path, run: Run) -> None:
    done = run("evaluate", files / "model", files / "test.csv", *EXACT)
    assert done.code == 0 and narrow(done.out)
    classifier = sonde.load(files / "model", cache=None)
    assert f"{classifier.score(NEW_TEXTS, NEW_LABELS):.4f}" in done.out
    assert all(name in done.out for name in ("accuracy", "macro_f1", "log_loss", "ece_95", "truncated_rows", "weather"))
    assert "from probability" in done.out and "aurc" in done.out


def test_evaluate_json_has_the_keys_of_the_contract(files: Path, run: Run) -> None:
    content = run("evaluate", files / "model", files / "test.csv", *EXACT, "--json").json
    keys = {"accuracy", "macro_f1", "log_loss", "ece", "ece_95", "n", "truncated_rows", "mean_depth"} | {
        "per_class",
        "warnings",
    }
    ranked = {"mean_average_precision", "roc_auc"}
    assert content.keys() == keys | ranked | {"aurc", "risk_coverage"} and content["n"] == 45
    assert content["risk_coverage"][0].keys() == {"coverage", "error", "threshold"}
    own = {"label", "precision", "recall", "f1", "support", "average_precision", "roc_auc"}
    assert content["per_class"][0].keys() == own
    classifier = sonde.load(files / "model", cache=None)
    assert content["accuracy"] == classifier.score(NEW_TEXTS, NEW_LABELS) > 0.5


def test_evaluate_finds_a_moved_backbone(files: Path, tmp_path: Path, run: Run) -> None:
    moved = shutil.copytree(BERT, tmp_path / "moved")
    expected = run("evaluate", files / "model", files / "test.csv", *EXACT, "--json").json
    options = ("--backbone", moved, *EXACT, "--json")
    assert run("evaluate", files / "model", files / "test.csv", *options).json == expected
    assert run("predict", files / "model", files / "new.csv", "--out", tmp_path / "o.csv", *options).code == 0
    other = run("evaluate", files / "model", files / "test.csv", "--backbone", tiny.build("electra"), *EXACT)
    assert other.code == 2 and "is not the backbone that the model was trained on" in other.err


def test_evaluate_takes_columns_and_other_formats(files: Path, tmp_path: Path, run: Run) -> None:
    expected = run("evaluate", files / "model", files / "test.csv", *EXACT, "--json").json
    for name in ("t.tsv", "t.jsonl", "t.jsonl.gz", "t.parquet", "t.csv.gz"):
        write_table(tmp_path / name, {"a": NEW_TEXTS, "b": NEW_LABELS})
        columns = ("--text", "a", "--label", "b")
        assert run("evaluate", files / "model", tmp_path / name, *columns, *EXACT, "--json").json == expected


# ------------------------------------------------------------------------------------------------------ predict


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.jsonl", "out.csv.gz", "out.parquet"])
def test_predict_keeps_the_columns_and_adds_two(name: str, files: Path, tmp_path: Path, run: Run) -> None:
    done = run("predict", files / "model", files / "new.csv", "--out", tmp_path / name, *EXACT, "--json")
    classifier = sonde.load(files / "model", cache=None)
    expected = classifier.predict(NEW_TEXTS).tolist()
    assert done.json["rows"] == 45 and sum(done.json["labels"].values()) == 45
    table = read_table(tmp_path / name)
    assert table.names == ["id", "text", "label", "probability"]
    assert table.columns["text"] == NEW_TEXTS and [int(str(i)) for i in table.columns["id"]] == list(range(45))
    assert table.columns["label"] == expected
    found = np.array([float(str(p)) for p in table.columns["probability"]])
    np.testing.assert_allclose(found, classifier.predict_proba(NEW_TEXTS).max(axis=1), atol=1e-6)


def test_predict_keeps_columns_of_the_same_name(files: Path, tmp_path: Path, run: Run) -> None:
    taken = {"label": ["mine"] * 45, "text": NEW_TEXTS, "probability": ["p"] * 45, "predicted_label": ["old"] * 45}
    write_table(tmp_path / "in.csv", taken)
    assert run("predict", files / "model", tmp_path / "in.csv", "--out", tmp_path / "out.csv", *EXACT).code == 0
    table = read_table(tmp_path / "out.csv")
    added = ["predicted_predicted_label", "predicted_probability"]
    assert table.names == ["label", "text", "probability", "predicted_label", *added]
    assert {name: table.columns[name] for name in taken} == taken
    assert set(table.columns["predicted_predicted_label"]) == {"post", "rail", "weather"}
    write_table(tmp_path / "plain.csv", {"text": NEW_TEXTS, "label": ["mine"] * 45})
    run("predict", files / "model", tmp_path / "plain.csv", "--out", tmp_path / "plain.out.csv", *EXACT)
    assert read_table(tmp_path / "plain.out.csv").names == ["text", "label", "predicted_label", "probability"]


def test_predict_over_its_own_input_and_with_odd_cells(files: Path, tmp_path: Path, run: Run) -> None:
    odd = ['with "quotes"', "with, comma", "with\nline break", " spaces ", "", "=1+1", "é\u2028🎉"] + [""] * 38
    write_table(tmp_path / "in.csv", {"note": odd, "text": NEW_TEXTS})
    assert run("predict", files / "model", tmp_path / "in.csv", "--out", tmp_path / "in.csv", *EXACT).code == 0
    with (tmp_path / "in.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == odd and len({row["label"] for row in rows}) == 3


def test_predict_keeps_the_types_of_parquet(files: Path, tmp_path: Path, run: Run) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wide = pa.table({"n": pa.array(range(45), pa.int16()), "text": NEW_TEXTS, "when": pa.array([0] * 45, pa.date32())})
    pq.write_table(wide, tmp_path / "in.parquet")
    assert run("predict", files / "model", tmp_path / "in.parquet", "--out", tmp_path / "o.parquet", *EXACT).code == 0
    back = pq.read_table(tmp_path / "o.parquet")
    assert back.select(["n", "text", "when"]).equals(wide) and back.column_names[3:] == ["label", "probability"]


def test_predict_reads_long_files_in_stretches(files: Path, tmp_path: Path, run: Run) -> None:
    rows = 8192 + 7
    write_table(tmp_path / "long.csv", {"text": [NEW_TEXTS[i % 45] for i in range(rows)]})
    options = ("--out", tmp_path / "out.csv", *EXACT, "--json")
    done = run("predict", files / "model", tmp_path / "long.csv", *options)
    assert done.json["rows"] == rows
    assert done.err.count("reading") == 1 and f"{rows}/{rows}" in done.err
    labels = read_table(tmp_path / "out.csv").columns["label"]
    assert labels == [labels[i % 45] for i in range(rows)]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_predict_leaves_unsure_labels_empty(name: str, files: Path, tmp_path: Path, run: Run) -> None:
    done = run(
        "predict",
        files / "model",
        files / "new.csv",
        "--out",
        tmp_path / name,
        "--abstain-below",
        0.6,
        *EXACT,
        "--json",
    )
    content, columns = done.json, read_table(tmp_path / name).columns
    sure = [float(str(value)) >= 0.6 for value in columns["probability"]]
    known = sonde.load(files / "model", cache=None, dtype="float32").predict(NEW_TEXTS)
    empty = "" if name == "out.csv" else None
    expected = [label if kept else empty for label, kept in zip(known.tolist(), sure, strict=True)]
    assert [label or empty for label in columns["label"]] == expected
    assert content["rows"] == 45 and content["threshold"] == 0.6
    assert 0 < content["abstained"] == sure.count(False) < 45
    assert sum(content["labels"].values()) == 45 - content["abstained"]


def test_predict_abstains_to_keep_a_target_error(files: Path, tmp_path: Path, run: Run) -> None:
    out = ("--out", tmp_path / "out.csv", *EXACT)
    done = run("predict", files / "model", files / "new.csv", *out, "--target-error", 0.01, "--json")
    assert done.json["abstained"] == 45 and done.json["threshold"] is None and done.json["labels"] == {}
    assert done.json["warnings"] == {"target_error_not_reached": 1}
    assert "to keep the error at or below 0.01: nothing is answered" in done.err
    done = run("predict", files / "model", files / "new.csv", *out, "--target-error", 0.01)
    assert "none: no text is sure enough" in done.out and "threshold" not in done.out
    done = run("predict", files / "model", files / "new.csv", *out, "--target-error", 0.7)
    assert done.code == 0 and "abstained" in done.out and "threshold" in done.out
    done = run("predict", files / "model", files / "new.csv", *out)
    assert "abstained" not in done.out


def test_fit_says_what_is_read_and_which_neurons_were_chosen(files: Path, tmp_path: Path, run: Run) -> None:
    given = ("--out", tmp_path / "stc", "--recipe", "stc-hidden", "--sample-rows", 60, "--exit-loss", 0.05, *EXACT)
    done = run("fit", files / "train.csv", *given)
    assert done.code == 0 and done.err.count("plan: ") == 2 and "plan: 60 texts, " in done.err
    shown = re.search(r"eta [\d.]+, \d+ neurons of the first \d layers; texts leave after \d\.\d\d layers", done.out)
    assert shown, done.out


def test_predict_says_what_is_wrong_with_abstaining(files: Path, tmp_path: Path, run: Run) -> None:
    several = [[label] for label in LABELS]
    sonde.TextClassifier("lexical", cache=None).fit(TEXTS, several).save(tmp_path / "several")
    for model, options, sentence in (
        (files / "model", ("--abstain-below", 0.5, "--target-error", 0.1), "Give either a threshold"),
        (files / "model", ("--abstain-below", 1.5), "(--abstain-below) is 1.5; it must lie between 0 and 1"),
        (files / "model", ("--target-error", 0), "(--target-error) is 0.0; it must lie between 0 and 1"),
        (tmp_path / "several", ("--abstain-below", 0.5), "this model is multi-label"),
    ):
        done = run("predict", model, files / "new.csv", "--out", tmp_path / "out.csv", *options, *EXACT)
        assert done.code == 2 and sentence in done.err and not (tmp_path / "out.csv").exists()


def test_nothing_is_written_when_predict_fails(files: Path, tmp_path: Path, run: Run) -> None:
    write_table(tmp_path / "in.jsonl", {"text": [*NEW_TEXTS, 7]})
    (tmp_path / "out.csv").write_text("old")
    done = run("predict", files / "model", tmp_path / "in.jsonl", "--out", tmp_path / "out.csv", *EXACT)
    assert done.code == 2 and "row 46, column 'text' holds a whole number (7) where text is due" in done.err
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.csv"]


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_predictions_go_to_a_file(name: str, files: Path, run: Run) -> None:
    done = run("predict", files / "model", files / "new.csv", "--out", name, *EXACT)
    assert done.code == 2 and done.out == ""
    assert "output goes to a file, because it is written whole or not at all and can be resumed" in done.err


# ------------------------------------------------------------------------------------ extract, inspect, recipes


def test_extract_fills_a_store_and_inspect_describes_it(files: Path, tmp_path: Path, run: Run) -> None:
    options = ("--backbone", BERT, "--dtype", "float32", "--json")
    chosen = ("--site", "hidden.-2:", "--site", "ffn.1", "--site", "sentence", "--pooling", "mean", "--pooling", "max")
    done = run("extract", files / "train.csv", "--out", tmp_path / "store", *chosen, *options)
    names = [f"0/{site}/{how}" for site in ("hidden.2", "hidden.3", "ffn.1") for how in ("mean", "max")]
    assert sorted(done.json["blocks"]) == sorted([*names, "0/sentence"])
    assert done.json["rows"] == 90 and done.json["truncated_rows"] == 0 and done.json["bytes_estimated"] > 0
    assert "MB in" in done.err  # the size is said before the work
    described = run("inspect", tmp_path / "store", "--json").json
    assert described["kind"] == "store"
    values = [block for block in described["blocks"] if block["site"] != "tokens"]
    assert {(b["site"], b["pooling"], b["rows"], b["dim"]) for b in values} >= {
        ("hidden.3", "max", 90, 32),
        ("ffn.1", "mean", 90, 48),
    }
    printed = run("inspect", tmp_path / "store")
    assert printed.code == 0 and "hidden.3" in printed.out and narrow(printed.out)
    plain = run("extract", files / "train.csv", "--out", tmp_path / "store", "--site", "hidden.3", *options[:-1])
    assert plain.code == 0 and "lost_tokens" in plain.out.replace(" ", "_") and narrow(plain.out)


def test_extract_options(files: Path, tmp_path: Path, run: Run) -> None:
    options = ("--backbone", BERT, "--dtype", "float32", "--max-tokens", 6, "--long-text", "cut", "--device", "cpu")
    write_table(tmp_path / "in.csv", {"words": TEXTS})
    done = run("extract", tmp_path / "in.csv", "--out", tmp_path / "s", "--text", "words", *options, "--json")
    assert done.json["truncated_rows"] == 90 and done.json["lost_tokens"] == 90 * 4  # eight words, four fit
    assert len(done.json["blocks"]) == 4  # hidden.* with mean


def test_inspect_describes_a_model(files: Path, run: Run) -> None:
    content = run("inspect", files / "model", "--json").json
    assert content["kind"] == "model" and content["protocol"] == 3 and content["recipe"] == "linear"
    assert content["classes"] == ["post", "rail", "weather"] and content["backbones"]["0"]["id"] == BERT
    printed = run("inspect", files / "model")
    assert printed.code == 0 and narrow(printed.out) and printed.err == ""
    assert "post, rail, weather" in printed.out and "learner/coefficients" in printed.out and "(32, 3)" in printed.out


def test_recipes_lists_all(run: Run) -> None:
    from sonde.learn.recipes import RECIPES

    content = run("recipes", "--json").json
    assert content.keys() == {"recipes", "warnings"} and list(content["recipes"]) == list(RECIPES)
    assert content["recipes"]["linear"].keys() == {"title", "backbones", "source", "paper_setting"}
    assert content["recipes"]["llmembed"]["title"] == "the same as llmembed-15"
    printed = run("recipes")
    assert printed.code == 0 and printed.err == "" and narrow(printed.out)
    assert all(any(line.startswith(f"{name} ") for line in printed.out.splitlines()) for name in RECIPES)


def test_bench_says_which_benchmarks_there_are(tmp_path: Path, run: Run) -> None:
    done = run("bench", "speed", "--data", tmp_path)
    assert done.code == 2 and "The benchmark 'speed' is unknown; it must be one of: " in done.err


# -------------------------------------------------------------------------------------------- streams and codes


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out) == (0, f"{sonde.__version__}\n")


def test_no_command_shows_the_help(run: Run) -> None:
    done = run()
    assert done.code == 2 and "Usage:" in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (
            ["train"],
            ["No such command 'train'", "fit, evaluate, report, predict, explain, compare, serve, export, extract"],
        ),
        (["fit"], ["Missing argument 'TRAIN'", "sonde fit --help"]),
        (["fit", "x.csv"], ["Missing option '--out'", "sonde fit --help"]),
        (["fit", "x.csv", "--out", "m", "--sed", "1"], ["No such option: --sed", "--seed"]),
        (["fit", "x.csv", "--out", "m", "--seed", "one"], ["Invalid value for '--seed'"]),
        (["fit", "x.csv", "--out", "m", "--metric", "auc"], ["Invalid value for '--metric'", "macro_f1"]),
        (["fit", "x.csv", "--out", "m", "--long-text", "x"], ["Invalid value for '--long-text'", "head_tail"]),
        (["evaluate", "m"], ["Missing argument 'TEST'"]),
        (["predict", "m", "x.csv", "more", "--out", "o"], ["unexpected extra argument", "more"]),
    ],
)
def test_misuse_is_answered_in_three_lines(arguments: list[str], sentences: list[str], run: Run) -> None:
    done = run(*arguments)
    assert done.code == 2 and done.out == ""
    assert all(sentence in done.err for sentence in sentences), done.err
    assert done.err.startswith("error: ") and len(done.err.splitlines()) <= 3


def test_contradicting_options(files: Path, tmp_path: Path, run: Run) -> None:
    done = run("evaluate", files / "model", files / "test.csv", "--cache", tmp_path, "--no-cache")
    assert done.code == 2 and done.err == "error: --cache and --no-cache contradict each other; give one.\n"


def test_errors_that_are_nobodys_input_exit_with_1(files: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from sonde.errors import ReadingError

    def broken(*_: Any, **__: Any) -> None:
        raise ReadingError("The backbone gave NaN.\nThat\nis\nodd.")

    monkeypatch.setattr("sonde.loading.load", broken)
    done = run("evaluate", files / "model", files / "test.csv")
    assert (done.code, done.out) == (1, "") and done.err == "error: The backbone gave NaN.\nThat\nis odd.\n"


def test_an_interrupt_ends_with_one_line(files: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sonde.loading.load", interrupted)
    done = run("evaluate", files / "model", files / "test.csv")
    assert (done.code, done.out, done.err) == (130, "", "error: interrupted.\n")


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied", "a/b"),
                                   OSError(errno.ENAMETOOLONG, "File name too long", "a/b")])  # fmt: skip
def test_what_a_path_is_to_blame_for_is_a_sentence(
    error: OSError, files: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("sonde.loading.load", broken)
    done = run("evaluate", files / "model", files / "test.csv")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: a/b cannot be used: {error.strerror}. Give another path.\n"


def test_a_picture_is_not_drawn_over_a_table(files: Path, run: Run) -> None:
    before = (files / "test.csv").read_bytes()
    done = run("inspect", files / "model", "--svg", files / "test.csv")
    assert done.code == 2 and "is no name for a picture; give one that ends in .svg" in done.err
    assert (files / "test.csv").read_bytes() == before


def test_control_characters_of_labels_do_not_reach_the_terminal(tmp_path: Path, run: Run) -> None:
    evil = {"post": "\x1b[31mred", "rail": "bell\x07", "weather": "x" * 150}
    write_table(tmp_path / "t.csv", {"text": TEXTS, "label": [evil[label] for label in LABELS]})
    assert run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", *LINEAR).code == 0
    for done in (run("evaluate", tmp_path / "m", tmp_path / "t.csv", *EXACT), run("inspect", tmp_path / "m")):
        assert done.code == 0 and narrow(done.out)
        assert "\x1b" not in done.out and "\x07" not in done.out and "\\x1b[31mred" in done.out


def sonde_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sonde")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["recipes"], ["--version"]])
def test_help_imports_neither_torch_nor_transformers(arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['sonde', *{arguments!r}]\n"
        "from sonde import cli\n"
        "try:\n    cli.main()\n"
        "except SystemExit as left:\n    assert not left.code, left.code\n"
        "print([name for name in ('torch', 'transformers', 'sklearn', 'scipy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_sites_of_a_backbone(run: Run) -> None:
    done = run("sites", BERT, "--dtype", "float32", "--device", "cpu")
    assert done.code == 0 and narrow(done.out)
    lines = [line.split() for line in done.out.splitlines()]
    assert ["hidden.0", "to", "hidden.3", "32", "mean", "max", "first", "last", "mean_content"] in lines
    assert any(line[:4] == ["ffn.1", "to", "ffn.3", "48"] for line in lines)
    content = run("sites", BERT, "--dtype", "float32", "--device", "cpu", "--json").json
    assert content["layers"] == {"main": 3} and content["dtype"] == "float32"
    refused = run("sites", "nowhere/at/all")
    assert refused.code == 2 and "nowhere/at/all" in refused.err


def test_the_installed_script(files: Path, tmp_path: Path) -> None:
    helped = sonde_script("--help")
    assert helped.returncode == 0 and "Usage: sonde" in helped.stdout
    assert all(
        name in helped.stdout
        for name in ("fit", "evaluate", "report", "predict", "explain", "extract", "sites", "inspect", "recipes")
    )
    missing = sonde_script("inspect", tmp_path / "nowhere")
    assert (missing.returncode, missing.stdout) == (2, "") and len(missing.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_main_job_from_the_shell(files: Path, tmp_path: Path) -> None:
    """In processes of their own: fit, evaluate, predict; JSON on standard output and nothing else."""
    fitted = sonde_script("fit", files / "train.csv", "--out", tmp_path / "m", *LINEAR, "--json")
    assert fitted.returncode == 0 and json.loads(fitted.stdout)["rows"] == 90
    report = sonde_script("evaluate", tmp_path / "m", files / "test.csv", *EXACT, "--json")
    assert report.returncode == 0 and json.loads(report.stdout)["accuracy"] > 0.5
    predicted = sonde_script("predict", tmp_path / "m", files / "new.csv", "--out", tmp_path / "o.csv.gz", *EXACT)
    assert predicted.returncode == 0 and "rows" in predicted.stdout
    with gzip.open(tmp_path / "o.csv.gz", "rt", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 45
    first = (tmp_path / "m" / "arrays.safetensors").read_bytes()
    sonde_script("fit", files / "train.csv", "--out", tmp_path / "m", *LINEAR)
    assert (tmp_path / "m" / "arrays.safetensors").read_bytes() == first  # the same command, the same bytes


def test_an_option_that_is_given_twice_is_refused(run: Run, tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"title": ["a", "b"], "body": ["c", "d"], "label": ["x", "y"]})
    done = run("fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--text", "title", "--text=body")
    assert done.code == 2 and "--text is given 2 times; it takes one value" in done.err
    assert not (tmp_path / "m").exists()


def test_blank_cells_of_many_labels_are_told_how_to_say_none(run: Run, tmp_path: Path) -> None:
    texts, labels = worded(90)
    write_table(tmp_path / "t.csv", {"text": texts, "label": ["" if label == "rail" else label for label in labels]})
    done = run(
        "fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--recipe", "lexical", "--label-separator", ";", "--json"
    )
    blank = labels.count("rail")
    assert json.loads(done.out)["rows"] == 90 - blank and "write ';' alone" in done.err
    assert json.loads(done.out)["warnings"] == {"blank_label_cells": blank, "missing_labels": blank}
    write_table(tmp_path / "t.csv", {"text": texts, "label": [";" if label == "rail" else label for label in labels]})
    done = run("evaluate", tmp_path / "m", tmp_path / "t.csv", "--label-separator", ";", "--json")
    assert json.loads(done.out)["n"] == 90
    done = run("explain", tmp_path / "m", "--text", texts[0])
    assert "against its absence" in done.out


def test_options_without_use_are_told(run: Run, tmp_path: Path) -> None:
    texts, labels = worded(90)
    write_table(tmp_path / "t.csv", {"text": texts, "label": labels})
    line = ["fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--recipe", "lexical", "--json"]
    done = run(*line, "--max-tokens", "12", "--device", "cuda", "--sample-rows", "9")
    assert "has no use for max_tokens and device and sample_rows" in done.err
    assert json.loads(done.out)["warnings"] == {"unused_options": 3}
    predicting = [
        "predict",
        tmp_path / "m",
        tmp_path / "t.csv",
        "--out",
        tmp_path / "out.csv",
        "--label-separator",
        ";",
    ]
    done = run(*predicting, "--json")
    assert "one label a text: the label separator has nothing to join" in done.err
    assert json.loads(done.out)["warnings"] == {"unused_options": 1}
    assert json.loads(run(*predicting, "--alpha", ".1", "--json").out)["warnings"] == {}


def test_fit_says_of_how_many_rows_it_drew(run: Run, tmp_path: Path) -> None:
    texts, labels = worded(90)
    write_table(tmp_path / "t.csv", {"text": texts, "label": labels})
    line = ["fit", tmp_path / "t.csv", "--out", tmp_path / "m", "--recipe", "lexical"]
    assert "60 drawn from 90" in run(*line, "--rows", "60").out
    done = json.loads(run(*line, "--rows", "60", "--json").out)
    assert (done["rows"], done["drawn_from"]) == (60, 90)
    assert "drawn_from" not in json.loads(run(*line, "--json").out)
