"""Fine-tuning: what is learned, what is frozen, what stops it, what a kill costs, and what comes out as a backbone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from samples import worded
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from sonde import TextClassifier
from sonde.baselines import FineTuning, finetuning, stepping
from sonde.errors import (
    ArgumentError,
    BackboneError,
    DataError,
    MissingExtraError,
    ModelError,
    ReadingError,
    SondeWarning,
)
from sonde.progress import watching
from sonde.read.backbone import load_backbone

TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(60, seed=1)
METHODS = ("full", "lora")


@pytest.fixture(autouse=True)
def _short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "LEAST_STEPS", 1)


def make(method: str = "full", backbone: str = "bert", **settings: Any) -> FineTuning:
    given = {"learning_rate": 3e-3, "epochs": 4, "batch_rows": 8, "dtype": "float32", **settings}
    return FineTuning(str(tiny.build(backbone)), method, **given)


@pytest.fixture(scope="module")
def fitted() -> dict[str, FineTuning]:
    """One fit a method; tests must not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping, "LEAST_STEPS", 12)
        return {method: make(method, learning_rate=5e-3).fit(TEXTS, LABELS) for method in METHODS}


def test_too_little_memory_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(finetuning, "train", short)
    with pytest.raises(ReadingError, match=r"8 rows of up to 64 tokens a step \(CUDA out of memory.* fewer batch_rows"):
        make().fit(TEXTS, LABELS)

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(finetuning, "train", breaks)
    with pytest.raises(RuntimeError, match="a defect"):
        make().fit(TEXTS, LABELS)


# ------------------------------------------------------------------ what it learns, and how it answers


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_answers_as_a_classifier_does(method: str, fitted: dict[str, FineTuning]) -> None:
    classifier = fitted[method]
    assert classifier.score(NEW_TEXTS, NEW_LABELS) > 0.5  # chance is .33
    probabilities = classifier.predict_proba(NEW_TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert classifier.classes_.tolist() == ["post", "rail", "weather"]
    said = classifier.predict(NEW_TEXTS)
    assert said.tolist() == classifier.classes_[probabilities.argmax(axis=1)].tolist()
    assert classifier.score(NEW_TEXTS, NEW_LABELS) == np.mean(said == np.array(NEW_LABELS))
    logits = classifier.decision_function(NEW_TEXTS)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), probabilities, atol=1e-5)
    assert classifier.predict([]).shape == (0,) and classifier.predict_proba([]).shape == (0, 3)
    assert json.loads(json.dumps(classifier.summary_))["method"] == method


@pytest.mark.parametrize("method", METHODS)
def test_a_text_gets_the_same_answer_alone_and_among_others(method: str, fitted: dict[str, FineTuning]) -> None:
    together = fitted[method].predict_proba([*NEW_TEXTS[:4], "good", "why " * 30])
    alone = np.concatenate([fitted[method].predict_proba([text]) for text in [*NEW_TEXTS[:4], "good", "why " * 30]])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_parameters_are_stored_and_copied() -> None:
    settings = {"learning_rate": 0.5, "targets": ("query",), "resume": "folder", "class_weight": {"a": 2}, "rank": 3}
    classifier = FineTuning("somewhere", "lora", **settings)
    assert clone(classifier).get_params() == classifier.get_params()
    assert {name: classifier.get_params()[name] for name in settings} == settings
    assert is_classifier(classifier) and not hasattr(classifier, "classes_")


@pytest.mark.slow
def test_it_goes_through_cross_validation() -> None:
    scores = cross_val_score(make(epochs=2), TEXTS, LABELS, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()


def test_a_fit_leaves_the_generators_of_the_process_alone_and_repeats_itself() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = make(epochs=1).fit(TEXTS, LABELS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    np.testing.assert_array_equal(
        first.predict_proba(NEW_TEXTS), make(epochs=1).fit(TEXTS, LABELS).predict_proba(NEW_TEXTS)
    )
    other = make(epochs=1, random_state=1).fit(TEXTS, LABELS)
    assert not np.array_equal(first.predict_proba(NEW_TEXTS), other.predict_proba(NEW_TEXTS))


def test_several_labels_a_text() -> None:
    labels = [[label] if row % 2 else [label, "odd"] for row, label in enumerate(LABELS)]
    listed = make(epochs=2).fit(TEXTS, labels)
    assert listed.multilabel_ and listed.classes_.tolist() == ["odd", "post", "rail", "weather"]
    said = listed.predict(NEW_TEXTS)
    chosen = listed.predict_proba(NEW_TEXTS) >= listed.thresholds_
    assert said == [listed.classes_[row].tolist() for row in chosen]
    matrix = np.array([[int(name in row) for name in listed.classes_] for row in labels])
    drawn = make(epochs=2).fit(TEXTS, matrix)
    assert drawn.predict(NEW_TEXTS).tolist() == chosen.astype(int).tolist()
    assert drawn.score(TEXTS, matrix) == np.mean((drawn.predict(TEXTS) == matrix).all(axis=1))


def test_weights_count() -> None:
    plain = make(epochs=2).fit(TEXTS, LABELS)
    heavy = make(epochs=2, class_weight={"rail": 50.0}).fit(TEXTS, LABELS)
    weights = [50.0 if label == "rail" else 1.0 for label in LABELS]
    sampled = make(epochs=2).fit(TEXTS, LABELS, sample_weight=weights)
    rail = [one.predict_proba(NEW_TEXTS)[:, 1].mean() for one in (plain, heavy, sampled)]
    assert rail[1] > rail[0] + 0.2 and rail[2] == pytest.approx(rail[1], abs=1e-6)


def test_texts_of_weight_zero_change_nothing() -> None:
    strange = ["trains " * 9] * 3
    held = (NEW_TEXTS, NEW_LABELS)
    plain = make(epochs=1).fit(TEXTS, LABELS, validation=held)
    more = make(epochs=1).fit(
        [*TEXTS, *strange], [*LABELS, *["post"] * 3], sample_weight=[1.0] * 90 + [0.0] * 3, validation=held
    )
    np.testing.assert_allclose(plain.predict_proba(NEW_TEXTS), more.predict_proba(NEW_TEXTS), atol=1e-6)


def test_truncated_texts_are_said() -> None:
    with pytest.warns(SondeWarning, match="2 texts are longer than the model reads and were cut"):
        make(epochs=1, max_tokens=12).fit([*TEXTS, "the wind " * 20, "the cold " * 20], [*LABELS, "weather", "weather"])


# ------------------------------------------------------------------ when it stops


def test_it_stops_when_held_out_rows_gain_no_more_and_keeps_the_best_weights() -> None:
    wrong = [LABELS[(row + 1) % 3] for row in range(60)]  # what it learns is wrong there
    classifier = make(epochs=9, patience=2).fit(TEXTS, LABELS, validation=(NEW_TEXTS, wrong))
    story = classifier.summary_
    assert story["epochs"] == story["best_epoch"] + 2 < 9 and len(story["history"]) == story["epochs"]
    assert story["held_out_rows"] == 60 and story["rows"] == 90
    ranks = [(one["accuracy"], -one["loss"]) for one in story["history"]]
    assert ranks.index(max(ranks)) == story["best_epoch"] - 1
    assert classifier.score(NEW_TEXTS, wrong) == ranks[story["best_epoch"] - 1][0]


def test_a_tenth_of_the_rows_is_held_out_and_calibrates(fitted: dict[str, FineTuning]) -> None:
    assert fitted["full"].summary_["held_out_rows"] == 9
    assert fitted["full"].temperature_ != 1.0


def test_rows_that_nobody_can_hold_out_all_train() -> None:
    with pytest.warns(SondeWarning, match="No rows can be held out"):
        classifier = make(epochs=9).fit(["good", "cold wind"], ["a", "b"])
    assert classifier.summary_["epochs"] == stepping.UNWATCHED_EPOCHS and classifier.temperature_ == 1.0
    assert classifier.summary_["held_out_rows"] == 0


def test_few_rows_are_gone_through_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "LEAST_STEPS", 7)
    assert make(epochs=1, batch_rows=32).fit(TEXTS, LABELS).summary_["steps"] == 9  # three passes of three steps


def test_a_rate_that_breaks_the_model_is_said() -> None:
    with pytest.raises(ReadingError, match=r"is no number. Lower learning_rate"):
        make(learning_rate=1e30).fit(TEXTS, LABELS)


# ------------------------------------------------------------------ adapters


def test_adapters_leave_the_weights_alone_and_change_them_by_a_low_rank(
    fitted: dict[str, FineTuning], tmp_path: Path
) -> None:
    counts = fitted["lora"].summary_["parameters"]
    assert 0 < counts["trained"] < 0.5 * counts["all"]
    assert fitted["full"].summary_["parameters"]["trained"] == fitted["full"].summary_["parameters"]["all"]
    narrow = make("lora", epochs=1, rank=2, targets=("query",)).fit(TEXTS, LABELS)
    before = load_file(tiny.build("bert") / "model.safetensors")
    after = load_file(narrow.export(tmp_path / "narrow") / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[f"bert.{name}"])}
    assert changed == {f"encoder.layer.{layer}.attention.self.query.weight" for layer in range(tiny.LAYERS)}
    for name in changed:
        assert torch.linalg.matrix_rank(after[f"bert.{name}"] - before[name], rtol=1e-3) <= 2


def test_the_extra_is_asked_for_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft is not installed. .*pip install 'sonde\[finetune\]'"):
        FineTuning("nowhere", "lora").fit(TEXTS, LABELS)
    make(epochs=1).fit(TEXTS, LABELS)  # all weights: without peft


@pytest.mark.parametrize(
    ("backbone", "kinds"), [("bert", "dense, key, query, value"), ("gpt2", "c_attn, c_fc, c_proj")]
)
def test_a_place_that_does_not_exist_is_answered_with_those_that_do(backbone: str, kinds: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make("lora", backbone, targets=("q_proj",)).fit(TEXTS, LABELS)
    assert f"targets names 'q_proj', but no linear map of {type_of(backbone)} is called so" in str(caught.value)
    assert f"Its linear maps are: {kinds}" in str(caught.value)


def type_of(backbone: str) -> str:
    return f"{tiny.ARCHITECTURES[backbone][0]}ForSequenceClassification"


# ------------------------------------------------------------------ export


def logits_of(folder: Path, classifier: FineTuning, texts: list[str]) -> np.ndarray:
    """Of the exported checkpoint, as transformers loads it."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return replace(classifier.tunable_, model=model).predict(classifier.tunable_.encode(texts))


@pytest.mark.parametrize("method", METHODS)
def test_the_export_is_the_same_model_and_a_backbone(
    method: str, fitted: dict[str, FineTuning], tmp_path: Path
) -> None:
    classifier = fitted[method]
    own = classifier.tunable_.predict(classifier.tunable_.encode(NEW_TEXTS))
    folder = classifier.export(tmp_path / "tuned")
    np.testing.assert_allclose(logits_of(folder, classifier, NEW_TEXTS), own, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "post", "1": "rail", "2": "weather"}
    settings: dict[str, Any] = {"cache": None, "dtype": "float32"}
    tuned = TextClassifier("stc-hidden", (str(folder),), **settings).fit(TEXTS, LABELS)
    assert tuned.score(NEW_TEXTS, NEW_LABELS) > 0.5
    assert np.array_equal(own, classifier.tunable_.predict(classifier.tunable_.encode(NEW_TEXTS)))  # a copy was merged
    with pytest.raises(ArgumentError, match="exists already; nothing was written"):
        classifier.export(folder)
    again = make(method).set_params(backbone=str(folder), epochs=1).fit(TEXTS, LABELS)  # goes on from there
    assert again.summary_["backbone"] == str(folder)


def test_files_of_the_tokenizer_are_copies(fitted: dict[str, FineTuning], tmp_path: Path) -> None:
    folder = fitted["full"].export(tmp_path / "tuned")
    source = tiny.build("bert")
    copied = {path.name for path in source.iterdir()} - {"config.json", "model.safetensors"}
    assert copied and all((folder / name).read_bytes() == (source / name).read_bytes() for name in copied)


def test_what_sentence_transformers_knows_of_a_backbone_is_kept_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny.build("bert"), source)
    (source / "checkpoint-9").mkdir()
    (source / "checkpoint-9" / "config.json").write_text("{}")
    classifier = make(epochs=np.int64(1)).set_params(backbone=str(source)).fit(TEXTS, LABELS)
    assert not (classifier.export(tmp_path / "plain") / "checkpoint-9").exists()
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    folder = classifier.export(tmp_path / "whole")
    assert load_backbone(str(folder), dtype="float32").sentence.pooling == "max"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", [name for name in tiny.ARCHITECTURES if name != "bert"])
def test_every_architecture_trains_and_exports(backbone: str, method: str, tmp_path: Path) -> None:
    classifier = make(method, backbone, epochs=1).fit(TEXTS[:40], LABELS[:40])
    texts = ["good", *NEW_TEXTS[:3], "", "the last </s> letter <|endoftext|> </s>"]
    own = classifier.tunable_.predict(classifier.tunable_.encode(texts))
    alone = np.concatenate([classifier.tunable_.predict(classifier.tunable_.encode([text])) for text in texts])
    np.testing.assert_allclose(own, alone, atol=1e-4)
    folder = classifier.export(tmp_path / "tuned")
    np.testing.assert_allclose(logits_of(folder, classifier, texts), own, atol=1e-4)
    linear = TextClassifier("linear", (str(folder),), cache=None, dtype="float32").fit(TEXTS[:40], LABELS[:40])
    assert linear.predict_proba(texts[:2]).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["bert", "llama", "bart"])
def test_mixed_precision_keeps_what_changes_in_float32(backbone: str, method: str) -> None:
    classifier = make(method, backbone, epochs=1, dtype="bfloat16").fit(TEXTS, LABELS)
    assert {one.dtype for one in classifier.tunable_.trained.values()} == {torch.float32}
    frozen = {one.dtype for one in classifier.tunable_.model.parameters() if not one.requires_grad}
    assert frozen == (set() if method == "full" else {torch.bfloat16})
    exact = make(method, backbone, epochs=1).fit(TEXTS, LABELS)
    np.testing.assert_allclose(classifier.predict_proba(NEW_TEXTS), exact.predict_proba(NEW_TEXTS), atol=0.1)


# ------------------------------------------------------------------ resuming


class Killed(BaseException):
    """What a watcher raises to stop a run; nothing in sonde catches it."""


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Break the fine-tuning off behind so many steps."""
    done = 0

    @contextmanager
    def watcher(stage: str, total: int | None, unit: str) -> Iterator[Any]:
        def advance(count: int) -> None:
            nonlocal done
            done += count
            if stage == "fine-tuning" and done >= steps:
                raise Killed

        yield advance

    with pytest.raises(Killed), watching(watcher):
        yield


def steps_of(classifier: FineTuning) -> int:
    """Steps that a fit takes, as its watcher counts them behind those that were done before."""
    seen: list[int] = []

    @contextmanager
    def watcher(stage: str, total: int | None, unit: str) -> Iterator[Any]:
        yield seen.append

    with watching(watcher):
        classifier.fit(TEXTS, LABELS)
    return sum(seen[1:])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_broken_off_ends_at_the_same_weights(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(stepping, "SAVE_SHARE", 0)
    whole = make(method, epochs=2).fit(TEXTS, LABELS)
    resumed = make(method, epochs=2, resume=tmp_path / "run")
    with stopped_after(16):  # within the second epoch
        resumed.fit(TEXTS, LABELS)
    seconds = _position(tmp_path / "run")["seconds"]
    assert 0 < steps_of(resumed) < whole.summary_["steps"] == 22
    for name, one in whole.tunable_.trained.items():
        assert torch.equal(one, resumed.tunable_.trained[name]), name
    assert whole.summary_["history"] == resumed.summary_["history"]
    took = resumed.summary_["training_seconds"]
    assert 0 < seconds < took < resumed.summary_["seconds"] + seconds
    assert steps_of(resumed) == 0  # it is done
    assert resumed.summary_["training_seconds"] == took, "of all attempts"
    np.testing.assert_array_equal(whole.predict_proba(NEW_TEXTS), resumed.predict_proba(NEW_TEXTS))


_CHILD = """
import sys
sys.path.insert(0, {tests!r})
from samples import worded
from sonde.baselines import FineTuning, finetuning, stepping
stepping.SAVE_SECONDS, stepping.SAVE_SHARE, stepping.LEAST_STEPS = 0.0, 0, 1
FineTuning({backbone!r}, {method!r}, learning_rate=3e-3, epochs=12, patience=12, batch_rows=8, dtype="float32",
           resume={folder!r}).fit(*worded(90))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_killed_ends_at_the_same_weights(method: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of whatever it does, then the rest in this process; against one that nobody stopped."""
    folder, backbone = tmp_path / "run", str(tiny.build("bert"))
    script = _CHILD.format(tests=str(Path(__file__).parent), backbone=backbone, method=method, folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 600
        while _step(folder) < 15:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert 15 <= _step(folder) < 132, "killed in the middle"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child: sums of floats depend on how they are split
    try:
        resumed = make(method, epochs=12, patience=12, resume=folder)
        assert steps_of(resumed) < 132 - 14
        whole = make(method, epochs=12, patience=12).fit(TEXTS, LABELS)
    finally:
        torch.set_num_threads(threads)
    assert resumed.summary_["history"] == whole.summary_["history"]
    for name, one in whole.tunable_.trained.items():
        assert torch.equal(one, resumed.tunable_.trained[name]), name


def _step(folder: Path) -> int:
    """Of the state that stands in the folder; 0 if there is none yet."""
    return int(_position(folder)["step"]) if (folder / "state.safetensors").is_file() else 0


def _position(folder: Path) -> dict[str, Any]:
    """Of the state that stands in the folder. Opened once ("pt" maps the file a second time, by its name, which by then
    may be that of the next state)."""
    with safe_open(folder / "state.safetensors", framework="np") as file:
        position = json.loads(file.metadata()["position"])
    assert isinstance(position, dict)
    return position


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    make(epochs=1, resume=tmp_path / "run").fit(TEXTS, LABELS)
    with pytest.raises(ArgumentError) as caught:
        make(epochs=1, resume=tmp_path / "run", learning_rate=0.25).fit([*TEXTS[:-1], "good"], LABELS)
    said = str(caught.value)
    assert "holds another run. It differs in learning_rate (0.003 there, 0.25 here), rows (other texts, labels" in said
    assert "Repeat that call to go on with it, or give another folder." in said


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArgumentError, match=r"is not the folder of a run. Give one that is new or empty"):
        make(resume=tmp_path).fit(TEXTS, LABELS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ArgumentError, match="is not the folder of a run"):
        make(resume=tmp_path / "notes.txt").fit(TEXTS, LABELS)


@pytest.mark.parametrize("name", ["state.safetensors", "run.json", "best-1.safetensors"])
def test_a_damaged_folder_is_refused(name: str, tmp_path: Path) -> None:
    make(epochs=1, resume=tmp_path / "run").fit(TEXTS, LABELS)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError, match=rf"{name} is cut or damaged .*Delete the folder, and train from the start"):
        make(epochs=1, resume=tmp_path / "run").fit(TEXTS, LABELS)


def test_a_state_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    make(epochs=1, resume=tmp_path / "a").fit(TEXTS, LABELS)
    make("lora", epochs=1, resume=tmp_path / "b").fit(TEXTS, LABELS)
    (tmp_path / "a" / "state.safetensors").replace(tmp_path / "b" / "state.safetensors")
    with pytest.raises(ModelError, match=r"the state in .* does not fit the model"):
        make("lora", epochs=1, resume=tmp_path / "b").fit(TEXTS, LABELS)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "half"}, "method 'half' is unknown; it must be one of: full, lora"),
        ({"metric": "auc"}, "metric 'auc' is unknown"),
        ({"long_text": "windows"}, "long_text 'windows' is unknown; it must be one of: cut, head_tail"),
        ({"class_weight": "heavy"}, "class_weight 'heavy' is unknown"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"patience": 1.5}, "patience is 1.5"),
        ({"batch_rows": True}, "batch_rows is True"),
        ({"rank": 0}, "rank is 0"),
        ({"random_state": None}, "random_state is None"),
        ({"learning_rate": -1}, "learning_rate is -1; it must be a number above 0"),
        ({"alpha": "big"}, "alpha is 'big'"),
        ({"targets": "query", "method": "lora"}, "targets is 'query'; give a tuple of names"),
        ({"targets": ("query",)}, "method='full' trains every weight"),
        ({"backbone": ("a", "b")}, "give one hub id or folder, as a string"),
    ],
)
def test_arguments_are_judged_before_anything_is_read(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        FineTuning(**{"backbone": "nowhere", **settings}).fit(TEXTS, LABELS)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "labels", "sentence"),
    [
        (["a", "b"], ["x", "x"], "have only one class, 'x'"),
        (["a", "b"], ["x"], "There are 2 texts and 1 labels"),
        ("one text", ["x"], "texts is one string"),
        ([], [], "There are no labels"),
    ],
)
def test_rows_are_judged_before_anything_is_read(texts: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        FineTuning("nowhere").fit(texts, labels)


def test_backbones_that_cannot_be_fine_tuned_say_so() -> None:
    with pytest.raises(BackboneError, match="is neither a local folder nor in the local cache"):
        FineTuning("nobody/nothing").fit(TEXTS, LABELS)
    settings = {**tiny._BART, "max_position_embeddings": tiny.POSITIONS}
    headless = tiny.save("marian", "Marian", "roberta", settings)
    with pytest.raises(BackboneError) as caught:
        FineTuning(str(headless)).fit(TEXTS, LABELS)
    assert "transformers has no classification head for this encoder-decoder (marian)" in str(caught.value)
    assert "families of BART and T5" in str(caught.value) and "TextClassifier" in str(caught.value)


def test_after_a_fit_that_failed_it_is_not_fitted() -> None:
    classifier = FineTuning("nobody/nothing")
    with pytest.raises(BackboneError):
        classifier.fit(TEXTS, LABELS)
    for asked in (classifier.predict, classifier.predict_proba, classifier.decision_function, classifier.export):
        with pytest.raises(NotFittedError):
            asked(TEXTS)  # type: ignore[arg-type]


def test_rows_without_a_weight_cannot_train() -> None:
    weights = {"post": 0.0, "rail": 0.0, "weather": 1.0}
    texts, labels = [*TEXTS[:3], *TEXTS[3::3]], [*LABELS[:3], *LABELS[3::3]]
    with pytest.raises(ArgumentError, match="class_weight is 0 for every class that the training rows have"):
        make(class_weight=weights).fit(
            texts, labels, sample_weight=[1.0, 1.0, 0.0] + [1.0] * (len(texts) - 3), validation=(TEXTS, LABELS)
        )


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    whole = transformers.T5EncoderModel.from_pretrained(tiny.build("t5"))
    whole.save_pretrained(tmp_path)
    tiny.tokenizer_of("t5").save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"its checkpoint lacks \d+ weights, such as transformer.decoder"):
        FineTuning(str(tmp_path)).fit(TEXTS, LABELS)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"max_tokens is 99, but .* has 64 positions. Give at most 64."):
        make(max_tokens=99).fit(TEXTS, LABELS)
    with pytest.raises(ArgumentError, match="max_tokens is 1; it must be a whole number of at least 4"):
        make(max_tokens=1).fit(TEXTS, LABELS)
