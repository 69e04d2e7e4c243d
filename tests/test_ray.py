"""A real Ray of two machines that are one: the same results, whoever dies; all with one start of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oddities
import pytest
from samples import Run, command, saved, worded

import sonde
from sonde.errors import ArgumentError, DataError, ModelError
from sonde.progress import watching
from sonde.scale import Workers, extract_file, predict, predict_file, write_parquet
from sonde.scale import parts as cutting
from sonde.scale.cluster import Cluster
from sonde.scale.crews import done
from sonde.scale.outcome import Failure
from sonde.scale.parts import Part, cut
from sonde.tables import read_table, write_table

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow

TEXTS, LABELS = worded(90)
TWO = Workers(2, "ray", cpus=0.5)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with two processors, in this process group; tests may add machines and remove them."""
    from ray.cluster_utils import Cluster as Machines

    own = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # what other tests take must not cost ours their workers
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 2 * 10**8})
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address=machines.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield machines
    ray.shutdown()
    machines.shutdown()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


model = pytest.fixture(scope="module")(saved("auto"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_table(tmp_path / "in.csv", {"id": list(map(str, range(90))), "text": TEXTS})
    return tmp_path / "in.csv"


def test_the_command_gives_the_bytes_of_one_process(
    cluster: Any, model: Path, file: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART_ROWS", 20)
    one = run("predict", model, file, "--out", tmp_path / "one.parquet", "--no-cache", "--json").json
    line = ("predict", model, file, "--out", tmp_path / "two.parquet", "--no-cache", "--json")
    two = run(*line, "--engine", "ray", "--workers", 2, "--worker-cpus", 0.5).json
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert {**one, "out": ""} == {**two, "out": ""} and not list(tmp_path.glob("*.parts"))


def found_of(work: Any, source: Path, rows: int, workers: Workers = TWO) -> tuple[list[Any], list[Failure]]:
    """Labels and failures of a file, by actors."""
    beats: list[int] = []
    with watching(lambda *_: pytest.fail("no stage")), Cluster(work, workers) as engine:
        parts = cut(source, "text", rows)
        found = sorted(done(engine, source, "text", parts, beats.append), key=lambda pair: pair[0].start)
    assert sum(beats) == sum(part.rows for part in parts)
    labels = [cell for _, one in found for cell in one.columns.get("label", [None] * one.rows)]
    return labels, [failure for _, one in found for failure in one.failed]


def test_an_actor_that_dies_is_replaced_and_a_row_that_kills_is_found(cluster: Any, tmp_path: Path) -> None:
    texts = oddities.rows(24, ONCE=2, KILL=13, RAISE=20)
    write_table(tmp_path / "in.parquet", {"text": texts})
    labels, failed = found_of(oddities.Odd(tmp_path), tmp_path / "in.parquet", rows=8)
    odd = (13, 20)
    assert labels == [None if row in odd else text.upper() for row, text in enumerate(texts)]
    assert failed == [Failure(14, "2 actors that read it died"), Failure(21, "this text cannot be read")]


def test_input_errors_come_back_as_themselves(cluster: Any, tmp_path: Path) -> None:
    write_table(tmp_path / "in.csv", {"text": oddities.rows(8, REFUSE=3)})
    with pytest.raises(DataError, match="this file is no good"):
        found_of(oddities.Odd(tmp_path), tmp_path / "in.csv", rows=4)


def test_a_killed_actor_in_mid_work_and_a_job_that_goes_on(
    cluster: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART_ROWS", 10)
    monkeypatch.setattr("sonde.scale.predicting.Predicting", lambda *_: oddities.Odd(tmp_path, pause=1.0))
    write_table(tmp_path / "in.jsonl", {"text": oddities.rows(200)})
    kept: list[Part] = []

    def stop(job: Any, part: Part, outcome: Any) -> None:
        keep(job, part, outcome)
        kept.append(part)
        if len(kept) == 3:  # one of those who work is killed
            workers = sorted(tmp_path.glob("worker-*"), key=lambda path: path.stat().st_mtime)
            os.kill(int(workers[-1].name.removeprefix("worker-")), signal.SIGKILL)
        if len(kept) == 8:
            raise KeyboardInterrupt

    from sonde.scale.job import Job

    keep = Job.keep
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Job, "keep", stop)
        predict_file(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", workers=TWO)
    assert len(kept) == 8 and not (tmp_path / "out.jsonl").exists()
    said: list[str] = []
    with watching(lambda *_: _Silent(), said.append):
        result = predict_file(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", workers=TWO)
    assert said == ["going on: 80 of 200 rows were done before"]
    assert read_table(tmp_path / "out.jsonl").columns["label"] == [text.upper() for text in oddities.rows(200)]
    assert result["rows"] == 200 and "failed_rows" not in result


class _Silent:
    def __enter__(self) -> Any:
        return lambda _: None

    def __exit__(self, *_: object) -> None:
        return None


def test_data_sets_of_all_formats_get_labels(cluster: Any, model: Path, tmp_path: Path) -> None:
    parts = {"in.parquet": TEXTS[:30], "in.csv": TEXTS[30:60], "in.json": TEXTS[60:]}
    write_table(tmp_path / "in.jsonl", {"label": ["mine"] * 30, "text": TEXTS[60:]})
    (tmp_path / "in.jsonl").rename(tmp_path / "in.json")  # JSON lines by the name that Ray knows
    for name in ("in.parquet", "in.csv"):
        write_table(tmp_path / name, {"label": ["mine"] * 30, "text": parts[name]})
    read = {"in.parquet": ray.data.read_parquet, "in.csv": ray.data.read_csv, "in.json": ray.data.read_json}
    first, *others = (read[name](str(tmp_path / name)) for name in parts)
    labelled = predict(first.union(*others), model, workers=2, worker_cpus=0.5, batch_rows=20)
    files = write_parquet(labelled, tmp_path / "out")
    rows = {row["text"]: row for path in files for row in _rows(path)}
    classifier = sonde.load(model, cache=None)
    found = [rows[text] for text in TEXTS]
    assert [row["predicted_label"] for row in found] == classifier.predict(TEXTS).tolist()
    expected = classifier.predict_proba(TEXTS).max(axis=1)
    np.testing.assert_allclose([row["probability"] for row in found], expected, atol=1e-5)
    assert {row["reason"] for row in found} == {None} and {row["label"] for row in found} == {"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*parts, "out"])


def test_a_data_set_is_judged_before_it_is_read(cluster: Any, model: Path, tmp_path: Path) -> None:
    given = ray.data.from_items([{"text": text} for text in TEXTS])
    with pytest.raises(ArgumentError, match="threshold"):
        predict(given, model, threshold=7.0)
    with pytest.raises(ModelError, match="does not exist"):
        predict(given, tmp_path / "none")
    sonde.TextClassifier("lexical").fit(TEXTS, [row % 3 for row in range(90)]).save(tmp_path / "numbers")
    sure = sorted(sonde.load(tmp_path / "numbers").predict_proba(TEXTS).max(axis=1))[45]
    files = write_parquet(predict(given, tmp_path / "numbers", threshold=float(sure), cache=None), tmp_path / "out")
    labels = [row["label"] for path in files for row in _rows(path)]
    assert {type(label) for label in labels} == {int, type(None)} and len(labels) == 90


def _rows(path: Path) -> list[dict[str, Any]]:
    columns = read_table(path).columns
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def test_a_data_set_that_fails_leaves_no_folder(cluster: Any, model: Path, tmp_path: Path) -> None:
    texts = ray.data.from_items([{"text": 7}])
    with pytest.raises(Exception, match=r"The column of texts holds 7 where text is due"):
        write_parquet(predict(texts, model, worker_cpus=0.5), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out exists; give the name of a folder that does not"):
        write_parquet(texts, tmp_path / "out")
    with pytest.raises(ArgumentError, match=r"no column 'body'; its columns: text\. Choose with text="):
        predict(texts, model, text="body")


def test_extract_fills_one_store(cluster: Any, file: Path, tmp_path: Path) -> None:
    from samples import backbones

    names = backbones("linear")
    extract_file(file, tmp_path / "one", backbones=names, dtype="float32")
    extract_file(file, tmp_path / "two", backbones=names, dtype="float32", workers=TWO)
    stores = [{p.relative_to(tmp_path / root) for p in (tmp_path / root).rglob("*.*")} for root in ("one", "two")]
    assert stores[0] == stores[1] and stores[0]


def test_machines_come_and_go(cluster: Any, tmp_path: Path) -> None:
    texts = oddities.rows(60, WAIT=30)
    write_table(tmp_path / "in.csv", {"text": texts})
    three = Workers(3, "ray", cpus=1.0)  # more than the head has processors for
    found, added, removed = [], None, False
    with Cluster(oddities.Odd(tmp_path, pause=0.3), three) as engine:
        parts = cut(tmp_path / "in.csv", "text", 4)
        for part, outcome in done(engine, tmp_path / "in.csv", "text", parts, lambda _: None):
            found.append((part.start, outcome))
            added = added or cluster.add_node(num_cpus=1)
            if not removed and len(list(tmp_path.glob("worker-*"))) == 3:
                cluster.remove_node(added, allow_graceful=False)
                removed = True
    assert removed and all(outcome.failed == [] for _, outcome in found)
    labels = [cell for _, outcome in sorted(found, key=lambda one: one[0]) for cell in outcome.columns["label"]]
    assert labels == [text.upper() for text in texts]
