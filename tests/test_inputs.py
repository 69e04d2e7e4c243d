"""Texts, labels and weights as users hand them over: what is taken, what is refused, what is warned about."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sonde.errors import ArgumentError, DataError, SondeWarning
from sonde.inputs import HUGE_CHARACTERS, as_texts, as_weights, present

CONTAINERS = [list, tuple, np.array, lambda rows: np.array(rows, dtype=object), pd.Series, pl.Series, iter]


def said(texts: list[str]) -> dict[str, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        as_texts(texts)
    return {w.message.code: w.message.count for w in caught if isinstance(w.message, SondeWarning)}


@pytest.mark.parametrize("container", CONTAINERS)
def test_texts_become_a_list_of_plain_strings(container: Any) -> None:
    texts = as_texts(container(["one", "two  ", "drei\n"]))
    assert texts == ["one", "two  ", "drei\n"] and {type(text) for text in texts} == {str}


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ("a text", "texts is one string; give a list of strings, for example ['a text']"),
        (b"bytes", "texts is one string"),
        (None, "texts must be a list of strings, not NoneType"),
        (5, "texts must be a list of strings, not int"),
        ({"text": "a"}, "texts must be a list of strings, not dict"),
        ({"a", "b"}, "texts must be a list of strings, not set"),
        (np.array([["a"], ["b"]]), "texts must be a list of strings, not ndarray of shape (2, 1)"),
        (pd.DataFrame({"text": ["a"]}), "texts must be a list of strings, not DataFrame of shape (1, 1)"),
        (["a", 5], "texts: row 2 is 5 (int) where text is due. Convert it to a string, or leave the row out"),
        (["a", None], "texts: row 2 is None (NoneType) where text is due"),
        (["a", float("nan")], "texts: row 2 is nan (float) where text is due"),
        ([["a"], ["b"]], "texts: row 1 is ['a'] (list) where text is due"),
        (np.arange(3.0), "texts: row 1 is "),
        (pd.Series(["a", None]), "texts: row 2 is"),
        (pl.Series(["a", None]), "texts: row 2 is None (NoneType) where text is due"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        as_texts(texts)
    assert sentence in str(caught.value)


def test_a_polars_table_is_no_list_of_texts() -> None:
    with pytest.raises(DataError, match=r"texts must be a list of strings, not DataFrame of shape \(2, 1\)"):
        as_texts(pl.DataFrame({"text": ["a", "b"]}))


def test_the_offending_cell_is_shown_shortened() -> None:
    with pytest.raises(DataError) as caught:
        as_texts([["x" * 5000]])
    assert len(str(caught.value)) < 250


def test_odd_texts_are_counted_and_kept() -> None:
    odd = ["", "  \n\t", "a\0b", "half \ud83d emoji", "x" * HUGE_CHARACTERS, "fine"]
    assert said(odd) == {"blank_texts": 2, "nul_texts": 1, "surrogate_texts": 1, "huge_texts": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert as_texts(odd) == odd


@pytest.mark.parametrize("text", ["fine", "ünïcödé 🎉 ", "\u200b\ufeff", "x" * (HUGE_CHARACTERS - 1), "\U0001f600"])
def test_ordinary_texts_give_no_warning(text: str) -> None:
    assert said([text]) == {}


@pytest.mark.parametrize("container", [list, tuple, pd.Series, lambda rows: np.array(rows, dtype=object)])
@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan"), pd.NA, pd.NaT, "", " \n"])
def test_missing_labels_are_found(container: Any, missing: Any) -> None:
    assert present(container(["a", missing, "b"]), 3).tolist() == [True, False, True]


def test_missing_labels_of_polars_are_found() -> None:
    assert present(pl.Series(["a", None]), 2).tolist() == [True, False]


@pytest.mark.parametrize("matrix", [np.eye(3), pd.DataFrame(np.eye(3)), pl.DataFrame(np.eye(3))])
def test_rows_of_a_matrix_are_present(matrix: Any) -> None:
    assert present(matrix, 3).tolist() == [True] * 3


def test_rows_without_any_label_are_present() -> None:
    assert present([["a"], [], None, [""]], 4).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("spam", "labels is one string, 'spam'; give one label for each text"),
        (iter("ab"), "labels must be a list or array with one entry for each text, not str_"),
        (7, "labels must be a list or array with one entry for each text, not int"),
        (["a"], "There are 2 texts and 1 labels; give one label for each text"),
        (np.zeros((3, 2)), "There are 2 texts and 3 labels"),
    ],
)
def test_what_are_no_labels_is_refused(labels: Any, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        present(labels, 2)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("container", [list, tuple, np.float32, pd.Series, pl.Series])
def test_weights_become_float64(container: Any) -> None:
    array = as_weights(container([1.0, 2.5]), 2)
    assert array.dtype == np.float64 and array.tolist() == [1.0, 2.5]
    assert as_weights(None, 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ([1.0], r"sample_weight has shape \(1,\); it must have one number for each of 2 texts"),
        ([[1.0], [2.0]], r"sample_weight has shape \(2, 1\)"),
        ([1.0, -1.0], "must be finite and not negative"),
        ([1.0, float("nan")], "must be finite and not negative"),
        ([1.0, float("inf")], "must be finite and not negative"),
        ([0.0, 0.0], "not zero everywhere"),
        (["a", "b"], "sample_weight must hold numbers"),
        ([1.0, None], "must be finite"),
    ],
)
def test_what_are_no_weights_is_refused(weights: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        as_weights(weights, 2)
