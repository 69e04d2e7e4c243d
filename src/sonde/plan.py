"""What a recipe reads of which backbones, and what a model remembers of them.

BUNDLE, backbone_names   the backbone that needs no network; the `backbones` argument, checked
check_bounds whether there are more bounds than backbones
needed       recipe, backbones -> those that it reads
groups       recipe, open sources -> the blocks of each of its `Reads`
about        a source -> what a saved model remembers of it
check_same   whether a source is the one that a model was trained on
token_loss, warn_lost, warn_truncated   how many rows and tokens were cut
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ArgumentError, ModelError, RecipeError, warn
from sonde.learn.recipes import Recipe

if TYPE_CHECKING:
    from sonde.read.blocks import Block, Source, Window

logger = logging.getLogger(__name__)

BUNDLE = "sentence-transformers/all-MiniLM-L6-v2"


def backbone_names(backbones: object) -> dict[int, str]:
    """Check the `backbones` argument: ids or paths, never modules, so that `clone` can copy it."""
    names = [backbones] if isinstance(backbones, str) else backbones
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"backbones is {backbones!r:.80}; give a tuple of hub ids or folders, as strings.")
    return dict(enumerate(names))


def check_bounds(max_tokens: object, backbones: int) -> None:
    """`ArgumentError` if more bounds are given than backbones."""
    if isinstance(max_tokens, Sequence) and not isinstance(max_tokens, str) and len(max_tokens) > backbones:
        known = f"{backbones} backbone{'s' * (backbones != 1)}"
        raise ArgumentError(f"max_tokens has {len(max_tokens)} entries for {known}; give one number, or one for each.")


ABOUT = ("id", "fingerprint", "dtype", "max_tokens", "long_text")
"""What a saved model remembers of a backbone."""


def needed(recipe: Recipe, backbones: Mapping[int, str]) -> dict[int, str]:
    """The backbones that a recipe reads, out of those given.

    Raises
    ------
    RecipeError
        If it needs more than are given.
    """
    if recipe.needed_backbones > len(backbones):
        roles = _ROLES[recipe.needed_backbones]
        raise RecipeError(
            f"The recipe {recipe.name!r} needs {recipe.needed_backbones} backbones ({roles}); {len(backbones)} given. "
            "Pass them in this order: backbones=(...), or --backbone once for each."
        )
    wanted = {reads.backbone for reads in recipe.reads}
    return {index: name for index, name in backbones.items() if index in wanted or None in wanted}


_ROLES = {
    1: "any",
    2: "the deep one, then a sentence backbone for the role B",
    3: "the deep one, then sentence backbones for the roles B and R",
}


def groups(recipe: Recipe, sources: Mapping[int, "Source"]) -> list[list["Block"]]:
    """The blocks of each `Reads` of a recipe."""
    from sonde.read.sources import expand_blocks

    found = []
    for reads in recipe.reads:
        indexes = sources if reads.backbone is None else [i for i in (reads.backbone,) if i in sources]
        blocks = [b for i in indexes for b in expand_blocks(i, sources[i], reads.site, reads.pooling)]
        found.append(blocks if reads.last is None else blocks[::-1][: reads.last])
    return found


def about(source: "Source") -> dict[str, Any]:
    """What a saved model remembers of a source: the keys of `ABOUT`."""
    backbone = source.backbone
    return {
        "id": str(backbone.path) if _is_relative(backbone.name) else backbone.name,
        "fingerprint": backbone.fingerprint,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "max_tokens": source.view.max_tokens,
        "long_text": source.view.long_text,
    }


def _is_relative(name: str) -> bool:
    """Whether a name is that of a folder as seen from where this process works."""
    return Path(name).is_dir() and not Path(name).is_absolute()


_said: set[tuple[str, str]] = set()


def check_same(known: Mapping[str, Any], source: "Source") -> None:
    """`ModelError` if the backbone is another; another dtype is only logged, once."""
    backbone = source.backbone
    if backbone.fingerprint != known["fingerprint"]:
        raise ModelError(
            f"{backbone.name} is not the backbone that the model was trained on (fingerprint "
            f"{backbone.fingerprint[:12]} instead of {known['fingerprint'][:12]}). Give the right one with backbones=."
        )
    dtype = str(backbone.dtype).removeprefix("torch.")
    if dtype != known["dtype"] and (backbone.name, dtype) not in _said:
        _said.add((backbone.name, dtype))
        logger.warning("%s was read in %s for training and is now read in %s", backbone.name, known["dtype"], dtype)


def token_loss(window: "Window | None") -> dict[str, int]:
    """Rows that were cut, and the tokens they lost."""
    if window is None:
        return {"truncated_rows": 0, "lost_tokens": 0}
    return {"truncated_rows": int((window.lost > 0).any(axis=0).sum()), "lost_tokens": int(window.lost.sum())}


def warn_lost(window: "Window") -> None:
    """Say how much of the training texts was cut."""
    loss = token_loss(window)
    if loss["truncated_rows"]:
        share = loss["lost_tokens"] / max(int(window.tokens.sum()), 1)
        warn(
            f"{loss['truncated_rows']} texts are longer than the model reads: {loss['lost_tokens']} tokens "
            f"({share:.1%}) were lost. long_text='windows' reads everything, 'head_tail' beginning and end.",
            "truncated_rows",
            loss["truncated_rows"],
        )


def warn_truncated(rows: int) -> None:
    """Say that texts to be labelled were cut."""
    if rows:
        warn(f"{rows} texts are longer than the model reads and were cut.", "truncated_rows", rows)
