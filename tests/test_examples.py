"""The examples' texts are what they claim: labelled, in three languages, and no two of them nearly the same."""

import csv
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NEAR = 0.5  # Jaccard similarity of the sets of character 3-grams


def rows(name: str) -> list[dict[str, str]]:
    with (EXAMPLES / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def grams(text: str) -> set[str]:
    text = " ".join(text.casefold().split())
    return {text[start : start + 3] for start in range(max(len(text) - 2, 1))}


def near(texts: list[str]) -> list[tuple[str, str]]:
    sets = [grams(text) for text in texts]
    return [
        (texts[i], texts[j])
        for i, j in combinations(range(len(texts)), 2)
        # the smaller set bounds the intersection
        if min(len(sets[i]), len(sets[j])) >= NEAR * max(len(sets[i]), len(sets[j]))
        and len(sets[i] & sets[j]) >= NEAR * len(sets[i] | sets[j])
    ]


def test_near_finds_what_differs_in_a_word() -> None:
    assert near(["the lamp at our door is dark", "the lamp at your door is dark", "no water"]) == [
        ("the lamp at our door is dark", "the lamp at your door is dark")
    ]


@pytest.mark.parametrize("name", ["support.csv", "languages.csv"])
def test_no_two_texts_are_nearly_the_same(name: str) -> None:
    assert near([row["text"] for row in rows(name)]) == []


def test_three_languages_share_their_labels() -> None:
    found = rows("languages.csv")
    counts = Counter((row["language"], row["label"]) for row in found)
    assert {language for language, _ in counts} == {"de", "ja", "ru"}
    assert len({label for _, label in counts}) == 6 and len(counts) == 18 and min(counts.values()) >= 20
    japanese = [row["text"] for row in found if row["language"] == "ja"]
    assert not any(any(blank in text for blank in " \u3000") for text in japanese), "it has no blanks to lean on"
