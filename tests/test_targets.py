import enum

import numpy as np
import pandas as pd
import polars as pl
import pytest

from sonde.errors import DataError
from sonde.learn.targets import encode, encode_against, unseen


@pytest.mark.parametrize(
    "labels",
    [
        ["b", "a", "b"],
        ("b", "a", "b"),
        np.array(["b", "a", "b"]),
        np.array(["b", "a", "b"], dtype=object),
        [np.str_("b"), np.str_("a"), "b"],
        pd.Series(["b", "a", "b"], index=[7, 8, 9]),
        pd.Series(["b", "a", "b"], dtype="string"),
        pd.Series(["b", "a", "b"], dtype="category"),
        pl.Series(["b", "a", "b"]),
    ],
)
def test_every_container_of_text_labels_means_the_same(labels):
    targets = encode(labels)
    assert targets.classes.tolist() == ["a", "b"]
    assert targets.ids.tolist() == [1, 0, 1]
    assert not targets.multilabel
    assert targets.indicator.tolist() == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "classes", "dtype"),
    [
        ([3, 1, 3], [1, 3], np.int64),
        (np.array([3, 1], dtype=np.uint8), [1, 3], np.int64),
        ([3.0, 1.0], [1, 3], np.int64),
        (pd.Series([3, 1], dtype="Int64"), [1, 3], np.int64),
        ([True, False], [False, True], np.bool_),
        (np.array([True, False]), [False, True], np.bool_),
    ],
)
def test_classes_keep_the_type_of_the_labels(labels, classes, dtype):
    targets = encode(labels)
    assert targets.classes.dtype == dtype
    assert targets.classes.tolist() == classes
    assert targets.classes[targets.ids].tolist() == [int(label) for label in labels]


@pytest.mark.parametrize(
    "labels",
    [
        [["x"], ["y", "z"], []],
        [("x",), {"y", "z"}, np.array([])],
        pl.Series([["x"], ["z", "y"], []]),
        pd.Series([["x"], ["z", "y"], []]),
        np.array([["x"], ["y", "z"], []], dtype=object),
    ],
)
def test_lists_of_labels_are_multilabel(labels):
    targets = encode(labels)
    assert targets.multilabel
    assert targets.classes.tolist() == ["x", "y", "z"]
    assert targets.indicator.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[0, 1, 0], [1, 1, 0]]),
        np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]),
        np.array([[False, True, False], [True, True, False]]),
        pd.DataFrame({"a": [0, 1], "b": [1, 1], "c": [0, 0]}),
        pd.DataFrame({"a": [0, 1], "b": [1, 1], "c": [0, 0]}).astype("Int64"),
        [[0, 1, 0], [1, 1, 0]],
        [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
        [[False, True, False], [True, True, False]],
        list(np.array([[0, 1, 0], [1, 1, 0]])),
        pd.Series([[0, 1, 0], [1, 1, 0]]),
    ],
)
def test_a_matrix_of_zeros_and_ones_is_multilabel_with_its_columns_as_classes(matrix):
    targets = encode(matrix)
    assert targets.multilabel
    assert targets.matrix
    assert targets.classes.tolist() == [0, 1, 2]
    assert targets.indicator.tolist() == [[0, 1, 0], [1, 1, 0]]


def test_of_two_columns_only_arrays_and_booleans_can_be_a_matrix():
    rows = np.array([[0, 1], [1, 0], [0, 1]])
    for matrix in (rows, list(rows), rows.astype(bool).tolist()):
        targets = encode(matrix)
        assert targets.matrix and targets.indicator.tolist() == rows.tolist()
    with pytest.raises(DataError, match=r"Every row of labels is .* give a two-dimensional array"):
        encode(rows.tolist())


def test_nested_lists_of_a_test_set_are_read_as_those_of_the_training_set_were():
    classes, rows = np.array([0, 1]), [[0, 1], [1, 0]]
    assert encode_against(rows, classes, True, matrix=True).indicator.tolist() == rows
    assert encode_against(rows, classes, True).indicator.tolist() == [[1, 1], [1, 1]]  # lists of both labels
    assert unseen([[1, 7], [0]], classes, True, matrix=True) == {7: 1}


class _Colour(str, enum.Enum):  # noqa: UP042 - as many write it
    RED = "red"
    BLUE = "blue"


class _Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def test_labels_of_an_enumeration_are_its_values():
    assert encode([_Colour.RED, _Colour.BLUE]).classes.tolist() == ["blue", "red"]
    classes = encode([_Level.HIGH, 1]).classes
    assert classes.tolist() == [1, 2]
    for levels in ([_Level.HIGH], np.array([_Level.HIGH], dtype=object)):
        assert encode_against(levels, classes, False).ids.tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("abc", "one entry per text, not 'abc'"),
        (7, "one entry per text, not 7"),
        ([], "There are no labels"),
        (["a", 1], r"mix str \(row 1: 'a'\) and int \(row 2: 1\)"),
        ([1, True], r"mix int \(row 1: 1\) and bool \(row 2: True\)"),
        ([["a"], ["b"], [2]], r"mix str \(row 1: 'a'\) and int \(row 3: 2\)"),
        ([1.0, 2.5], "row 2 is 2.5, a fraction"),
        ([1.0, float("inf")], "row 2 is inf, a fraction"),
        ([1.0, float("nan")], "The label of row 2 is missing"),
        (["a", None, None], "The label of row 2 is missing"),
        (pd.Series([1, None], dtype="Int64"), "The label of row 2 is missing"),
        ([b"a", b"b"], "row 1 is b'a', of type bytes"),
        ([1, 2**70], "row 2 is 1180591620717411303424, too large"),
        (["a", "a"], "The 2 rows have only one class, 'a'"),
        ([[], []], "None of the 2 rows has a label"),
        (np.array([[1], [0]]), "only one class, 0"),
        ([["a"], "b"], "Row 1 is a list of labels, but row 2 is 'b'"),
        (["a", ["b"]], "row 2 is .*, of type list"),
        (["a", "b\0"], "row 2 is 'b.*': the NUL characters at its end"),
        (np.array([[0, 1], [2, 0]]), "row 2, column 0 is 2"),
        (np.array([["a", "b"]]), "row 1, column 0 is 'a'"),
    ],
)
def test_wrong_labels_are_refused_with_a_sentence(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        encode(labels)


def test_labels_never_seen_have_an_empty_row_and_are_counted():
    classes = encode(["a", "b"]).classes
    targets = encode_against(["b", "z", "z", "y"], classes, False)
    assert targets.ids.tolist() == [1, -1, -1, -1]
    assert targets.classes is classes
    assert unseen(["b", "z", "z", "y"], classes, False) == {"z": 2, "y": 1}


def test_one_class_is_enough_for_a_test_set():
    assert encode_against(["a", "a"], np.array(["a", "b"]), False).ids.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        ([1, 3], np.array(["1", "3", "x"]), [0, 1]),
        (["1", "3"], np.array([1, 3]), [0, 1]),
        (["True"], np.array([False, True]), [1]),
        ([True], np.array([0, 1]), [-1]),
    ],
)
def test_labels_of_another_type_are_compared_as_text(labels, classes, ids):
    assert encode_against(labels, classes, False).ids.tolist() == ids


@pytest.mark.parametrize(
    ("labels", "classes", "multilabel", "sentence"),
    [
        (["a"], np.array(["a", "b"]), True, "trained on lists of labels .* but these labels are one label per row"),
        ([["a"]], np.array(["a", "b"]), False, "trained on one label per row, but these labels are lists"),
        (np.eye(3), np.array([0, 1]), True, "has 3 columns, but the model has 2 classes"),
        (["a", None], np.array(["a", "b"]), False, "The label of row 2 is missing"),
    ],
)
def test_test_labels_must_fit_the_model(labels, classes, multilabel, sentence):
    with pytest.raises(DataError, match=sentence):
        encode_against(labels, classes, multilabel)


def test_take_keeps_all_classes():
    targets = encode(["a", "b", "c"]).take(np.array([2, 2, 0]))
    assert targets.classes.tolist() == ["a", "b", "c"]
    assert targets.ids.tolist() == [2, 2, 0]
