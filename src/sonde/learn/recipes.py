"""The named recipes, as data: which blocks to read and which learner to train.

    Recipe      name, what it reads, what it trains
    Reads       blocks of one backbone: a site specification and a pooling
    RECIPES     name -> Recipe
    Sparsity    what a user says of recipes that choose neurons
    SAMPLE_ROWS rows on which they do
    find        a name -> its recipe, or a sentence that lists them

A recipe is read by `classifier` (which turns `Reads` into blocks of real backbones) and by `learning` (which trains).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sonde.errors import ArgumentError, RecipeError, choose

LLMEMBED_DEPTHS = 5
"""LLMEmbed, section 3.2: the embeddings of the last five blocks of the deep backbone."""

SAMPLE_ROWS = 4096
"""Most rows on which a recipe chooses neurons, by default."""


@dataclass(frozen=True)
class Reads:
    """Blocks of one backbone, or of each."""

    backbone: int | None
    """Index of the backbone; None = each that is given."""
    site: str
    """A site specification such as `hidden.*`."""
    pooling: str = ""
    """Empty for the site `sentence`."""
    last: int | None = None
    """Keep this many of the deepest matching sites, deepest first; None = all, shallowest first."""
    optional: bool = False
    """Whether the recipe does without it when that backbone is not given."""


@dataclass(frozen=True)
class Recipe:
    """What to read and what to train."""

    name: str
    """The name users give."""
    title: str
    """One line for lists."""
    source: str
    """Where it comes from."""
    learner: str
    """Name of the learner in `learning.LEARNERS`."""
    reads: tuple[Reads, ...] = ()
    """What it reads; nothing for purely lexical recipes."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the learner."""
    has_paper_setting: bool = False
    """Whether `paper=True` asks for something else than the default."""
    needed_backbones: int = 1
    """Fewest backbones that it works with."""

    def unused(self, parameters: Mapping[str, Any]) -> list[str]:
        """Names of parameters that were given, are no defaults, and say nothing to this recipe."""
        usual: dict[str, Any] = {} if self.reads else {"max_tokens": None, "long_text": "cut", "device": "auto"}
        if self.learner != "sparse":
            usual["sample_rows"] = SAMPLE_ROWS
        return [name for name, default in usual.items() if parameters[name] != default]

    def reading(self, sites: Sequence[str] | None, poolings: Sequence[str] | None) -> "Recipe":
        """The same recipe on other sites or poolings of each backbone: every pooling at every site.

        Raises
        ------
        RecipeError
            If it reads no backbone, or its backbones have roles.
        ArgumentError
            If these are no names.
        """
        if sites is None and poolings is None:
            return self
        for what, given in (("sites", sites), ("poolings", poolings)):
            names = isinstance(given, Sequence) and not isinstance(given, str) and all(type(x) is str for x in given)
            if given is not None and not (names and given):
                raise ArgumentError(f"{what} is {given!r:.80}; give a tuple of names, such as {_NAMED[what]}.")
        if not self.reads or any(reads.backbone is not None for reads in self.reads):
            why = "reads no layers" if not self.reads else "reads what its paper says of each backbone"
            raise RecipeError(f"The recipe {self.name!r} {why}; leave out sites and poolings (--site, --pooling).")
        if self.learner == "sparse" and not all("hidden." in site or "ffn." in site for site in sites or ("hidden.*",)):
            raise RecipeError(
                f"The recipe {self.name!r} chooses neurons of layers; sites is {sites!r}, but must name hidden or ffn."
            )
        wanted_sites = dict.fromkeys(sites or (reads.site for reads in self.reads))
        wanted = dict.fromkeys(poolings or (reads.pooling for reads in self.reads))
        return replace(self, reads=tuple(Reads(None, site, pooling) for site in wanted_sites for pooling in wanted))


@dataclass(frozen=True)
class Sparsity:
    """What a user says of recipes that choose neurons."""

    sample_rows: int = SAMPLE_ROWS
    """Most rows on which they are chosen."""
    eta: float | None = None
    """The share of importance that is kept; None: chosen out of fold."""
    layers: int | None = None
    """k, how many layers are read; None: chosen out of fold."""
    exit_loss: float | None = None
    """How much of the metric may be lost by rows that leave early; None: none does."""

    def check(self, recipe: Recipe, backbones: int) -> None:
        """Judge what can be judged before anything is read.

        Raises
        ------
        ArgumentError
            If a number is none, or out of its range.
        RecipeError
            If the recipe has no use for what was said.
        """
        for name, given, allowed in self._numbers():
            if not allowed:
                raise ArgumentError(f"{name} is {given!r}; it must be {_RANGES[name]}.")
        said = [name for name in ("eta", "layers", "exit_loss") if getattr(self, name) is not None]
        if said and recipe.learner != "sparse":
            raise RecipeError(
                f"The recipe {recipe.name!r} chooses no neurons; leave out {' and '.join(said)}, or use stc."
            )
        if self.exit_loss is not None and backbones > 1:
            raise RecipeError("Early exits take one backbone; give one, or leave out exit_loss.")

    def _numbers(self) -> Iterator[tuple[str, object, bool]]:
        """Name, value, whether it is allowed."""
        yield "sample_rows", self.sample_rows, _is_number(self.sample_rows, int) and self.sample_rows >= 1
        yield "eta", self.eta, self.eta is None or (_is_number(self.eta, int, float) and 0 < self.eta <= 1)
        yield "layers", self.layers, self.layers is None or (_is_number(self.layers, int) and self.layers >= 0)
        loss = self.exit_loss
        yield "exit_loss", loss, loss is None or (_is_number(loss, int, float) and 0 <= loss < 1)


def _is_number(given: object, *kinds: type) -> bool:
    return isinstance(given, kinds) and not isinstance(given, bool)


_RANGES = {
    "sample_rows": "a whole number of at least 1",
    "eta": "the share of importance that is kept, above 0 and at most 1, or None",
    "layers": "how many layers are read, a whole number of at least 0, or None",
    "exit_loss": "the share of accuracy that may be lost, such as 0.002: from 0 to below 1, or None for no early exits",
}
_NAMED = {"sites": "('hidden.*', 'ffn.*')", "poolings": "('mean', 'max')"}


def find(name: object) -> Recipe:
    """The recipe of this name.

    Raises
    ------
    RecipeError
        If there is none; the sentence lists all.
    """
    return RECIPES[choose("The recipe", name, RECIPES, RecipeError)]


_TITLES = {
    1: "last block of the deep backbone",
    2: "average of its last five blocks",
    3: "maximum of its last five blocks",
    4: "its last five blocks side by side",
    5: "Cat(Avg(L), B)",
    6: "Cat(Max(L), B)",
    7: "Cat(L, B)",
    8: "Cat(Avg(L), R)",
    9: "Cat(Max(L), R)",
    10: "Cat(L, R)",
    11: "Cat(Avg(L), B, R)",
    12: "Cat(Max(L), B, R)",
    13: "Cat(L, B, R)",
    14: "co-occurrence of L, B, R",
    15: "co-occurrence of L, B, R beside Avg(L)",
}

_DEEP = Reads(0, "hidden.1:", "mean", last=LLMEMBED_DEPTHS)
_SENTENCES = (Reads(1, "sentence", optional=True), Reads(2, "sentence", optional=True))


def _llmembed(row: int) -> Recipe:
    deep = Reads(0, "hidden.1:", "mean", last=1) if row == 1 else _DEEP
    sentences = () if row < 5 else _SENTENCES
    needed = 1 if row < 5 else 3 if row in (11, 12, 13) else 2
    source = f"LLMEmbed (Liu et al., ACL 2024), Table 1, row {row}"
    return Recipe(f"llmembed-{row}", _TITLES[row], source, "fusion", (deep, *sentences), {"row": row}, True, needed)


_AUTO_READS = (Reads(None, "hidden.*", "mean"), Reads(None, "hidden.*", "max"))

_HIDDEN, _FFN = Reads(None, "hidden.*", "mean"), Reads(None, "ffn.*", "mean")
_STC = "Sparsify-then-Classify (arXiv 2311.15983)"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("auto", "hidden layers blended with word and character n-grams", "sonde", "auto", _AUTO_READS),
        Recipe(
            "linear",
            "logistic regression on the mean of the last hidden layer",
            "the linear probe (Alain and Bengio 2016)",
            "logistic",
            (Reads(None, "hidden.-1", "mean"),),
        ),
        Recipe(
            "lexical",
            "word and character n-grams, linear; needs no model",
            "TF-IDF (Salton and Buckley 1988)",
            "lexical",
        ),
        Recipe(
            "stc",
            "the neurons that matter of every layer, as deep as they do",
            _STC,
            "sparse",
            (_HIDDEN, Reads(None, "hidden.*", "max"), _FFN),
        ),
        Recipe("stc-hidden", "stc on hidden states alone, mean", _STC, "sparse", (_HIDDEN,), has_paper_setting=True),
        Recipe(
            "stc-ffn", "stc on feed-forward activations alone, mean", _STC, "sparse", (_FFN,), has_paper_setting=True
        ),
        Recipe(
            "plm",
            "sentence embedding of one encoder, and the head of LLMEmbed",
            "LLMEmbed (Liu et al., ACL 2024), Table 2, PLM",
            "fusion",
            (Reads(0, "sentence"),),
            {"row": 1},  # no fusion: one embedding
            has_paper_setting=True,
        ),
        *(_llmembed(row) for row in _TITLES),
    )
}
RECIPES["llmembed"] = RECIPES["llmembed-15"]
