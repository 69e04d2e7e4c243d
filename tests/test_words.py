"""Words and characters in any script; texts with blanks are read as they always were."""

import re
import unicodedata
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from sonde.learn.ngrams import CHARS, WORDS, Kind, learn
from sonde.learn.tokens import TOKEN, WORD, characters, placed, spelled, words

PLAIN = [
    "The café's naïve façade — “quoted”, 50 % off… ½ price! 😀",
    "Ça coûte 3,50 €; n'est-ce pas?",
    "Größe, Straße, ÄRGER: über-all",
    "Ёлка и ещё что-то; Ελληνικά λόγια",
    "tab\tline\nbreak\xa0hard  \u2028  blank",
    "don't e-mail me @ 10:30 :-)",
    "ﬁne ligature, 2² and №5 ™",
]


@pytest.mark.parametrize("text", PLAIN)
def test_texts_with_blanks_are_read_as_they_are(text: str) -> None:
    assert words(text) == re.findall(r"\w+|[^\w\s]", text.lower())
    assert characters(text) == " ".join(["", *text.lower().split(), ""])
    assert spelled(text) == text


def test_features_of_english_text_are_those_of_the_plain_pattern(texts: list[str]) -> None:
    plain: dict[Kind, dict[str, Any]] = {
        WORDS: {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 2)},
        CHARS: {"analyzer": "char_wb", "ngram_range": (2, 5)},
    }
    for kind, tokens in plain.items():
        vocabulary, counts = learn(kind, [*texts, *PLAIN, *PLAIN])
        slow = CountVectorizer(**tokens, min_df=2)
        expected = slow.fit_transform([*texts, *PLAIN, *PLAIN])
        order = [slow.vocabulary_[gram] for gram in vocabulary.strings()]
        assert sorted(order) == list(range(expected.shape[1]))
        assert (counts.toarray() == expected.toarray()[:, order]).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("街灯が切れた。", ["街", "灯", "が", "切", "れ", "た", "。"]),
        ("テレビ、PC2台", ["テ", "レ", "ビ", "、", "pc2", "台"]),
        ("ｶﾞﾗｽ ＡＢＣ！", ["ガ", "ラ", "ス", "abc", "!"]),
        ("我喜欢WiFi", ["我", "喜", "欢", "wifi"]),
        ("ไม่มีน้ำ", ["ไ", "ม่", "มี", "น้", "ำ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("हिन्दी में।", ["हिन्दी", "में", "।"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("\ud800x", ["\ud800", "x"]),
    ],
)
def test_every_script_has_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ｶﾞｽ漏れ", "ガス漏れ"),
        ("ＧＡＳ　１２０", "gas 120"),
        ("مُحَمَّد", "محمد"),
        ("محمـــد", "محمد"),
        ("ﻻ", "لا"),
        *((unicodedata.normalize("NFD", text), text) for text in ("über", "ёлка й", "がぎ", "Việt Nam")),
    ],
)
def test_what_reads_the_same_is_the_same(one: str, other: str) -> None:
    assert one != other
    assert words(one) == words(other) and characters(one) == characters(other)


def test_what_reads_differently_stays_different() -> None:
    assert words("です") != words("てす") and words("ё") != words("е") and words("dü") != words("du")
    assert characters("カ゛") != characters("ガ"), "a sign of its own is no part of a letter"


def test_clauses_without_blanks_share_words_and_their_pairs() -> None:
    vocabulary, counts = learn(WORDS, ["公園の街灯が暗い", "街灯がつかない!", "暗い道です"])
    found = vocabulary.strings()
    assert {"街", "灯", "街 灯", "暗 い"} <= set(found)
    column = found.index("街 灯")
    np.testing.assert_array_equal(counts.toarray()[:, column], [1, 1, 0])


def test_the_limit_of_characters_is_that_of_the_text_as_it_stands() -> None:
    long = "道" * (CHARS.max_chars or 0)
    _, counts = learn(CHARS, [long + "路", long])
    assert (counts.toarray()[0] == counts.toarray()[1]).all()


@pytest.mark.parametrize("text", [*PLAIN, "ｶﾞﾗｽ ＡＢＣ！", "مُحَمَّد ﷺ", "u\u0308ber", "ﾡￂ", "İstanbul", "हिन्दी", ""])
def test_every_character_comes_from_somewhere(text: str) -> None:
    lower, spans = placed(text)
    assert lower == spelled(text).lower() and len(spans) == len(lower)
    assert spans == sorted(spans) and all(0 <= start < stop <= len(text) for start, stop in spans)
    for letter, (start, stop) in zip(lower, spans, strict=True):
        assert letter in spelled(text[start:stop]).lower()
    assert WORD.findall(lower) == words(text)


def test_a_letter_of_two_signs_covers_both() -> None:
    assert placed("xｶﾞu\u0308!") == ("xガü!", [(0, 1), (1, 3), (3, 5), (5, 6)])


def test_both_patterns_agree_on_ascii() -> None:
    text = "".join(map(chr, range(128))) * 2
    assert TOKEN.findall(text) == WORD.findall(text)
