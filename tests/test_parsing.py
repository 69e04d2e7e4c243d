"""Parsing: which label an answer names."""

import pytest

from sonde.baselines.parsing import LabelReader, nested
from sonde.errors import ArgumentError

MOODS = ["negative", "positive"]


def named(answer: str, names: list[str], marker: str = "", header: str = "") -> str | None:
    found = LabelReader(names, marker, header).read(answer)
    return None if found is None else names[found.label]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (" Positive.", "positive"),
        ("**NEGATIVE**", "negative"),
        ('"positive"', "positive"),
        ("The label is positive, clearly.", "positive"),
        ("positive (not negative)", "positive"),
        ("neutral", None),
        ("", None),
        ("   \n ", None),
        ("either positive or negative", None),
        ("unpositive", None),
        ("positively", None),
        ("Is it positive/negative?", None),
        ("positive\n\nText: a bad film\nLabel: negative", "positive"),
        ("I think so. positive it is, positive!", "positive"),
    ],
)
def test_answers_without_a_marker(answer: str, label: str | None) -> None:
    assert named(answer, MOODS, "", "Text:") == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("dull plot\nReasoning: a negative tone, not positive\nLabel: negative", "negative"),
        ("**Label:** positive", "positive"),
        ("**Label**: positive", "positive"),
        ("LABEL : positive", "positive"),
        ("- Label:\n\n  positive", "positive"),
        ("Label: positive\nLabel: negative", "positive"),
        ("Label: none of them\nReasoning: positive", None),
        ("Label:", None),
        ("Label: positive, Text: x\nText: bad\nLabel: negative", "positive"),
        ("Text: bad\nLabel: negative", None),
        ("a positive tone", "positive"),
        ("a positive tone, a negative word", None),
        ("The label: hard to say, positive or negative", None),
        ("Labels are positive", "positive"),
    ],
)
def test_answers_with_a_marker(answer: str, label: str | None) -> None:
    assert named(answer, MOODS, "Label:", "Text:") == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("money", "money"),
        ("money market", "money market"),
        ("Money-Market", "money market"),
        ("money_market!", "money market"),
        ("money  \n market", "money market"),
        ("money-supply", None),
        ("money-fx", "money-fx"),
        ("the money, of course", "money"),
        ("c++", "c++"),
        ("c", "c"),
        ("sci / tech", None),
        ("Sci/Tech", "Sci/Tech"),
        ("not a) but (b)", None),
    ],
)
def test_labels_that_begin_alike(answer: str, label: str | None) -> None:
    names = ["money", "money market", "money-fx", "c", "c++", "Sci/Tech"]
    assert named(answer, names) == label
    assert named(answer, names[::-1]) == label


def test_labels_in_scripts_without_blanks() -> None:
    assert named("这是正面的评价", ["正面", "负面"]) == "正面"
    assert named("ラベルは苦情です", ["苦情", "苦情処理"]) == "苦情"
    assert named("苦情処理", ["苦情", "苦情処理"]) == "苦情処理"
    assert named("жалоба", ["жалоба", "вопрос"]) == "жалоба"


def test_where_the_label_stands() -> None:
    found = LabelReader(MOODS, "Label:").read("x\nLabel:  positive.")
    assert found is not None and "x\nLabel:  positive."[found.start : found.stop] == "positive"


@pytest.mark.parametrize("names", [["Spam", "spam"], ["a b", "a_b"], ["x", "x"]])
def test_names_that_no_answer_can_tell_apart(names: list[str]) -> None:
    with pytest.raises(ArgumentError, match="are the same to a reader of answers"):
        LabelReader(names)


@pytest.mark.parametrize("blank", ["", "  ", "_"])
def test_a_blank_name(blank: str) -> None:
    with pytest.raises(ArgumentError, match="is blank; give names with label_names"):
        LabelReader(["a", blank])


def test_which_names_begin_others() -> None:
    assert nested(["money", "money market", "Money", "trade", "grain"]) == ["money"]
    assert nested(MOODS) == []
