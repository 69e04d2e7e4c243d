"""Prompts: files that say what is asked, cut to what fits."""

from pathlib import Path

import pytest

from sonde.baselines.assembling import assemble
from sonde.baselines.cutting import first_words
from sonde.baselines.templates import PLACEHOLDERS, Template, read_template
from sonde.errors import ArgumentError


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_the_prompts_of_the_package_hold_what_is_filled_in(name: str) -> None:
    template = read_template(name)
    filled = template.fill(**{placeholder: f"<{placeholder}>" for placeholder in PLACEHOLDERS[name]})
    assert all(f"<{placeholder}>" in filled for placeholder in PLACEHOLDERS[name])
    assert filled == filled.rstrip() and "{" not in filled
    assert template.header("text") == "Text:"


def test_a_users_file_replaces_one_and_leaves_the_others(tmp_path: Path) -> None:
    content = '{task} {labels}\n{demonstrations}{"text": "{text}"}\nEtikett: \n'
    (tmp_path / "io.txt").write_text(content, encoding="utf-8")
    template = read_template("io", tmp_path)
    assert template.fill(task="t", labels="a, b", demonstrations="", text="{label} {x}") == (
        't a, b\n{"text": "{label} {x}"}\nEtikett:'
    )
    assert read_template("io_demonstration", tmp_path) == read_template("io_demonstration")


def test_files_of_users_that_cannot_be_filled(tmp_path: Path) -> None:
    (tmp_path / "io.txt").write_text("{task} {demonstrations} {lables}", encoding="utf-8")
    with pytest.raises(
        ArgumentError, match=r"io\.txt lacks \{labels\}, \{text\}\. Its placeholders are: \{task\}, \{l"
    ):
        read_template("io", tmp_path)
    (tmp_path / "io.txt").write_text("{task} {demonstrations} {labels} {text} {clues}", encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"io\.txt holds \{clues\}, which nothing can fill"):
        read_template("io", tmp_path)
    (tmp_path / "io.txt").write_bytes(b"{task}\xff")
    with pytest.raises(ArgumentError, match=r"io\.txt is not UTF-8 text: invalid start byte at byte 6"):
        read_template("io", tmp_path)


def test_folders_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"which is no folder; it may hold any of: io\.txt"):
        read_template("io", tmp_path / "none")
    with pytest.raises(ArgumentError, match=r"holds none of: io\.txt"):
        read_template("io", tmp_path)


def test_first_words() -> None:
    assert first_words(" one\n two\tthree ", 2) == ("one two", True)
    assert first_words("one two", 2) == ("one two", False)
    assert first_words("", 2) == ("", False)
    assert first_words("猫が好きです。", 3) == ("猫が好", True)
    assert first_words("Label: x\nLabel: y", 9)[0].count("\n") == 0


FRAME = Template("frame", "{task} {labels}\n{demonstrations}T {text}")
FIXED = {"task": "do", "labels": "a"}


def filled(demonstrations: list[str], text: str, most: int | None) -> tuple[str, int, bool]:
    found = assemble(
        FRAME, FIXED, demonstrations, text, max_words=8, max_tokens=most, count_tokens=lambda one: len(one.split())
    )
    return found.prompt, found.demonstrations, found.cut


def test_the_most_similar_demonstrations_stay_and_stand_last() -> None:
    shown = ["far away", "nearer", "nearest"]
    assert filled(shown, "x y", None) == ("do a\nfar away\n\nnearer\n\nnearest\n\nT x y", 3, False)
    assert filled(shown, "x y", 9) == filled(shown, "x y", None)
    assert filled(shown, "x y", 8) == ("do a\nnearer\n\nnearest\n\nT x y", 2, False)
    assert filled(shown, "x y", 6) == ("do a\nnearest\n\nT x y", 1, False)
    assert filled(shown, "x y", 5) == ("do a\nT x y", 0, False)


def test_a_text_that_does_not_fit_loses_its_end() -> None:
    text = "1 2 3 4 5 6 7 8 9"
    assert filled([], text, None) == ("do a\nT 1 2 3 4 5 6 7 8", 0, True)
    assert filled(["x"], text, 8) == ("do a\nT 1 2 3 4", 0, True)
    assert filled([], text, 4) == ("do a\nT 1", 0, True)
    with pytest.raises(ArgumentError, match=r"The prompt 'frame' takes 4 tokens beside the text, but 3 is all"):
        filled([], text, 3)
