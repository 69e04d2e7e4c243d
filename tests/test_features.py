from typing import Any

import numpy as np
import pandas
import polars
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from test_extract import counted
from tiny import SENTENCES, build

from sonde.errors import ArgumentError, BackboneError, DataError, SondeWarning, StoreError
from sonde.features import ActivationFeatures
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources

__all__ = ["counted"]  # a fixture
LABELS = [0, 1, 0, 1, 0, 1]


def features(site="hidden.-1", pooling="mean", names=("bert",), **more):
    settings = {"dtype": "float32", "device": "cpu", "cache": False, **more}
    return ActivationFeatures(site, pooling, tuple(str(build(name)) for name in names), **settings)


def test_columns_are_blocks_side_by_side():
    made = features("hidden.1:3", ("mean", "max"), ("bert", "llama"))
    matrix = made.fit_transform(SENTENCES)
    assert made.blocks_ == tuple(f"{b}/hidden.{layer}/{p}" for b in (0, 1) for p in ("mean", "max") for layer in (1, 2))
    assert made.widths_ == (32,) * 8
    assert matrix.shape == (6, 8 * 32)
    assert matrix.dtype == np.float32
    sources = open_sources({1: str(build("llama"))}, max_tokens=None, long_text="cut", dtype="float32", device="cpu")
    expected = read(SENTENCES, sources, expand_blocks(1, sources[1], "hidden.2", "max"))
    np.testing.assert_allclose(matrix[:, 7 * 32 :], expected.blocks["1/hidden.2/max"], rtol=1e-5, atol=1e-6)


def test_widths_may_differ_and_every_column_has_a_name():
    made = features("ffn.1", ("mean", "mean"), ("bert", "opt")).fit(SENTENCES)
    names = made.get_feature_names_out()
    assert made.blocks_ == ("0/ffn.1/mean", "1/ffn.1/mean")
    assert list(names[:2]) == ["0/ffn.1/mean/0", "0/ffn.1/mean/1"]
    assert names[-1] == f"1/ffn.1/mean/{made.widths_[1] - 1}"
    assert len(names) == len(set(names)) == made.transform(SENTENCES).shape[1] == sum(made.widths_)


def test_sentence_and_pooler_take_no_pooling():
    made = features("sentence", names=("bert", "llama")).fit(SENTENCES)
    assert made.blocks_ == ("0/sentence", "1/sentence")
    assert made.get_feature_names_out()[0] == "0/sentence/0"
    assert made.transform(SENTENCES).shape == (6, 64)


def test_in_a_pipeline_that_gives_pandas():
    pipeline = Pipeline([("features", features()), ("head", LogisticRegression())])
    pipeline.set_output(transform="pandas")
    pipeline.fit(SENTENCES, LABELS)
    frame = pipeline[:-1].transform(SENTENCES)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(pipeline[0].get_feature_names_out())
    plain = Pipeline([("features", features()), ("head", LogisticRegression())]).fit(SENTENCES, LABELS)
    assert pipeline.predict(SENTENCES).tolist() == plain.predict(SENTENCES).tolist()
    series = pandas.Series(SENTENCES, index=list("abcdef"))
    assert list(pipeline[:-1].transform(series).index) == list("abcdef")


def test_in_a_grid_search_over_sites():
    search = GridSearchCV(
        make_pipeline(features(), LogisticRegression()),
        {
            "activationfeatures__site": ["hidden.0", "hidden.3"],
            "activationfeatures__pooling": ["mean", ("mean", "max")],
        },
        cv=2,
        error_score="raise",
    )
    search.fit(SENTENCES, LABELS)
    assert len(search.cv_results_["params"]) == 4


def test_clone_copies_every_parameter():
    made = features("ffn.*", ("max", "last"), max_tokens=16, long_text="windows")
    copied = clone(made)
    assert copied.get_params() == made.get_params()
    assert not hasattr(copied, "blocks_")
    np.testing.assert_array_equal(copied.fit_transform(SENTENCES), made.fit_transform(SENTENCES))


def test_texts_may_come_in_any_sequence():
    made = features().fit(SENTENCES)
    expected = made.transform(SENTENCES)
    for kind in (tuple, np.array, pandas.Series, polars.Series, lambda t: np.array(t, dtype=object)):
        np.testing.assert_array_equal(made.transform(kind(SENTENCES)), expected)


def test_no_texts_are_no_rows():
    made = features().fit(SENTENCES)
    assert made.transform([]).shape == (0, 32)


def test_features_go_through_the_store(tmp_path, counted):
    made = features(cache=tmp_path).fit(SENTENCES)
    sources = open_sources({0: str(build("bert"))}, max_tokens=None, long_text="cut", dtype="float32", device="cpu")
    seen = counted(sources[0].backbone)
    first = made.transform(SENTENCES)
    assert sum(rows for rows, _ in seen) == 6
    np.testing.assert_array_equal(made.transform(SENTENCES[::-1]), first[::-1])
    assert sum(rows for rows, _ in seen) == 6
    np.testing.assert_allclose(features().fit_transform(SENTENCES), first, rtol=1e-5)
    assert sum(rows for rows, _ in seen) == 12


def test_not_fitted():
    for use in (lambda made: made.transform(SENTENCES), lambda made: made.get_feature_names_out()):
        with pytest.raises(NotFittedError):
            use(features())


@pytest.mark.parametrize(
    ("made", "error", "sentence"),
    [
        (lambda: features("hidden.7"), BackboneError, r"'hidden\.7' is out of range\. It has hidden\.0 to hidden\.3"),
        (lambda: features("hiden.*"), BackboneError, r"Site 'hiden\.\*' is unknown\. It has"),
        (lambda: features("hidden.x"), BackboneError, "after the dot stands"),
        (lambda: features("decoder.hidden.1"), BackboneError, "this backbone has one stack"),
        (lambda: features(pooling="avg"), BackboneError, "'avg' is unknown; it must be one of: mean, max, first, last"),
        (lambda: features(pooling=()), ArgumentError, r"pooling is \(\); give one or several of: mean, max"),
        (lambda: features(pooling="first", names=("llama",)), BackboneError, "'first' at .* is refused"),
        (lambda: features(names=()), ArgumentError, "give a tuple of hub ids or folders"),
        (lambda: ActivationFeatures(backbones=(3,)), ArgumentError, "give a tuple of hub ids or folders"),
        (lambda: features(max_tokens=2), ArgumentError, "max_tokens is 2; it must be a whole number of at least 4"),
        (lambda: features(long_text="all"), ArgumentError, "must be one of: cut, head_tail, windows"),
        (lambda: features(dtype="float8"), ArgumentError, "'float8' is unknown; it must be one of: auto, float32"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_at_fit(made, error, sentence):
    with pytest.raises(error, match=sentence):
        made().fit(SENTENCES)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ("one string", "texts is one string; give a list of strings"),
        ([*SENTENCES, 3], r"row 7 is 3 \(int\) where text is due"),
        ([None], "row 1 is None"),
        (np.zeros((2, 2)), r"not ndarray of shape \(2, 2\)"),
        ({"a": 1}, "must be a list of strings, not dict"),
        (5, "must be a list of strings, not int"),
    ],
)
def test_what_is_no_list_of_texts_is_said(texts, sentence):
    with pytest.raises(DataError, match=sentence):
        features().fit(texts)
    with pytest.raises(DataError, match=sentence):
        features().fit(SENTENCES).transform(texts)


def test_a_saved_model_is_refused_as_a_cache(tmp_path):
    (tmp_path / "sonde.json").write_text("{}")
    with pytest.raises(StoreError, match="is a saved model"):
        features(cache=tmp_path).fit(SENTENCES).transform(SENTENCES)


def test_several_sites_stand_side_by_side_and_cut_texts_are_told() -> None:
    settings: dict[str, Any] = {"backbones": (str(build("bert")),), "dtype": "float32", "cache": None}
    both = ActivationFeatures(("hidden.1", "hidden.2"), **settings).fit_transform(["my parcel", "a train"])
    apart = [
        ActivationFeatures(site, **settings).fit_transform(["my parcel", "a train"])
        for site in ("hidden.1", "hidden.2")
    ]
    assert np.array_equal(both, np.concatenate(apart, axis=1))
    for odd in ((), 3, ("hidden.1", 2)):
        with pytest.raises(ArgumentError, match=r"site is .*; give one or several"):
            ActivationFeatures(odd, **settings).fit(["a"])
    with pytest.warns(SondeWarning, match="1 texts are longer than the model reads"):
        ActivationFeatures(max_tokens=8, **settings).fit_transform(["my parcel " * 30, "short"])


def test_a_frame_is_refused_with_its_column_named() -> None:
    pd = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=r"Take one of its columns, such as \['text'\]"):
        ActivationFeatures().fit(pd.DataFrame({"text": ["a"]}))
