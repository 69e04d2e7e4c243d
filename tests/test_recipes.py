"""The named recipes: complete, described, and each of them reads what its row says."""

import numpy as np
import pytest
import tiny
from samples import make, worded

from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError, RecipeError
from sonde.learn import learning
from sonde.learn.recipes import RECIPES, Reads, find

TEXTS, LABELS = worded(60)
NEW_TEXTS, NEW_LABELS = worded(45, seed=1)
NAMES = [
    "auto",
    "linear",
    "lexical",
    "stc",
    "stc-hidden",
    "stc-ffn",
    "plm",
    *(f"llmembed-{row}" for row in range(1, 16)),
    "llmembed",
]
DEEPEST_FIRST = ["0/hidden.3/mean", "0/hidden.2/mean", "0/hidden.1/mean"]


def test_the_recipes_are_those_of_the_contract() -> None:
    assert list(RECIPES) == NAMES
    assert find("llmembed") is find("llmembed-15")
    assert all(name in (recipe.name, "llmembed") for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", ["llmembed-16", "Linear", "", None, 15, ("linear",)])
def test_an_unknown_recipe_is_answered_with_the_list(name: object) -> None:
    with pytest.raises(RecipeError) as caught:
        find(name)
    assert str(caught.value) == f"The recipe {name!r} is unknown; it must be one of: {', '.join(NAMES)}."


def test_every_recipe_is_described_in_one_line_and_has_a_learner() -> None:
    for recipe in RECIPES.values():
        assert 3 < len(recipe.title) < 80 and recipe.source and "\n" not in recipe.title + recipe.source
        assert recipe.learner in learning.LEARNERS
    assert len({recipe.title for recipe in RECIPES.values()}) == len(RECIPES) - 1  # llmembed is llmembed-15
    assert [name for name, recipe in RECIPES.items() if recipe.has_paper_setting] == [
        name for name in NAMES if name.startswith(("plm", "llmembed", "stc-"))
    ]


def test_recipes_are_data_that_nobody_can_change() -> None:
    with pytest.raises(AttributeError):
        RECIPES["linear"].name = "other"  # type: ignore[misc]
    assert hash(Reads(0, "hidden.*", "mean"))


@pytest.mark.parametrize(
    ("recipe", "needs"),
    [
        ("linear", ["0/hidden.3/mean"]),
        ("lexical", []),
        ("plm", ["0/sentence"]),
        ("llmembed-1", DEEPEST_FIRST[:1]),
        ("llmembed-2", DEEPEST_FIRST),
        pytest.param("llmembed-5", [*DEEPEST_FIRST, "1/sentence"], marks=pytest.mark.slow),
        ("llmembed-14", [*DEEPEST_FIRST, "1/sentence"]),
    ],
)
def test_recipes_need_what_their_rows_say(recipe: str, needs: list[str]) -> None:
    model = make(recipe).fit(TEXTS, LABELS).model_
    assert list(model.needs) == needs
    assert model.reads_text == (recipe == "lexical")


def test_auto_reads_every_layer_and_the_text() -> None:
    classifier = make("auto").fit(TEXTS, LABELS)
    layers = [f"0/hidden.{layer}/{pooling}" for pooling in ("mean", "max") for layer in range(4)]
    weights = classifier.summary_["learner"]["weights"]
    assert weights.keys() == {"layers", "last", "lexical"} and sum(weights.values()) == pytest.approx(1)
    wanted = layers if weights["layers"] else ["0/hidden.3/mean"] if weights["last"] else []
    assert sorted(classifier.model_.needs) == sorted(wanted)
    assert classifier.model_.reads_text == (weights["lexical"] > 0)


def test_linear_reads_every_backbone_given() -> None:
    both = tuple(str(tiny.build(name)) for name in ("bert", "gpt2"))
    assert list(make(backbones=both).fit(TEXTS, LABELS).model_.needs) == ["0/hidden.3/mean", "1/hidden.3/mean"]


@pytest.mark.slow
@pytest.mark.parametrize("row", range(1, 16))
@pytest.mark.parametrize("sentences", [1, 2])
def test_every_row_of_llmembed_trains_and_learns(row: int, sentences: int) -> None:
    given = tuple(str(tiny.build(name)) for name in ("bert", "electra", "roberta")[: 1 + sentences])
    if sentences == 1 and row in (11, 12, 13):
        with pytest.raises(RecipeError, match=f"The recipe 'llmembed-{row}' needs 3 backbones .*; 2 given"):
            make(f"llmembed-{row}", backbones=given).fit(TEXTS, LABELS)
        return
    classifier = make(f"llmembed-{row}", backbones=given).fit(*worded(150))
    assert classifier.score(NEW_TEXTS, NEW_LABELS) > (0.4 if row == 14 else 0.55)  # row 14 has a handful of numbers
    assert classifier.summary_["recipe"] == f"llmembed-{row}"


@pytest.mark.slow
def test_with_one_sentence_backbone_rows_8_to_10_repeat_5_to_7_and_say_so() -> None:
    from sonde.errors import SondeWarning

    for row in (8, 9, 10):
        with pytest.warns(SondeWarning, match=rf"llmembed-{row}|row {row}|[Rr]ow {row - 3}"):
            repeated = make(f"llmembed-{row}").fit(TEXTS, LABELS)
        same = make(f"llmembed-{row - 3}").fit(TEXTS, LABELS)
        np.testing.assert_array_equal(repeated.predict_proba(NEW_TEXTS), same.predict_proba(NEW_TEXTS))


@pytest.mark.parametrize("row", [5, 11, 15])
def test_rows_that_need_a_sentence_backbone_say_so(row: int) -> None:
    with pytest.raises(RecipeError) as caught:
        make(f"llmembed-{row}", backbones=(str(tiny.build("bert")),)).fit(TEXTS, LABELS)
    needs = "3 backbones" if row == 11 else "2 backbones"
    assert str(caught.value).startswith(f"The recipe 'llmembed-{row}' needs {needs} (the deep one, then ")
    assert "role" in str(caught.value) and "1 given" in str(caught.value)


@pytest.mark.parametrize("recipe", ["linear", "lexical", "auto", "llmembed-2"])
def test_learners_come_back_from_their_records(recipe: str) -> None:
    model = make(recipe).fit(TEXTS, LABELS).model_
    record = learning.describe(model)
    again = learning.restore(record)
    assert type(again) is type(model) and again.needs == model.needs and again.reads_text == model.reads_text
    second = learning.describe(again)
    assert second.settings == record.settings and second.arrays.keys() == record.arrays.keys()


# Other sites and poolings


def read_by(recipe: str, **settings: object) -> list[tuple[str, str]]:
    return [(reads.site, reads.pooling) for reads in find(recipe).reading(**settings).reads]  # type: ignore[arg-type]


def test_sites_and_poolings_replace_those_of_the_recipe() -> None:
    assert read_by("stc", sites=None, poolings=("last",)) == [("hidden.*", "last"), ("ffn.*", "last")]
    assert read_by("linear", sites=("hidden.1", "ffn.2"), poolings=None) == [("hidden.1", "mean"), ("ffn.2", "mean")]
    both = read_by("auto", sites=("ffn.*", "hidden.0"), poolings=("mean", "max"))
    assert both == [("ffn.*", "mean"), ("ffn.*", "max"), ("hidden.0", "mean"), ("hidden.0", "max")]
    assert find("stc").reading(None, None) is find("stc")


@pytest.mark.parametrize(
    ("recipe", "settings", "sentence"),
    [
        ("lexical", {"sites": ("hidden.*",)}, "'lexical' reads no layers; leave out sites and poolings"),
        ("llmembed-2", {"poolings": ("max",)}, "'llmembed-2' reads what its paper says of each backbone; leave out"),
        ("stc", {"sites": ("sentence",)}, "'stc' chooses neurons of layers; sites is .* but must name hidden or ffn"),
    ],
)
def test_recipes_whose_blocks_cannot_be_chosen_say_so(recipe: str, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        TextClassifier(recipe, **settings).fit(["a", "b"], ["a", "b"])  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["hidden.*", (), (1,), 3])
def test_sites_are_a_tuple_of_names(given: object) -> None:
    with pytest.raises(ArgumentError, match=r"sites is .*; give a tuple of names, such as \('hidden"):
        TextClassifier("linear", sites=given).fit(["a", "b"], ["a", "b"])  # type: ignore[arg-type]


def test_a_model_reads_the_sites_it_was_asked_to() -> None:
    model = (str(tiny.build("bert")),)
    classifier = TextClassifier("linear", model, cache=None, sites=("ffn.2", "hidden.0"), poolings=("max",))
    assert classifier.fit(TEXTS, LABELS).model_.needs == ("0/ffn.2/max", "0/hidden.0/max")
    one = TextClassifier("stc", model, cache=None, sites=("ffn.*",), poolings=("last",)).fit(TEXTS, LABELS)
    assert all("ffn" in name and name.endswith("/last") for name in one.model_.needs)
