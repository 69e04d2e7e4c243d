"""The card in a model's folder: what it says, what it leaves to its owner, and that an edited one is never lost."""

import re
from pathlib import Path

import pytest
import tiny
import yaml
from samples import make, worded

import sonde
from sonde import saving
from sonde.card import CARD, card, untouched
from sonde.errors import ModelError

TEXTS, LABELS = worded(90)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    make("linear").fit(TEXTS, LABELS).save(folder)
    return folder


def test_it_says_what_the_model_is_and_what_it_was_trained_on(saved: Path) -> None:
    page, content = (saved / CARD).read_text(encoding="utf-8"), saving.manifest(saved)
    head = yaml.safe_load(page.split("---")[1])
    assert head["library_name"] == "sonde" and head["pipeline_tag"] == "text-classification"
    assert "base_model" not in head, "a folder is nobody's repository"
    assert f"<code>{tiny.build('bert').name}</code>" in page, "of a folder the last part: others have other folders"
    assert str(tiny.build("bert").parent) not in page
    held = content["summary"]["out_of_fold"]
    assert f"| {held['accuracy']:.3f} | {held['macro_f1']:.3f} | {held['log_loss']:.3f} |" in page
    assert "3 classes, recipe <code>linear</code>" in page and "<code>post</code>" in page
    assert "Trained on 90 rows" in page and page.count("to be filled in") >= 3
    assert not any(text in page for text in TEXTS)


def test_hub_ids_stay_whole_and_no_backbone_is_no_table(saved: Path) -> None:
    content = saving.manifest(saved)
    about = next(iter(content["backbones"].values()))
    page = card({**content, "backbones": {"0": {**about, "id": "some-team/some-model"}}})
    assert "some-team/some-model" in page and yaml.safe_load(page.split("---")[1])["base_model"] == [
        "some-team/some-model"
    ]
    without = card({**content, "backbones": {}})
    assert "base_model" not in without and "| backbone |" not in without and "no language model is needed" in without


def test_a_folder_that_looks_like_a_hub_id_is_no_base(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saving.manifest(saved)
    about = next(iter(content["backbones"].values()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tuned").mkdir(parents=True)
    assert "base_model" not in card({**content, "backbones": {"0": {**about, "id": "models/tuned"}}})


def test_no_label_breaks_out(saved: Path) -> None:
    hostile = ["<script>alert(1)</script>", "a|b", "`c`", "[d](http://e)", "\x1b[31mred", "line\nbreak", "*f*"]
    page = card({**saving.manifest(saved), "classes": hostile})
    assert "<script" not in page and "\x1b" not in page and "](" not in page
    assert "line\\nbreak" in page.replace("&#92;", "\\")
    assert not re.search(r"<code>[^<]*[|`*]", page)


def test_many_classes_are_counted(saved: Path) -> None:
    page = card({**saving.manifest(saved), "classes": [f"c{i}" for i in range(1000)]})
    assert "1,000 classes" in page and "and 950 more" in page and "c999" not in page


def test_an_edited_card_is_never_written_over(tmp_path: Path) -> None:
    classifier = make("lexical").fit(TEXTS, LABELS)
    folder = tmp_path / "model"
    classifier.save(folder)
    page = (folder / CARD).read_text(encoding="utf-8")
    assert untouched(page) and not untouched(page.replace("other", "mit")) and not untouched("") and not untouched("x")
    classifier.save(folder)  # nobody has edited it
    (folder / CARD).write_text(page.replace("to be filled in", "mine"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"README\.md somebody has edited"):
        classifier.save(folder)
    assert "mine" in (folder / CARD).read_text(encoding="utf-8")
    assert sonde.load(folder).predict(TEXTS[:1]).tolist() == classifier.predict(TEXTS[:1]).tolist()
    (folder / CARD).unlink()
    assert sonde.load(folder).classes_.tolist() == classifier.classes_.tolist(), "models of before had none"
    classifier.save(folder)
    assert untouched((folder / CARD).read_text(encoding="utf-8"))
