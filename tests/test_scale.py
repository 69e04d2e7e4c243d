"""Files of any length: parts, jobs that go on, rows that fail, several processes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import oddities
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import Run, command, saved, worded

import sonde
from sonde.errors import ArgumentError, DataError, ModelError, ReadingError, SondeWarning, warn
from sonde.progress import watching
from sonde.scale import Workers, extract_file, predict_file, predicting
from sonde.scale import attempt as attempting
from sonde.scale import parts as cutting
from sonde.scale.attempt import attempt
from sonde.scale.crews import Alone, done
from sonde.scale.job import Job
from sonde.scale.outcome import Failure, Outcome
from sonde.scale.parts import Part, cut, texts_of
from sonde.scale.processes import Processes, devices_of, threads_of
from sonde.scale.work import Predicting
from sonde.tables import label_column, read_table, write_table
from sonde.tables.strays import temporary_name

TEXTS, LABELS = worded(90)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return command(monkeypatch, capsys)


model = pytest.fixture(scope="module")(saved("auto"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_table(tmp_path / "in.csv", {"id": list(map(str, range(90))), "text": TEXTS})
    return tmp_path / "in.csv"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 20 rows."""
    monkeypatch.setattr(cutting, "PART_ROWS", 20)


def nothing(_: int) -> None:
    return None


# -------------------------------------------------------------------------------------------------------------- parts


def test_a_file_is_cut_into_parts_whose_texts_come_back(file: Path, small: None) -> None:
    parts = cut(file, "text")
    assert [(part.start, part.rows) for part in parts] == [(0, 20), (20, 20), (40, 20), (60, 20), (80, 10)]
    assert [text for _, texts in texts_of(file, "text", parts) for text in texts] == TEXTS
    assert list(texts_of(file, "text", [parts[1], parts[4]])) == [(parts[1], TEXTS[20:40]), (parts[4], TEXTS[80:])]
    assert list(texts_of(file, "text", [])) == []


def test_parts_across_the_stretches_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PART_ROWS", 5000)
    texts = [f"{row}" for row in range(20_000)]
    write_table(tmp_path / "long.jsonl", {"text": texts})
    parts = cut(tmp_path / "long.jsonl", "text")
    assert [part.rows for part in parts] == [5000] * 4
    found = dict(texts_of(tmp_path / "long.jsonl", "text", parts[1:3]))
    assert found == {parts[1]: texts[5000:10_000], parts[2]: texts[10_000:15_000]}


def test_long_texts_make_short_parts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PART_CHARACTERS", 100)
    parts = cut(file, "text")
    sizes = [sum(map(len, TEXTS[part.start : part.start + part.rows])) for part in parts]
    assert sum(part.rows for part in parts) == 90 and max(sizes) <= 100 and len(parts) > 20
    monkeypatch.setattr(cutting, "PART_CHARACTERS", 1)
    assert [part.rows for part in cut(file, "text")] == [1] * 90


def test_a_cell_without_text_is_refused_before_any_work(tmp_path: Path, model: Path) -> None:
    write_table(tmp_path / "in.jsonl", {"text": [*TEXTS, 7]})
    with pytest.raises(DataError, match=r"in\.jsonl: row 91, column 'text' holds a whole number \(7\)"):
        predict_file(model, tmp_path / "in.jsonl", tmp_path / "out.csv", cache=None)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# ------------------------------------------------------------------------------------------------------------ attempt


def test_rows_that_fail_are_found_and_the_others_done(tmp_path: Path) -> None:
    beats: list[int] = []
    texts = oddities.rows(50, RAISE=17)
    outcome = attempt(oddities.Odd(tmp_path).do, texts, 1000, beats.append)
    assert outcome.failed == [Failure(1018, "this text cannot be read")]
    labels = outcome.columns["label"]
    assert labels[17] is None and labels[:17] == [text.upper() for text in texts[:17]] and len(labels) == 50
    assert outcome.rows == sum(beats) == 50
    assert outcome.counts == {"characters": sum(len(text) for text in texts if text != oddities.RAISE)}


def test_a_model_that_fails_on_every_row_is_not_a_matter_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def do(texts: list[str]) -> Any:
        raise ReadingError(f"NaN for row {len(texts)}.")

    with pytest.raises(ReadingError, match=r"^NaN for row 4\.$"):
        attempt(do, ["a"] * 4, 0, nothing)
    monkeypatch.setattr(attempting, "MOST_FAILURES", 2)
    tried: list[int] = []

    def often(texts: list[str]) -> Any:
        tried.append(len(texts))
        if "bad" in texts:
            raise ValueError("odd")
        return {"label": texts}, {}

    with pytest.raises(ValueError, match="odd"):
        attempt(often, ["good", "bad"] * 50, 0, nothing)
    assert len(tried) < 20  # given up early, not after every row


def test_input_errors_end_a_part_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no good"):
        attempt(oddities.Odd(tmp_path).do, oddities.rows(50, REFUSE=17), 0, nothing)


def test_warnings_of_a_part_are_kept_once_and_reasons_name_the_row_of_the_file() -> None:
    def do(texts: list[str]) -> Any:
        warn("2 texts are blank.", "blank_texts", 2)
        if "odd" in texts and len(texts) > 1:
            raise ReadingError("fell over")
        if "odd" in texts:
            raise ReadingError("The backbone\ngave NaN for row 1. Read in float32.")
        return {"label": texts}, {}

    outcome = attempt(do, ["a", "b", "odd", "c"], 40, nothing)
    assert outcome.warnings == [("2 texts are blank.", "blank_texts", 2)] * 2  # of the two stretches that were done
    assert outcome.failed == [Failure(43, "The backbone gave NaN for row 43. Read in float32.")]


# ---------------------------------------------------------------------------------------------------------------- job


def parts_of(*rows: int) -> list[Part]:
    return [Part(number, sum(rows[:number]), count) for number, count in enumerate(rows)]


def outcome_of(part: Part) -> Outcome:
    return Outcome(part.rows, {"label": [f"{part.number}\udc80"] * part.rows}, {}, [Failure(1, "é")], [("w", "c", 1)])


def test_a_job_goes_on_where_it_stopped_and_does_damaged_parts_again(tmp_path: Path) -> None:
    parts, out = parts_of(3, 3, 2), tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt), Job(out, {"input": 1}, parts) as job:
        job.keep(parts[0], outcome_of(parts[0]))
        job.keep(parts[2], outcome_of(parts[2]))
        raise KeyboardInterrupt
    said: list[str] = []
    quiet = watching(lambda *_: pytest.fail("no stage"), said.append)
    with quiet, pytest.raises(KeyboardInterrupt), Job(out, {"input": 1}, parts) as job:
        assert job.left == [parts[1]]
        raise KeyboardInterrupt
    assert "going on: 5 of 8 rows" in said[0] and "out.csv.parts: the same command goes on" in said[1]
    kept = tmp_path / "out.csv.parts" / "part-00000002.json"
    kept.write_text(kept.read_text().replace('"2', '"3'))
    with Job(out, {"input": 1}, parts) as job:
        assert job.left == [parts[1], parts[2]]
        for part in job.left:
            job.keep(part, outcome_of(part))
        assert list(job.outcomes()) == [outcome_of(part) for part in parts]
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_stopped_while_it_looks_at_what_is_done_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, out = parts_of(3, 3), tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt), Job(out, {"input": 1}, parts) as job:
        job.keep(parts[0], outcome_of(parts[0]))
        raise KeyboardInterrupt

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Outcome, "of", interrupted)
        with pytest.raises(KeyboardInterrupt), Job(out, {"input": 1}, parts):
            pytest.fail("it was stopped before")
    with Job(out, {"input": 1}, parts) as job:
        assert job.left == [parts[1]]


def test_a_batch_of_one_row_that_fails_has_every_column() -> None:
    import pandas as pd

    from sonde.scale.datasets import Labeller

    labeller = object.__new__(Labeller)
    labeller.do, labeller.text = oddities.Odd(Path()).do, "text"
    found = labeller(pd.DataFrame({"text": [oddities.RAISE]}))
    assert list(found.columns) == ["text", "label", "probability", "reason"]
    assert found["label"].tolist() == [None] and "cannot be read" in found["reason"][0]


def test_parts_of_another_job_are_dropped(tmp_path: Path) -> None:
    parts, out, said = parts_of(3, 3), tmp_path / "out.csv", list[str]()
    with pytest.raises(KeyboardInterrupt), Job(out, {"model": "a"}, parts) as job:
        job.keep(parts[0], outcome_of(parts[0]))
        raise KeyboardInterrupt
    with watching(lambda *_: pytest.fail("no stage"), said.append), Job(out, {"model": "b"}, parts) as job:
        assert job.left == parts
    assert said == [f"{out}.parts is of another input, model or option: begun anew"]


def test_what_a_writer_left_who_was_killed_is_no_foreign_file(tmp_path: Path) -> None:
    parts = parts_of(3)
    with suppress(KeyboardInterrupt), Job(tmp_path / "out.csv", {}, parts) as job:
        job.keep(parts[0], outcome_of(parts[0]))
        temporary_name(job.folder / "part-00000001.json", ".sonde").touch()  # as write_atomically names it
        raise KeyboardInterrupt
    with Job(tmp_path / "out.csv", {}, parts) as job:
        assert job.left == parts[1:]


def test_two_runs_at_once_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    parts, out = parts_of(3), tmp_path / "out.csv"
    with Job(out, {}, parts), pytest.raises(ArgumentError, match=r"Another run is at work on .*out\.csv; wait"):
        Job(out, {}, parts).__enter__()
    (tmp_path / "out.csv.parts").mkdir()
    (tmp_path / "out.csv.parts" / "mine.txt").touch()
    with pytest.raises(ArgumentError, match=r"out\.csv\.parts is not a folder of parts"):
        Job(out, {}, parts).__enter__()
    assert (tmp_path / "out.csv.parts" / "mine.txt").exists()
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        Job(tmp_path / "nowhere" / "out.csv", {}, parts).__enter__()


# ------------------------------------------------------------------------------------------------------------ predict


def test_parts_give_what_the_classifier_gives(model: Path, file: Path, tmp_path: Path, small: None) -> None:
    result = predict_file(model, file, tmp_path / "out.jsonl", cache=None)
    classifier = sonde.load(model, cache=None)
    table = read_table(tmp_path / "out.jsonl")
    assert table.names == ["id", "text", "label", "probability"] and table.columns["text"] == TEXTS
    assert table.columns["label"] == classifier.predict(TEXTS).tolist()
    found = np.array(table.columns["probability"], dtype=float)
    np.testing.assert_allclose(found, classifier.predict_proba(TEXTS).max(axis=1), atol=1e-5)
    assert result["rows"] == sum(result["labels"].values()) == 90 and "failed" not in result


class Stopping:
    """An engine that stops after some parts, as a run that is killed."""

    def __init__(self, work: Any, after: int) -> None:
        self.engine, self.after = Alone(work), after
        self.done: list[int] = []

    def __enter__(self) -> "Stopping":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, source: Path, text: str, parts: Any, beat: Any) -> Iterator[tuple[Part, Any]]:
        for part, outcome in self.engine.run(source, text, parts, beat):
            if len(self.done) == self.after:
                raise KeyboardInterrupt
            self.done.append(part.number)
            yield part, outcome


def test_a_prediction_that_was_stopped_goes_on(
    model: Path, file: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_file(model, file, tmp_path / "whole.csv", cache=None)
    engines = [Stopping(Predicting(str(model), cache=None), after) for after in (2, 9)]
    monkeypatch.setattr(predicting, "open_crew", lambda work, workers: engines[0])
    with pytest.raises(KeyboardInterrupt):
        predict_file(model, file, tmp_path / "out.csv", cache=None)
    assert not (tmp_path / "out.csv").exists() and (tmp_path / "out.csv.parts").is_dir()
    monkeypatch.setattr(predicting, "open_crew", lambda work, workers: engines[1])
    result = predict_file(model, file, tmp_path / "out.csv", cache=None)
    assert (engines[0].done, engines[1].done) == ([0, 1], [2, 3, 4]) and result["rows"] == 90
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "out.csv.parts").exists()


def test_rows_that_fail_stand_in_a_file_beside(
    model: Path, file: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Predicting.open

    def fragile(self: Predicting) -> Any:
        do = work(self)

        def fail(texts: list[str]) -> Any:
            if TEXTS[33] in texts:
                raise RuntimeError("out of luck")
            return do(texts)

        return fail

    with monkeypatch.context() as patch, pytest.warns(SondeWarning, match="1 rows could not be read.*row 34"):
        patch.setattr(Predicting, "open", fragile)
        result = predict_file(model, file, tmp_path / "out.csv", threshold=0.0, cache=None)
    assert result["failed_rows"] == 1 and result["failed"] == str(tmp_path / "out.csv.failed.jsonl")
    assert result["abstained"] == 0 and sum(result["labels"].values()) == 89
    assert read_table(result["failed"]).columns == {"row": [34], "reason": ["out of luck"]}
    table = read_table(tmp_path / "out.csv")
    assert table.columns["label"][33] == table.columns["probability"][33] == "" and table.rows == 90
    predict_file(model, file, tmp_path / "out.csv", cache=None)
    assert not Path(result["failed"]).exists() and read_table(tmp_path / "out.csv").columns["label"][33] != ""


def test_an_input_that_changes_meanwhile_is_refused(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Predicting.open

    def meddling(self: Predicting) -> Any:
        with file.open("a") as stream:
            stream.write("90,one more\n")
        return work(self)

    monkeypatch.setattr(Predicting, "open", meddling)
    with pytest.raises(DataError, match=r"in\.csv was changed while it was read\."):
        predict_file(model, file, tmp_path / "out.csv", cache=None)
    assert not (tmp_path / "out.csv").exists()


def test_rows_added_after_the_first_look_are_noticed(
    model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddling(*given: Any) -> list[Part]:
        parts = cut(*given)
        with file.open("a") as stream:
            stream.write("90,one more\n")
        return parts

    monkeypatch.setattr(predicting, "cut", meddling)
    with pytest.raises(DataError, match=r"in\.csv was changed while it was read\."):
        predict_file(model, file, tmp_path / "out.csv", cache=None)


def test_one_output_never_holds_the_labels_of_two_models(
    file: Path, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ["old" if i % 2 else "older" for i in range(90)], ["new" if i % 2 else "newer" for i in range(90)]
    folder = tmp_path / "model"
    sonde.TextClassifier("lexical").fit(TEXTS, first).save(folder)
    work = Predicting.open

    def meddling(self: Predicting) -> Any:
        sonde.TextClassifier("lexical").fit(TEXTS, second).save(folder)
        return work(self)

    with monkeypatch.context() as patch:
        patch.setattr(Predicting, "open", meddling)
        with pytest.raises(ModelError, match=r"is another model than when this run began\."):
            predict_file(folder, file, tmp_path / "out.csv")
    assert set(predict_file(folder, file, tmp_path / "out.csv")["labels"]) == {"new", "newer"}


@pytest.mark.parametrize(
    ("labels", "threshold", "kind"),
    [
        ([row % 3 for row in range(90)], 1.0, pa.int64()),
        ([[row % 3] for row in range(90)], None, pa.list_(pa.int64())),
    ],
)
def test_parquet_columns_have_their_type_where_nothing_is_labelled(
    labels: list[Any], threshold: float | None, kind: Any, file: Path, tmp_path: Path
) -> None:
    classifier = sonde.TextClassifier("lexical").fit(TEXTS, labels)
    classifier.thresholds_ = np.ones(3, dtype=np.float32) if threshold is None else None  # nothing reaches it
    classifier.save(tmp_path / "model")
    predict_file(tmp_path / "model", file, tmp_path / "out.parquet", threshold=threshold)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("label").type == kind
    assert all(not cell for cell in table["label"].to_pylist())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_probability_and_label_sets_are_written_where_asked(
    model: Path, file: Path, tmp_path: Path, kind: str
) -> None:
    classifier = sonde.load(model, cache=None)
    texts = read_table(file).columns["text"]
    out = tmp_path / f"out.{kind}"
    predict_file(model, file, out, alpha=0.2, probabilities=True, separator=";", cache=None)
    found = read_table(out).columns
    names = [f"probability_{label}" for label in classifier.classes_]
    assert list(found)[-len(names) - 3 :] == ["label", "probability", "label_set", *names]
    assert found["label_set"] == [";".join(one) for one in classifier.predict_set(texts, alpha=0.2)]
    shown = np.array([found[name] for name in names], dtype=float).T
    assert np.allclose(shown, classifier.predict_proba(texts), atol=1e-5)
    with pytest.raises(ArgumentError, match="alpha is 2"):
        predict_file(model, file, out, alpha=2, cache=None)


def test_what_predict_writes_of_many_labels_evaluate_reads(file: Path, tmp_path: Path) -> None:
    texts = read_table(file).columns["text"]
    several = [[label, "long"] if len(text) > 45 else [label] for text, label in zip(TEXTS, LABELS, strict=True)]
    classifier = sonde.TextClassifier("lexical").fit(TEXTS, several)
    classifier.save(tmp_path / "model")
    result = predict_file(tmp_path / "model", file, tmp_path / "out.csv", separator=" | ")
    labels = label_column(read_table(tmp_path / "out.csv"), "label", " | ")
    assert labels == [list(one) for one in classifier.predict(texts)]
    assert result["rows"] == len(texts) and set(result["labels"]) <= set(classifier.classes_)
    assert sum(result["labels"].values()) == sum(map(len, classifier.predict(texts)))
    with pytest.raises(ArgumentError, match="'o' stands in the label 'long'"):
        predict_file(tmp_path / "model", file, tmp_path / "out.csv", separator="o")
    with pytest.raises(ArgumentError, match="separator ' ' is white space"):
        predict_file(tmp_path / "model", file, tmp_path / "out.csv", separator=" ")


def test_a_file_that_may_not_quote_is_told_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text('text\tnote\n"the wind\tb\nthe train"\tc\n')
    with pytest.warns(SondeWarning) as caught:
        predict_file(model, tmp_path / "in.tsv", tmp_path / "out.tsv", cache=None)
    assert [w.message.code for w in caught if isinstance(w.message, SondeWarning)] == ["odd_quotes"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PART_ROWS", 2000)
    stub: Callable[..., Any] = lambda texts: ({"label": ["a"] * len(texts), "probability": [0.5] * len(texts)}, {})  # noqa: E731
    monkeypatch.setattr(Predicting, "open", lambda self: stub)
    peaks = []
    for count in (10_000, 40_000):
        write_table(tmp_path / "in.csv", {"text": [f"a text of some length {row:07}" for row in range(count)]})
        tracemalloc.start()
        predict_file(model, tmp_path / "in.csv", tmp_path / "out.csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


# ------------------------------------------------------------------------------------------------------------ extract


def test_extract_in_parts_fills_the_same_store_and_goes_on(file: Path, tmp_path: Path) -> None:
    from samples import backbones

    from sonde.read.extract import extract
    from sonde.read.store import Store
    from sonde.scale.work import Extracting

    first = extract_file(file, tmp_path / "store", backbones=backbones("linear"), dtype="float32")
    assert first["rows"] == 90 and first["blocks"] == [f"0/hidden.{i}/mean" for i in range(4)]
    assert first["bytes_estimated"] > 0 and first["truncated_rows"] == 0
    written = {path: path.stat().st_ino for path in (tmp_path / "store").rglob("*.safetensors")}
    again = extract_file(file, tmp_path / "store", backbones=backbones("linear"), dtype="float32")
    assert again == first  # and nothing was written anew
    assert {path: path.stat().st_ino for path in (tmp_path / "store").rglob("*.safetensors")} == written
    work = Extracting(tmp_path / "other", backbones("linear"), dtype="float32")
    sources = work.sources()
    list(extract(TEXTS, sources, work.blocks(sources), Store(tmp_path / "other")))
    names = [
        {path.relative_to(tmp_path / root): path.read_bytes() for path in (tmp_path / root).rglob("*.safetensors")}
        for root in ("store", "other")
    ]
    assert names[0] == names[1] and len(names[0]) == 5


# ------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--workers", 0], "There are 0 workers (--workers); there must be one or more."),
        (["--worker-timeout", 0], "The timeout of a worker (--worker-timeout) is 0.0; give seconds above 0."),
        (["--address", "a:1"], "An address, processors and GPUs of workers are said to Ray; add --engine ray"),
        (["--worker-gpus", 0.5], "An address, processors and GPUs of workers are said to Ray; add --engine ray"),
        (["--engine", "ray", "--worker-gpus", 1.5], "A worker asks Ray for 1.5 GPUs; above 1 only whole ones"),
        (["--engine", "ray", "--worker-cpus", -1], "A worker asks Ray for -1.0 processors and 0.0 GPUs"),
    ],
)
def test_workers_that_cannot_be_had(
    options: list[Any], sentence: str, model: Path, file: Path, tmp_path: Path, run: Run
) -> None:
    for line in (["predict", model, file], ["extract", file]):
        ended = run(*line, "--out", tmp_path / "out.csv", *options)
        assert ended.code == 2 and sentence in ended.err, ended.err


def test_without_ray_the_extra_is_named(
    model: Path, file: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray.data", raising=False)
    ended = run("predict", model, file, "--out", tmp_path / "out.csv", "--engine", "ray")
    assert ended.code == 1 and "pip install 'sonde[ray]'" in ended.err
    assert not list(tmp_path.glob("out.csv*"))


def test_each_worker_gets_a_gpu_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in devices_of(3, "auto")] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in devices_of(2, "cuda")] == ["4", "7"]
    assert devices_of(2, "cpu") == [{}, {}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_of(2, "auto") == [{}, {}]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    assert (threads_of(2), threads_of(20)) == (4, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(2) == 3


# ---------------------------------------------------------------------------------------------------------- processes


def labels_of(engine: Any, source: Path, rows: int) -> tuple[list[Any], list[Failure], list[str]]:
    """The labels and failures of a file, and what was said meanwhile."""
    write_table(source, {"text": oddities.rows(8)} if not source.exists() else read_table(source).columns)
    parts = [Part(number, start, min(rows, 100 - start)) for number, start in enumerate(range(0, 100, rows))]
    total = len(read_table(source).columns["text"])
    parts = [Part(p.number, p.start, min(p.rows, total - p.start)) for p in parts if p.start < total]
    said: list[str] = []
    beats: list[int] = []
    with watching(lambda *_: pytest.fail("no stage"), said.append), engine:
        found = sorted(done(engine, source, "text", parts, beats.append), key=lambda pair: pair[0].start)
    assert sum(beats) == total
    labels = [cell for _, one in found for cell in one.columns.get("label", [None] * one.rows)]
    return labels, [failure for _, one in found for failure in one.failed], said


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_a_row_that_kills_is_found(tmp_path: Path) -> None:
    texts = oddities.rows(24, ONCE=2, KILL=13, RAISE=20)
    write_table(tmp_path / "in.jsonl", {"text": texts})
    engine = Processes(oddities.Odd(tmp_path), Workers(2))  # type: ignore[arg-type]
    labels, failed, said = labels_of(engine, tmp_path / "in.jsonl", rows=8)
    odd = (13, 20)
    assert labels == [None if row in odd else text.upper() for row, text in enumerate(texts)]
    assert [one.row for one in failed] == [14, 21] and failed[1].reason == "this text cannot be read"
    assert failed[0].reason == "the process that read it ended with signal 9 (killed; memory may be short)"
    assert len(said) == 1 + 2 + 2 and "they are done again" in said[0]  # once; the part twice; the row twice
    assert not engine.workers


@pytest.mark.slow
def test_many_parts_that_kill_are_cut_and_only_a_model_that_reads_nothing_ends_the_run(tmp_path: Path) -> None:
    texts, kills = oddities.rows(28), [*range(1, 20, 4), *range(20, 28)]  # the last two parts do nothing else
    for row in kills:
        texts[row] = oddities.KILL
    write_table(tmp_path / "in.jsonl", {"text": texts})
    engine = Processes(oddities.Odd(tmp_path), Workers(2))  # type: ignore[arg-type]
    labels, failed, said = labels_of(engine, tmp_path / "in.jsonl", rows=4)
    assert [row for row, label in enumerate(labels) if label is None] == kills
    assert [one.row for one in failed] == [row + 1 for row in kills]
    assert any("one text is tried alone" in sentence for sentence in said)
    write_table(tmp_path / "bad.jsonl", {"text": [oddities.KILL] * 100})
    dead = Processes(oddities.Odd(tmp_path), Workers(2))  # type: ignore[arg-type]
    with pytest.raises(ReadingError, match=r"workers in a row died, and another of row \d+ alone; it ended"):
        labels_of(dead, tmp_path / "bad.jsonl", rows=20)


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed_and_refusals_end_the_job(tmp_path: Path) -> None:
    write_table(tmp_path / "in.jsonl", {"text": oddities.rows(8, HANG=3)})
    sound = Processes(oddities.Odd(tmp_path), Workers(2))  # type: ignore[arg-type]
    begun = time.monotonic()
    labels_of(sound, tmp_path / "sound.jsonl", rows=1)
    seconds = round(max(8.0, 4 * (time.monotonic() - begun)))  # a worker is silent while it starts, too
    engine = Processes(oddities.Odd(tmp_path), Workers(2, timeout=seconds))  # type: ignore[arg-type]
    labels, failed, said = labels_of(engine, tmp_path / "in.jsonl", rows=1)
    assert [label is None for label in labels] == [row == 3 for row in range(8)]
    assert failed == [Failure(4, f"the process that read it said nothing for {seconds:,} s")]
    assert said[0].startswith("worker ")
    assert f"said nothing for {seconds:,} s at rows 4 to 4; they are done again" in said[0]
    write_table(tmp_path / "bad.jsonl", {"text": oddities.rows(8, REFUSE=3)})
    refusing = Processes(oddities.Odd(tmp_path), Workers(2))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="this file is no good"):
        labels_of(refusing, tmp_path / "bad.jsonl", rows=4)
    assert not refusing.workers


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(model: Path, file: Path, tmp_path: Path, small: None) -> None:
    one = predict_file(model, file, tmp_path / "one.csv", cache=None)
    two = predict_file(model, file, tmp_path / "two.csv", cache=None, workers=Workers(2, timeout=math.inf))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert {**one, "out": ""} == {**two, "out": ""}


def living(group: int) -> list[int]:
    """The processes of a group, but for those that have ended and that nobody has asked about."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended between the look and the reading
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] if int(its_group) == group and state != "Z" else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
def test_ctrl_c_stops_all_workers_and_the_same_command_goes_on(model: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "in.csv", {"text": [f"{TEXTS[row % 90]} {row}" for row in range(20_000)]})
    line = [sys.executable, "-m", "sonde", "predict", model, tmp_path / "in.csv", "--out", tmp_path / "out.csv"]
    line += ["--no-cache", "--workers", "2", "--json"]
    started = subprocess.Popen(
        list(map(str, line)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    parts = tmp_path / "out.csv.parts"
    deadline = time.monotonic() + 600
    while not list(parts.glob("part-*")) and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 130 and b"the same command goes on from there" in err, err  # 128 + SIGINT
    deadline = time.monotonic() + 60
    while living(started.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(started.pid) == []
    kept = len(list(parts.glob("part-*")))
    again = subprocess.run(list(map(str, line)), capture_output=True, timeout=900, check=True)
    assert 0 < kept < 5 and b"going on: " in again.stderr
    assert json.loads(again.stdout)["rows"] == 20_000 and not parts.exists()
