"""Scores as sums: exact for every linear model, near for networks, whatever the direction."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sonde.errors import ModelError
from sonde.learn.attribution import Attribution, attributor
from sonde.learn.blend import Blend
from sonde.learn.contrast import contrast
from sonde.learn.fusion import ROWS, Roles
from sonde.learn.head import DEFAULT, PAPER, FusionHead, FusionNetwork
from sonde.learn.importance import importance, lacks_widths
from sonde.learn.lexical import Lexical
from sonde.learn.logistic import Logistic
from sonde.learn.ngrams import CHARS, WORDS, learn
from sonde.learn.occurrences import occurrences
from sonde.learn.sparse import Sparse
from sonde.learn.tfidf import weigh

TEXTS = [
    "The parcel is late, the parcel is lost!",
    "A refund of  the parcel\tplease",
    "ΟΔΟΣ and İstanbul: refund, refund.",
    "late late\nlate",
    "一二三 一二 parcel",
]
WIDTHS = {"0/hidden.1/mean": 4, "0/hidden.1/max": 4, "0/ffn.2/mean": 6, "1/sentence": 3}
CLASSES = 5


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def logistic(rng: np.random.Generator, needs: Sequence[str] = tuple(WIDTHS)) -> Logistic:
    features = sum(WIDTHS[name] for name in needs)
    scale = np.abs(drawn(rng, features))
    scale[0] = 0
    return Logistic(tuple(needs), drawn(rng, features), scale, drawn(rng, features, CLASSES), drawn(rng, CLASSES))


def sparse(rng: np.random.Generator) -> Sparse:
    columns = {
        "0/ffn.2/mean": np.array([5, 0, 2]),
        "0/hidden.1/max": np.array([], dtype=np.int64),
        "1/sentence": np.array([1]),
    }
    arrays = drawn(rng, 4), np.abs(drawn(rng, 4)), drawn(rng, 4, CLASSES), drawn(rng, CLASSES)
    return Sparse(tuple(columns), columns, *arrays)


def lexical(rng: np.random.Generator) -> Lexical:
    learned = [weigh(*learn(kind, TEXTS)) for kind in (WORDS, CHARS)]
    features = sum(len(block.columns) for block in learned)
    return Lexical(tuple(learned), drawn(rng, features, CLASSES), drawn(rng, CLASSES))


def fusion(rng: np.random.Generator, row: int, paper: bool = False) -> FusionHead:
    names = Roles(("0/hidden.2/mean", "0/hidden.1/mean"), ("1/sentence", "2/sentence") if row >= 5 else ())
    names = Roles(names.deep[:1], ()) if row == 1 else names
    widths = Roles(tuple(8 for _ in names.deep), tuple(6 for _ in names.sentences))
    setting = PAPER if paper else DEFAULT
    torch.manual_seed(row)
    network = FusionNetwork(row, widths, CLASSES, setting).eval()
    for to in network.standardise:
        to.mean.copy_(_tensor(rng, 8 if to.mean.shape[0] == 8 else 6))  # type: ignore[operator, union-attr]
    return FusionHead(names, row, CLASSES, network, setting)


def _tensor(rng: np.random.Generator, size: int) -> Any:
    return torch.from_numpy(drawn(rng, size))


def total(found: Attribution, blocks: Mapping[str, np.ndarray]) -> float:
    parts = sum(float(((blocks[p.block][0] - p.centre) * p.weights).sum()) for p in found.parts)
    return found.bias + parts + sum(gram.contribution for gram in found.grams)


@pytest.mark.parametrize("make", [logistic, sparse, lexical])
@pytest.mark.parametrize("text", TEXTS)
def test_linear_models_are_sums(make: Any, text: str) -> None:
    rng = np.random.default_rng(0)
    model, direction = make(rng), rng.normal(size=CLASSES)
    blocks = {name: drawn(rng, 1, width) for name, width in WIDTHS.items()}
    found = attributor(model)(direction, blocks, text)
    assert found.exact
    assert total(found, blocks) == pytest.approx(float(model.logits(blocks, [text])[0] @ direction), abs=1e-5)


def test_neurons_that_a_sparse_model_leaves_out_have_no_weight() -> None:
    rng = np.random.default_rng(1)
    blocks = {name: drawn(rng, 1, width) for name, width in WIDTHS.items()}
    found = attributor(sparse(rng))(rng.normal(size=CLASSES), blocks, "")  # type: ignore[arg-type]
    used = {part.block: np.flatnonzero(part.weights).tolist() for part in found.parts}
    assert used == {"0/ffn.2/mean": [0, 2, 5], "0/hidden.1/max": [], "1/sentence": [1]}


def test_blends_of_all_kinds_are_sums() -> None:
    rng = np.random.default_rng(2)
    children = (logistic(rng), sparse(rng), lexical(rng))
    model, direction = Blend(("a", "b", "c"), children, (0.3, 1.1, 0.6)), rng.normal(size=CLASSES)  # type: ignore[arg-type]
    blocks = {name: drawn(rng, 1, width) for name, width in WIDTHS.items()}
    found = attributor(model)(direction, blocks, TEXTS[0])
    assert found.exact and len(found.parts) == 4 + 3
    assert total(found, blocks) == pytest.approx(float(model.logits(blocks, [TEXTS[0]])[0] @ direction), abs=1e-5)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("row", [1, 2, 3, 4, 11, 14, 15])
def test_networks_are_nearly_sums_and_say_so(row: int, paper: bool) -> None:
    assert row in ROWS
    rng = np.random.default_rng(row)
    model, direction = fusion(rng, row, paper), rng.normal(size=CLASSES)
    widths = [*model.network.widths.deep, *model.network.widths.sentences]
    blocks = {name: drawn(rng, 1, width) for name, width in zip(model.needs, widths, strict=True)}
    found = attributor(model)(direction, blocks, "")
    score = float(model.logits(blocks, [""])[0] @ direction)
    assert not found.exact and abs(score - found.bias) > 1e-3
    assert total(found, blocks) == pytest.approx(score, abs=0.01 * abs(score - found.bias) + 1e-4)
    mixed = Blend(("a", "b"), (model, lexical(rng)), (1.0, 1.0))
    assert not attributor(mixed)(direction, blocks, "late").exact


def test_models_without_an_explanation_are_refused() -> None:
    with pytest.raises(
        ModelError, match="kind object cannot be explained; these can: Logistic, Sparse, Lexical, Blend"
    ):
        attributor(object())  # type: ignore[arg-type]


# ---------------------------------------------------------------- n-grams


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=4))
def test_occurrences_are_those_that_are_counted(texts: list[str]) -> None:
    texts = [*texts, *texts]  # so that every n-gram stands in two
    for kind in (WORDS, CHARS):
        vocabulary, counts = learn(kind, texts)
        names = vocabulary.strings()
        for row, text in enumerate(texts):
            counted = {names[i]: n for i, n in zip(*_row(counts, row), strict=True)}
            assert {gram: len(places) for gram, places in occurrences(text, kind).items()} == counted


def _row(counts: Any, row: int) -> tuple[list[int], list[int]]:
    own = counts[[row]]
    return own.indices.tolist(), own.data.tolist()


def test_occurrences_stand_where_they_say() -> None:
    text = "İs late.\n Late"
    words, chars = occurrences(text, WORDS), occurrences(text, CHARS)
    assert words["late"] == ((3, 4, 5, 6), (10, 11, 12, 13)) and words["late ."] == ((3, 4, 5, 6, 7),)
    assert occurrences("İs", CHARS)["i\u0307s"] == ((0, 1),)  # İ becomes two characters in lower case
    assert chars[" la"] == ((3, 4), (10, 11)) and chars["te."] == ((5, 6, 7),) and chars["te "] == ((12, 13),)
    assert occurrences("x" * 700, CHARS)["xx"][-1] == (598, 599) and not occurrences(" ", CHARS)


# --------------------------------------------------------------- contrast


def test_contrasts_are_log_odds_along_their_gradient() -> None:
    rng = np.random.default_rng(0)
    for logits in (rng.normal(size=6) * 3, np.array([2.0, -1e4, 0.5]), np.array([-1.0, 1.0])):
        odds = np.exp(logits - np.logaddexp.reduce(logits))
        found = contrast(logits, 0)
        assert found.score == pytest.approx(np.log(odds[0]) - np.log(odds[1:].sum()))
        assert found.probability == pytest.approx(odds[0])
        assert float(found.direction @ logits) + found.constant == pytest.approx(found.score)
        assert found.direction.sum() == pytest.approx(0)
        for column in range(len(logits)):
            step = np.eye(len(logits))[column] * 1e-6
            slope = (contrast(logits + step, 0).score - contrast(logits - step, 0).score) / 2e-6
            assert slope == pytest.approx(found.direction[column], abs=1e-5)
    assert contrast(np.array([-1.0, 1.0]), 1).constant == pytest.approx(0)


def test_contrasts_of_two_labels_and_of_one() -> None:
    logits = np.array([1.0, -2.0, 0.5])
    pair = contrast(logits, 1, 0)
    assert (pair.score, pair.constant, pair.direction.tolist()) == (-3.0, 0.0, [-1.0, 1.0, 0.0])
    assert pair.probability == pytest.approx(contrast(logits, 1).probability)
    alone = contrast(logits, 1, multilabel=True)
    assert (alone.score, alone.direction.tolist()) == (-2.0, [0.0, 1.0, 0.0])
    assert alone.probability == pytest.approx(1 / (1 + np.exp(2)))


# ------------------------------------------------------------- importance


def test_importance_is_the_share_of_squared_weights() -> None:
    rng = np.random.default_rng(3)
    model = logistic(rng)
    assert lacks_widths(model)
    found = importance(model, WIDTHS)
    squares = (model.coefficients**2).sum(axis=1) * (model.scale > 0)
    np.testing.assert_allclose(np.concatenate([one.shares for one in found]), squares[1:] / squares.sum(), rtol=1e-5)
    assert found[0].neurons.tolist() == [1, 2, 3] and found[0].width == 4  # neuron 0 has scale 0
    assert [one.block for one in found] == list(WIDTHS)


def test_importance_of_sparse_models_and_blends() -> None:
    rng = np.random.default_rng(4)
    kept = sparse(rng)
    alone = {one.block: one for one in importance(kept, {})}  # type: ignore[arg-type]
    assert alone["0/ffn.2/mean"].neurons.tolist() == [0, 2, 5] and alone["0/ffn.2/mean"].width is None
    squares = (kept.coefficients**2).sum(axis=1)
    np.testing.assert_allclose(alone["0/ffn.2/mean"].shares, squares[[1, 2, 0]] / squares.sum(), rtol=1e-5)
    same = logistic(rng, ("0/hidden.1/mean", "0/hidden.1/max"))
    blend = Blend(("a", "b", "c"), (same, kept, lexical(rng)), (2.0, 1.0, 1.0))  # type: ignore[arg-type]
    assert not lacks_widths(blend)  # both blocks of the dense one are equally wide
    found = {one.block: one for one in importance(blend, {})}
    assert sum(float(one.shares.sum()) for one in found.values()) == pytest.approx(1)
    assert list(found) == ["0/hidden.1/mean", "0/hidden.1/max", "0/ffn.2/mean", "1/sentence"]
    dense = 4 * (same.coefficients**2).sum(axis=1) * (same.scale > 0)
    expected = dense[:4].sum() / (dense.sum() + squares.sum())
    assert found["0/hidden.1/mean"].shares.sum() == pytest.approx(expected, rel=1e-5)
    assert importance(lexical(rng), {}) == [] == importance(fusion(rng, 1), {})
