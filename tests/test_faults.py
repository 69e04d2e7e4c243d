"""Kills and failing calls at every write: what stood there still stands whole, or the new stands whole."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import faults_at_each, kills_at_each
from samples import make, worded

from sonde import saving
from sonde.baselines.answers import AnswerFile
from sonde.baselines.generation import Answer
from sonde.baselines.resuming import State, States
from sonde.errors import DataError, ModelError, SondeError, StoreError
from sonde.read.store import Column, Store, hash_texts
from sonde.tables import atomic, read_table, strays, write_table

FAULTS = ("ENOSPC", "EIO")
Files = dict[str, bytes]


def content(root: Path) -> Files:
    """Every file below a folder, the hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(params=["exchange", "rename"])
def swapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a system that exchanges two names in one step."""
    if request.param == "rename":
        monkeypatch.setattr(atomic, "_swapper", lambda: None)
    elif atomic._swapper() is None:
        pytest.skip("this system exchanges no names")
    return str(request.param)


# ------------------------------------------------------------------------------------------------------ saved models

Recorded = tuple[dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    """Manifests and arrays of two models."""
    root = tmp_path_factory.mktemp("models")
    texts, labels = worded(90)
    make("lexical").fit(texts, labels).save(root / "old")
    make("lexical").fit(texts[:60], labels[:60]).save(root / "new")
    return {name: saving.load(root / name) for name in ("old", "new")}


def save(folder: Path, record: Recorded) -> None:
    given, arrays = record
    made = {"format", "protocol", "arrays", "sha256"}
    saving.save(folder, {name: entry for name, entry in given.items() if name not in made}, arrays)


def which(folder: Path, records: dict[str, Recorded]) -> str:
    """Which of the models stands there, to the last number."""
    found, arrays = saving.load(folder)
    (name,) = [name for name, (given, _) in records.items() if given == found]
    assert all(np.array_equal(array, records[name][1][key]) for key, array in arrays.items())
    return name


@pytest.mark.parametrize("before", ["old", "none"])
def test_a_save_that_is_killed_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, records: dict[str, Recorded], before: str, swapping: str
) -> None:
    target, seen = tmp_path / "models" / "m", []

    def fresh() -> None:
        shutil.rmtree(target.parent, ignore_errors=True)
        if before == "old":
            save(target, records["old"])

    fresh()
    for _ in kills_at_each(lambda: save(target, records["new"])):
        seen.append(which(target, records) if saving.standing(target).exists() else "none")
        save(target, records["new"])  # whoever comes next is not hindered, and clears what is left
        assert which(target, records) == "new"
        assert [path.name for path in target.parent.iterdir()] == ["m"]
        fresh()
    assert seen == sorted(seen, key=[before, "new"].index) and set(seen) == {before, "new"}
    assert len(seen) > 12, "fewer calls than a save of three files makes"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_whose_call_fails_leaves_the_old_model_or_the_new_one(
    tmp_path: Path, records: dict[str, Recorded], fault: str, swapping: str
) -> None:
    target = tmp_path / "m"
    save(target, records["old"])
    said = 0
    for faults, raised in faults_at_each(lambda: save(target, records["new"]), fault):
        if raised is None:  # what failed was clearing up
            assert which(target, records) == "new"
        else:
            assert isinstance(raised, ModelError) and "Nothing was changed" in str(raised), (faults.calls, raised)
            assert which(target, records) == "old"
            said += 1
        save(target, records["old"])
        left = [path.name for path in tmp_path.iterdir() if path.name != "m"]
        assert not left or faults.calls[faults.at - 1] in ("unlink", "rmdir"), "for the next process to clear"
    assert said > 8


def test_short_writes_are_completed(tmp_path: Path, records: dict[str, Recorded]) -> None:
    save(tmp_path / "whole", records["new"])
    for _, raised in faults_at_each(lambda: save(tmp_path / "m", records["new"]), "short", "write"):
        assert raised is None
        assert content(tmp_path / "m") == content(tmp_path / "whole")
        shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize("file", [saving.MANIFEST, saving.ARRAYS])
def test_every_flipped_bit_of_a_saved_model_is_found(tmp_path: Path, records: dict[str, Recorded], file: str) -> None:
    save(tmp_path / "m", records["new"])
    sound = (tmp_path / "m" / file).read_bytes()
    said = json.loads(sound) if file == saving.MANIFEST else None
    for place in range(0, len(sound), max(1, len(sound) // 400)):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "m" / file).write_bytes(flipped)
        if said is not None and _means_the_same(bytes(flipped), said):
            continue  # white space
        with pytest.raises(ModelError, match=r"sonde\.json|arrays\.safetensors"):
            saving.load(tmp_path / "m")


def _means_the_same(raw: bytes, said: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(raw) == said)
    except ValueError:
        return False


def test_a_model_without_checksums_is_read(tmp_path: Path, records: dict[str, Recorded]) -> None:
    save(tmp_path / "m", records["new"])
    path = tmp_path / "m" / saving.MANIFEST
    given = json.loads(path.read_bytes())
    del given["sha256"]
    path.write_text(json.dumps({**given, "protocol": 1}))
    found, _ = saving.load(tmp_path / "m")
    assert found["protocol"] == 1 and found["learner"] == records["new"][0]["learner"]


def test_a_model_that_is_saved_while_it_is_read_is_one_or_the_other(
    tmp_path: Path, records: dict[str, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m", records["old"])
    read = saving._arrays
    saves = iter([lambda: save(tmp_path / "m", records["new"])])

    def late(folder: Path, given: Any) -> Any:
        next(saves, lambda: None)()
        return read(folder, given)

    monkeypatch.setattr(saving, "_arrays", late)
    assert which(tmp_path / "m", records) == "new"


# ------------------------------------------------------------------------------------------------------------ tables

OLD = {"text": ["what stood there"], "label": ["old"]}
NEW = {"text": [f"row {i} of the new table" for i in range(2000)], "label": ["new"] * 2000}


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl.gz", "t.parquet"])
def test_a_table_is_the_old_one_or_the_new_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_table(path, NEW)
    new = path.read_bytes()
    write_table(path, OLD)
    old = path.read_bytes()

    def job() -> None:
        write_table(path, NEW)

    seen = []
    for _ in kills_at_each(job):
        seen.append(path.read_bytes())
        job()
        assert path.read_bytes() == new
        assert [one.name for one in tmp_path.iterdir()] == [name], "what a dead writer left is cleared"
        path.write_bytes(old)
    assert set(seen) == {old, new} and len(seen) > 4
    for fault in FAULTS:
        path.write_bytes(old)
        for faults, raised in faults_at_each(job, fault):
            assert raised is None or isinstance(raised, DataError), (faults.calls, raised)
            assert path.read_bytes() == (new if raised is None else old), faults.calls
            path.write_bytes(old)
        assert [one.name for one in tmp_path.iterdir()] == [name]
    for _, raised in faults_at_each(job, "short", "write"):
        assert raised is None and path.read_bytes() == new


def test_a_table_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,b\n")
    (tmp_path / "t.csv").rename(tmp_path / "u.csv")
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(DataError, match="is a folder; a file is needed"):
        read_table(tmp_path / "t.csv")


# ------------------------------------------------------------------------------------------------------------- store

ABOUT = {"backbone": "b", "fingerprint": "f", "view": "v", "site": "hidden.1", "pooling": "mean", "dtype": "float32"}
PARTS = [[f"text {part} {row}" for row in range(20)] for part in range(3)]


def values_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[float(sum(text.encode())), float(len(text)), 0.5] for text in texts])


def fill(root: Path, limit: int | None = None) -> None:
    """What `extract` does with a store: header, then for each part what is missing, below the limit."""
    store = Store(root, limit)
    columns = [store.column({**ABOUT, "site": f"hidden.{layer}"}) for layer in (1, 2)]
    store.write_header()
    for texts in PARTS:
        keys = hash_texts(texts)
        for column in columns:
            if not column.find(keys).all() and store.make_room(3000, columns):
                column.append(keys, values_of(texts))


def held(root: Path) -> int:
    """Rows that the store holds, every one of them right."""
    store, rows = Store(root), 0
    for layer in (1, 2):
        column: Column = store.column({**ABOUT, "site": f"hidden.{layer}"})
        for texts in PARTS:
            found = column.find(hash_texts(texts))
            assert found.all() or not found.any(), "half a shard"
            if found.any():
                assert torch.equal(column.read(hash_texts(texts)), values_of(texts))
                rows += len(texts)
    store.describe()
    return rows


@pytest.mark.filterwarnings("error::sonde.errors.SondeWarning")
@pytest.mark.parametrize("limit", [None, 9000])
def test_a_store_that_is_killed_holds_whole_shards_and_goes_on(tmp_path: Path, limit: int | None) -> None:
    fill(tmp_path / "whole", limit)
    whole, seen = content(tmp_path / "whole"), []
    for _ in kills_at_each(lambda: fill(tmp_path / "s", limit)):
        seen.append(held(tmp_path / "s"))
        fill(tmp_path / "s", limit)
        assert content(tmp_path / "s") == whole or limit, "another store than without the kill"
        assert not [name for name in content(tmp_path / "s") if ".tmp-" in name]
        shutil.rmtree(tmp_path / "s")
    assert (seen == sorted(seen) and seen[0] == 0 and seen[-1] >= 100) or limit
    assert len(seen) > 20


@pytest.mark.filterwarnings("error::sonde.errors.SondeWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_whose_call_fails_keeps_what_it_had(tmp_path: Path, fault: str) -> None:
    fill(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    for faults, raised in faults_at_each(lambda: fill(tmp_path / "s"), fault):
        assert raised is None or isinstance(raised, StoreError), (faults.calls, raised)
        if raised is not None and "cannot be made" not in str(raised):
            assert "run the same command again" in str(raised), raised
        held(tmp_path / "s")
        assert not [name for name in content(tmp_path / "s") if ".tmp-" in name], faults.calls
        fill(tmp_path / "s")
        assert content(tmp_path / "s") == whole
        shutil.rmtree(tmp_path / "s")
    for _, raised in faults_at_each(lambda: fill(tmp_path / "s"), "short", "write"):
        assert raised is None and content(tmp_path / "s") == whole
        shutil.rmtree(tmp_path / "s")


def test_a_clock_that_goes_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    for path in tmp_path.rglob("*"):
        os.utime(path, (4e9, 4e9))  # written in the future, as it then seems
    before = content(tmp_path)
    fill(tmp_path)
    assert content(tmp_path) == before and held(tmp_path) == 120
    mine = next(tmp_path.glob("blocks/*")) / f".tmp-{strays.HOST}-{os.getpid()}-{strays.MARK}-1"
    mine.write_bytes(b"being written")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    fill(tmp_path)
    assert mine.exists(), "a writer that is alive was taken for dead"


# ------------------------------------------------------------------------------------- answers, runs of fine-tuning


def test_answers_that_were_kept_stay_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    def job() -> None:
        file = AnswerFile(path, "model")
        for number in range(3):
            if file.find(f"key {number}") is None:
                file.keep(f"key {number}", Answer(f"answer {number}", 1, 1))

    def found() -> int:
        file = AnswerFile(path, "model")
        answers = [file.find(f"key {number}") for number in range(3)]
        assert all(one is None or one.text == f"answer {number}" for number, one in enumerate(answers))
        return sum(one is not None for one in answers)

    seen = []
    for _ in kills_at_each(job):
        seen.append(found())
        job()
        assert found() == 3
        path.unlink()
    assert seen == sorted(seen) and {0, 1, 2, 3} == set(seen)
    for fault in (*FAULTS, "short"):
        for _, raised in faults_at_each(job, fault):
            assert raised is None or isinstance(raised, DataError)
            job()
            assert found() == 3
            path.unlink(missing_ok=True)


def test_a_run_of_fine_tuning_stands_where_it_stood_or_one_further(tmp_path: Path) -> None:

    def job() -> None:
        states = States(tmp_path / "run", {"seed": 1})
        known = states.load()
        for epoch in range(0 if known is None else known.position["epoch"] + 1, 2):
            states.save_best(epoch, {"w": torch.full((3,), float(epoch))})
            states.save(State({"epoch": epoch, "best": epoch}, {"w": torch.full((3,), float(epoch))}))
            states.forget(but=epoch)

    def stands() -> int:
        state = States(tmp_path / "run", {"seed": 1}).load()
        if state is None:
            return -1
        assert (state.tensors["w"] == state.position["epoch"]).all()
        assert (States(tmp_path / "run", {"seed": 1}).best(state.position["best"])["w"] == state.position["best"]).all()
        return int(state.position["epoch"])

    seen = []
    for _ in kills_at_each(job):
        seen.append(stands())
        job()
        assert stands() == 1
        shutil.rmtree(tmp_path / "run")
    assert seen == sorted(seen) and set(seen) == {-1, 0, 1}
    for faults, raised in faults_at_each(job, "EIO"):
        assert raised is None or isinstance(raised, SondeError), (faults.calls, raised)
        assert stands() >= -1
        shutil.rmtree(tmp_path / "run")
