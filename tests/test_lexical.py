import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.pipeline import FeatureUnion
from sklearn.svm import LinearSVC

from sonde.learn import lexical, tfidf
from sonde.learn.calibration import fit_temperature
from sonde.learn.lexical import Lexical
from sonde.learn.ngrams import CHARS, WORDS, Kind, learn
from sonde.learn.problem import Outcome, Problem
from sonde.learn.splitting import make_folds, validation_folds
from sonde.learn.targets import encode
from sonde.learn.tokens import characters, words

STRANGE = [
    "",
    "a",
    "  \t ",
    "\x00 nul \x00 nul",
    "我喜欢这个 产品",
    "我喜欢这个",
    "\ud800x y",
    "\ud800x y z",
    "É é e\u0301!",
    "I I. i",
]
WORD_TOKENS: dict[str, Any] = {"tokenizer": words, "token_pattern": None, "ngram_range": (1, 2), "min_df": 2}
CHAR_TOKENS: dict[str, Any] = {"analyzer": "char_wb", "preprocessor": characters, "ngram_range": (2, 5), "min_df": 2}


def problem(
    texts: Sequence[str], labels: Sequence[Any], weights: Sequence[float] | None = None, **changes: Any
) -> Problem:
    targets = encode(labels)
    folds = make_folds(texts, targets, seed=0)
    weight = np.ones(len(texts)) if weights is None else np.array(weights, dtype=np.float64)
    return replace(Problem({}, texts, targets, weight, folds, "accuracy", 0), **changes)


def accuracy(outcome: Outcome, given: Problem) -> float:
    seen = np.isfinite(outcome.held_out).all(axis=1)
    return float((outcome.held_out[seen].argmax(axis=1) == given.targets.ids[seen]).mean())


@pytest.mark.parametrize(("kind", "tokens"), [(WORDS, WORD_TOKENS), (CHARS, CHAR_TOKENS)])
def test_counts_are_those_of_scikit_learn(texts: list[str], kind: Kind, tokens: dict[str, Any]) -> None:
    train, other = texts[:40] + STRANGE, texts[40:] + STRANGE[::-1]
    vocabulary, counts = learn(kind, train)
    slow = CountVectorizer(**tokens)
    expected = slow.fit_transform(train)
    order = [slow.vocabulary_[gram] for gram in vocabulary.strings()]
    assert sorted(order) == list(range(expected.shape[1]))
    assert (counts.toarray() == expected.toarray()[:, order]).all()
    assert (vocabulary.count(train).toarray() == counts.toarray()).all()
    assert (vocabulary.count(other).toarray() == slow.transform(other).toarray()[:, order]).all()


def test_features_of_a_fold_are_those_of_vectorisers_fitted_inside_it(texts: list[str], labels: list[str]) -> None:
    given = problem(texts, labels)
    counted = [learn(kind, texts) for kind in (WORDS, CHARS)]
    for fold in range(given.folds.n_folds):
        train, held = given.folds.train(fold), given.folds.held_out(fold)
        blocks, parts = lexical._features(counted, given, train)
        unseen = [block.features(counts[held]) for block, (_, counts) in zip(blocks, counted, strict=True)]
        slow = FeatureUnion(
            [
                (name, TfidfVectorizer(sublinear_tf=True, **kind))
                for name, kind in [("w", WORD_TOKENS), ("c", CHAR_TOKENS)]
            ]
        )
        expected = slow.fit_transform([text for text, kept in zip(texts, train, strict=True) if kept]).toarray()
        names = [f"w__{gram}" for gram in blocks[0].strings()] + [f"c__{gram}" for gram in blocks[1].strings()]
        order = [list(slow.get_feature_names_out()).index(name) for name in names]
        assert len(order) == expected.shape[1]
        np.testing.assert_allclose(hstack(parts).toarray(), expected[:, order], atol=1e-6)
        expected = slow.transform([text for text, out in zip(texts, held, strict=True) if out]).toarray()
        np.testing.assert_allclose(hstack(unseen).toarray(), expected[:, order], atol=1e-6)


def test_the_final_model_is_a_linear_svm_on_those_features(texts: list[str], labels: list[str]) -> None:
    outcome = lexical.fit(problem(texts, labels), grid=[1.0], shares=[0.5])
    union = FeatureUnion(
        [
            ("w", TfidfVectorizer(sublinear_tf=True, **WORD_TOKENS)),
            ("c", TfidfVectorizer(sublinear_tf=True, **CHAR_TOKENS)),
        ],
        transformer_weights={"c": 0.5},
    )
    machine = LinearSVC(C=1.0, tol=1e-6).fit(union.fit_transform(texts), labels)
    unseen = ["Fry the garlic in butter", "plant the roses in the garden bed", "the train to the airport"]
    expected = machine.decision_function(union.transform(unseen)) / outcome.summary["temperature"]
    np.testing.assert_allclose(outcome.model.logits({}, unseen), expected, atol=0.2)


def test_held_out_texts_play_no_part_in_the_fold_model(texts: list[str], labels: list[str]) -> None:
    given = problem(texts, labels)
    changed = [
        text if held else text + " zebra zebra" for text, held in zip(texts, given.folds.held_out(2), strict=True)
    ]
    other = problem(changed, labels, folds=given.folds)
    plain = lexical.fit(given, grid=[1.0], shares=[1.0])
    # one held-out row replaced: the logits of the others of its fold stay, up to the temperature that all rows share
    row = int(np.flatnonzero(given.folds.held == 2)[0])
    swapped = problem([*texts[:row], "zebra" * 40, *texts[row + 1 :]], labels, folds=given.folds)
    again = lexical.fit(swapped, grid=[1.0], shares=[1.0])
    rest = (given.folds.held == 2) & (np.arange(len(texts)) != row)
    np.testing.assert_allclose(
        again.held_out[rest] * again.summary["temperature"],
        plain.held_out[rest] * plain.summary["temperature"],
        atol=1e-5,
    )
    assert not np.allclose(lexical.fit(other, grid=[1.0], shares=[1.0]).held_out, plain.held_out)


@pytest.fixture
def topics(texts: list[str], labels: list[str]) -> list[str]:
    """Two hundred and forty texts of six words, each drawn from the sixty texts of its class."""
    words = {name: " ".join(t for t, n in zip(texts, labels, strict=True) if n == name).split() for name in set(labels)}
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(words[name], 6)) for name in labels * 4]


def test_it_learns_and_permuted_labels_teach_nothing(topics: list[str], labels: list[str]) -> None:
    given = problem(topics, labels * 4)
    assert accuracy(lexical.fit(given), given) > 0.75
    shuffled = problem(topics, np.random.default_rng(1).permutation(labels * 4).tolist())
    assert accuracy(lexical.fit(shuffled), shuffled) < 0.5


def test_out_of_fold_logits_are_calibrated(topics: list[str], labels: list[str]) -> None:
    given = problem(topics, labels * 4)
    held_out, choosing = lexical.fit(given).held_out, given.folds.choosing
    assert fit_temperature(held_out[choosing], given.targets.take(choosing), given.weights[choosing]) == pytest.approx(
        1, rel=0.2
    )  # few rows: the prior is felt


@pytest.mark.parametrize("strange", [STRANGE, ["我们去机场坐飞机", "机票太贵了", "汤里盐太多", "面包没有发起来"] * 5])
def test_any_text_is_read(texts: list[str], labels: list[str], strange: list[str]) -> None:
    given = problem([*texts, *strange], [*labels, *("travel" for _ in strange)])
    outcome = lexical.fit(given)
    assert np.isfinite(outcome.model.logits({}, [*strange, "x" * 10**5])).all()


def test_texts_without_a_common_ngram_give_the_class_frequencies() -> None:
    outcome = lexical.fit(problem(["", " ", "", "", "", "\t"] * 4, ["a", "b", "a", "a", "a", "a"] * 4))
    logits = outcome.model.logits({}, ["anything"])
    assert logits.shape == (1, 2) and logits[0, 0] > logits[0, 1]


def test_doubled_weight_is_a_repeated_row(texts: list[str], labels: list[str]) -> None:
    weights = [2.0 if row % 7 == 3 else 1.0 for row in range(len(texts))]
    again = [row for row, weight in enumerate(weights) if weight == 2]
    weighted = lexical.fit(problem(texts, labels, weights))
    repeated = lexical.fit(problem(texts + [texts[row] for row in again], labels + [labels[row] for row in again]))
    unseen = ["Fry the garlic in butter", "plant the roses", "the train to the airport"]
    np.testing.assert_array_equal(weighted.model.logits({}, unseen), repeated.model.logits({}, unseen))
    assert (lexical.fit(problem(texts, labels)).model.logits({}, unseen) != weighted.model.logits({}, unseen)).any()


def test_rows_of_weight_zero_teach_nothing(texts: list[str], labels: list[str]) -> None:
    extra = ["zebra lion", "zebra tiger"]
    folds = make_folds(texts, encode(labels), seed=0)
    longer = replace(
        folds,
        held=np.append(folds.held, [-1, -1]),
        trainable=np.append(folds.trainable, [True, True]),
        conformal=np.append(folds.conformal, [False, False]),
    )
    weights = np.append(np.ones(len(texts)), [0.0, 0.0])
    silent = lexical.fit(problem([*texts, *extra], [*labels, "travel", "travel"], weights.tolist(), folds=longer))
    np.testing.assert_array_equal(
        silent.model.logits({}, texts), lexical.fit(problem(texts, labels)).model.logits({}, texts)
    )


def test_two_classes_give_two_opposite_columns(texts: list[str], labels: list[str]) -> None:
    outcome = lexical.fit(problem(texts, [label == "garden" for label in labels]))
    logits = outcome.model.logits({}, texts)
    np.testing.assert_allclose(logits[:, 0], -logits[:, 1], atol=1e-6)


def test_several_labels_per_row(topics: list[str], labels: list[str]) -> None:
    given = problem(
        [f"{a} {b}" for a, b in pairwise(topics)],
        [[a, b] for a, b in pairwise(labels * 4)],
    )
    assert given.targets.multilabel
    outcome = lexical.fit(given)
    seen = np.isfinite(outcome.held_out).all(axis=1)
    assert ((outcome.held_out[seen] > 0) == (given.targets.indicator[seen] > 0)).mean() > 0.8


def test_a_validation_set_chooses_and_does_not_train(texts: list[str], labels: list[str]) -> None:
    targets = encode(labels)
    folds = validation_folds(40, targets, seed=0)
    outcome = lexical.fit(problem(texts, labels, folds=folds))
    assert np.isnan(outcome.held_out[:40]).all() and np.isfinite(outcome.held_out[40:]).all()
    np.testing.assert_allclose(outcome.model.logits({}, texts[40:]), outcome.held_out[40:], rtol=1e-5)
    assert outcome.summary["rows"] == 40


def test_characters_have_no_part_if_their_share_is_zero(texts: list[str], labels: list[str]) -> None:
    words = lexical.fit(problem(texts, labels), shares=[0.0]).model
    assert isinstance(words, Lexical)
    assert [block.vocabulary.kind.name for block in words.blocks] == ["word"]
    assert words.coefficients.shape == (len(words.strings()), 3)


def test_the_most_frequent_ngrams_are_kept(
    texts: list[str], labels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfidf, "MAX_FEATURES", 20)
    model = lexical.fit(problem(texts, labels), shares=[0.0]).model
    assert isinstance(model, Lexical)
    assert 0 < len(model.strings()) <= 20
    assert {"the", "."} <= set(model.strings())


@pytest.mark.parametrize("shares", [[0.0], [0.5]])
def test_a_record_gives_identical_logits(texts: list[str], labels: list[str], shares: list[float]) -> None:
    model = lexical.fit(problem([*texts, *STRANGE], [*labels, *("travel" for _ in STRANGE)]), shares=shares).model
    again = Lexical.from_record(model.record())
    np.testing.assert_array_equal(again.logits({}, texts + STRANGE), model.logits({}, texts + STRANGE))


def test_it_loads_no_torch() -> None:
    code = "import sys; import sonde.learn.lexical; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_characters_are_read_up_to_a_limit_and_words_to_the_end(topics: list[str], labels: list[str]) -> None:
    long = [f"{text} {'x' * 600} {name}" for text, name in zip(topics, labels * 4, strict=True)]
    outcome = lexical.fit(problem(long, labels * 4), grid=[1.0], shares=[1.0])
    assert outcome.summary["texts_cut"] == {"word": 0, "char": 240}
    model = outcome.model
    assert isinstance(model, Lexical) and "kitchen" in model.blocks[0].strings()
    assert not any(gram.startswith(" kitch") for gram in model.blocks[1].strings())
