import numpy as np
import pytest
from tiny import SENTENCES, tokenizer_of

from sonde.read.view import LONG_TEXT, View, clean, filler_id, special_tokens, tokenise

WORDS = SENTENCES[0].split()
LONG = " ".join(WORDS * 3)  # 36 words, one token each
FAMILIES = {"bert": (1, 1), "roberta": (1, 1), "bos": (1, 0), "t5": (0, 1), "eos": (0, 0)}


def bare(family, text):
    return tokenizer_of(family)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("family", "around"), FAMILIES.items())
def test_special_tokens_are_those_that_the_tokenizer_adds(family, around):
    prefix, suffix = special_tokens(tokenizer_of(family))
    assert (len(prefix), len(suffix)) == around
    pieces = tokenise(SENTENCES, tokenizer_of(family), View())
    assert pieces.ids == tokenizer_of(family)(SENTENCES)["input_ids"]
    assert (pieces.prefix, pieces.suffix) == around
    assert pieces.tokens.tolist() == [len(ids) for ids in pieces.ids]
    assert not pieces.lost.any()


class OneWord:
    """Knows one word, and drops or marks as unknown all others."""

    all_special_ids = (0, 1, 2)

    def __init__(self, word, unknown):
        self.word, self.unknown = word, unknown

    def __call__(self, text, add_special_tokens=True, **more):
        inside = [9] if text == self.word else self.unknown
        ids = [0, *inside, 1] if add_special_tokens else inside
        mask = [1, *[0] * len(inside), 1] if add_special_tokens else [0] * len(inside)
        return {"input_ids": ids, "special_tokens_mask": mask}


@pytest.mark.parametrize("unknown", [[], [0], [2]])
@pytest.mark.parametrize("word", ["a", "的", "qqq"])
def test_special_tokens_are_found_though_the_tokenizer_knows_few_words(word, unknown):
    assert special_tokens(OneWord(word, unknown)) == ([0], [1])


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_keeps_the_beginning_and_counts_what_is_lost(family):
    prefix, suffix = special_tokens(tokenizer_of(family))
    room = 10 - len(prefix) - len(suffix)
    pieces = tokenise([LONG, "good"], tokenizer_of(family), View(10, "cut"))
    content = bare(family, LONG)
    assert pieces.ids[0] == [*prefix, *content[:room], *suffix]
    assert pieces.lost.tolist() == [36 - room, 0]
    assert pieces.tokens.tolist() == [36 + len(prefix) + len(suffix), 1 + len(prefix) + len(suffix)]


@pytest.mark.parametrize("family", FAMILIES)
def test_head_tail_keeps_a_quarter_from_the_beginning_and_the_rest_from_the_end(family):
    prefix, suffix = special_tokens(tokenizer_of(family))
    room = 10 - len(prefix) - len(suffix)
    head = room // 4
    pieces = tokenise([LONG], tokenizer_of(family), View(10, "head_tail"))
    content = bare(family, LONG)
    assert pieces.ids == [[*prefix, *content[:head], *content[36 - (room - head) :], *suffix]]
    assert pieces.lost.tolist() == [36 - room]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [4, 7, 10, 37])
def test_windows_lose_nothing_and_are_of_nearly_equal_length(family, max_tokens):
    prefix, suffix = special_tokens(tokenizer_of(family))
    room = max_tokens - len(prefix) - len(suffix)
    pieces = tokenise(["good", LONG, "good"], tokenizer_of(family), View(max_tokens, "windows"))
    count = -(-36 // room)
    assert pieces.owner.tolist() == [0, *[1] * count, 2]
    inside = [ids[len(prefix) : len(ids) - len(suffix)] for ids in pieces.ids]
    assert [token for part in inside[1:-1] for token in part] == bare(family, LONG)
    assert {len(part) for part in inside[1:-1]} <= {36 // count, -(-36 // count)}
    assert all(ids[: len(prefix)] == prefix and ids[len(ids) - len(suffix) :] == suffix for ids in pieces.ids)
    assert max(map(len, pieces.ids)) <= max_tokens
    assert pieces.lost.tolist() == [0, 0, 0]


@pytest.mark.parametrize("long_text", LONG_TEXT)
@pytest.mark.parametrize("words", [8, 9])
def test_a_text_that_just_fits_is_whole_in_every_way(long_text, words):
    text = " ".join(WORDS[:words])
    pieces = tokenise([text], tokenizer_of("bert"), View(words + 2, long_text))
    assert pieces.ids == [tokenizer_of("bert")(text)["input_ids"]]
    assert pieces.lost.tolist() == [0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["", "   \n\t"])
def test_a_blank_text_is_at_least_one_token(family, text):
    pieces = tokenise([text], tokenizer_of(family), View(8))
    assert pieces.ids == [tokenizer_of(family)("")["input_ids"] or [filler_id(tokenizer_of(family))]]
    assert len(pieces.ids[0]) >= 1
    assert pieces.lost.tolist() == [0]


def test_the_truncation_and_padding_of_a_tokenizer_file_are_not_used():
    tokenizer = type(tokenizer_of("bert"))(tokenizer_object=tokenizer_of("bert").backend_tokenizer, pad_token="[PAD]")
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=128)
    pieces = tokenise([LONG, "good"], tokenizer, View(64))
    assert [len(ids) for ids in pieces.ids] == [38, 3]


def test_a_filler_exists_without_a_pad_token():
    assert filler_id(tokenizer_of("bert")) == tokenizer_of("bert").pad_token_id
    gpt = tokenizer_of("eos")
    assert gpt.pad_token_id is None
    size = len(gpt)
    assert filler_id(gpt) == gpt.eos_token_id
    assert len(gpt) == size
    assert filler_id(object()) == 0


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("na\u00efve \U0001f600", "na\u00efve \U0001f600"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("end\ud83d", "end\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ufeffa\udfff", "\ufeffa\ufffd"),
        ("a\0b", "a\0b"),
    ],
)
def test_clean_replaces_lone_surrogates_and_nothing_else(text, cleaned):
    assert clean(text) == cleaned
    clean(text).encode("utf-8")


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_texts_are_read(family):
    texts = ["good\0good", clean("good \ud800 good"), "\u200b", "🙂" * 40]
    pieces = tokenise(texts, tokenizer_of(family), View(16))
    assert len(pieces.ids) == 4
    assert all(1 <= len(ids) <= 16 for ids in pieces.ids)


def test_a_text_of_a_megabyte_is_cut_and_counted():
    text = "the cold wind " * 75_000
    pieces = tokenise([text], tokenizer_of("bert"), View(64))
    assert len(pieces.ids[0]) == 64
    assert pieces.tokens.tolist() == [225_002]
    assert pieces.lost.tolist() == [225_000 - 62]


def test_no_texts_are_no_pieces():
    pieces = tokenise([], tokenizer_of("bert"), View())
    assert pieces.ids == []
    assert pieces.lost.dtype == np.int64
    assert len(pieces.owner) == len(pieces.tokens) == len(pieces.lost) == 0


def test_the_key_of_a_view_tells_views_apart():
    views = [View(64), View(65), View(64, "windows"), View(64, "head_tail")]
    assert len({str(view.key()) for view in views}) == 4
