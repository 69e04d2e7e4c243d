"""Explanations in the terminal: the text coloured by what each token said, and the largest contributions below it.

explanation   what `sonde explain` prints
shaded        a text and its tokens -> coloured, or marked where there are no colours
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from sonde.show.terminal import console, facts, table, visible

Plain = Mapping[str, Any]

TOP_TOKENS = 10
"""Rows of the table of tokens; `--json` has all."""

FOR, AGAINST = ("#cfe3f7", "#7fb6ea", "#1f6fb5"), ("#fbe0c4", "#f0aa66", "#b85c00")
"""Backgrounds from weak to strong: blue and orange, which the colour-blind tell apart."""

ENOUGH_COLOURS = ("256", "truecolor")
"""Terminals of 16 colours show both weak shades as white: they get marks."""

STEPS = (0.15, 0.4, 0.7)
"""A token is weak, middling or strong from these fractions of the text's largest contribution on."""


def explanation(result: Plain) -> None:
    """One text after another."""
    coloured = console().color_system in ENOUGH_COLOURS and not console().no_color
    for number, one in enumerate(result["texts"]):
        if number:
            console().print()
        _head(one, result["multilabel"])
        console().print(_legend(one, coloured))
        console().print(shaded(one["text"], one["tokens"], coloured))
        _tables(one)


def _head(one: Plain, several: bool) -> None:
    rival = one["against"] if one["against"] is not None else "its absence" if several else "all others"
    tokens = sum(token["contribution"] for token in one["tokens"])
    terms = f"{one['bias']:.4f} for the average text, {tokens:+.4f} by this one"
    facts(
        {
            "label": f"{one['label']}, probability {one['probability']:.4f}",
            "log-odds": f"{one['score']:.4f} against {rival} = {terms}",
            "found": f"{one['method']}; the sum lacks {abs(one['remainder']):.1g}",
        }
    )


def _legend(one: Plain, coloured: bool) -> Text:
    if not coloured:
        return Text(f"[+for] [++much] [+++most] {visible(str(one['label']))}, [-against] [--much] [---most]")
    legend = Text("for ")
    for word, shades in (("", FOR), (" against ", AGAINST)):
        legend.append(word)
        for shade in shades:
            legend.append("  ", style=f"on {shade}")
    return legend


def shaded(text: str, tokens: Sequence[Plain], coloured: bool) -> Text:
    """The text with each token's strength, special tokens in between.

    Where there are no colours, tokens are marked like [++this] or [-that].
    """
    strongest = max((abs(token["contribution"]) for token in tokens), default=0.0) or 1.0
    shown, end = Text(), 0
    for token in tokens:
        start, stop = token["start"], token["stop"]
        place = end if start is None else max(start, end)
        shown.append(visible(text[end:place]))
        word = f"{token['text']} " if start is None else text[place:stop]
        _append(shown, word, token["contribution"] / strongest, coloured)
        end = max(place, stop or 0)
    shown.append(visible(text[end:]))
    return shown


def _append(shown: Text, word: str, strength: float, coloured: bool) -> None:
    """One token; several may stand for the same character, of which the first is shown."""
    level = sum(abs(strength) >= step for step in STEPS)
    if not word or not level:
        shown.append(visible(word))
    elif coloured:
        shade = (FOR if strength > 0 else AGAINST)[level - 1]
        shown.append(visible(word), style=f"{'white' if level == len(STEPS) else 'black'} on {shade}")
    else:
        mark = ("+" if strength > 0 else "-") * level
        shown.append(f"[{mark}{visible(word.rstrip())}]{' ' if word.endswith(' ') else ''}")


def _tables(one: Plain) -> None:
    """The largest contributions of each kind."""
    largest = sorted(one["tokens"], key=lambda token: -abs(token["contribution"]))[:TOP_TOKENS]
    table(["token", "at", "contribution"], [[t["text"], _at(t), t["contribution"]] for t in largest])
    if any(layer["backbone"] is not None for layer in one["layers"]):
        rows = [[_of(r), r["contribution"], f"{r['share']:.0%}"] for r in one["layers"]]
        table(["layer", "contribution", "share"], rows)
    if one["neurons"]:
        rows = [[_of(r), r["pooling"], str(r["neuron"]), r["contribution"]] for r in one["neurons"]]
        table(["layer", "pooling", "neuron", "contribution"], rows)
    if one["grams"]:
        rows = [[f"'{r['gram']}'", r["kind"], r["count"], r["contribution"]] for r in one["grams"]]
        table(["n-gram", "of", "times", "contribution"], rows)


def _at(token: Plain) -> str:
    """Where a token stands: first character and the one after its last."""
    if token["start"] is None:
        return "special" if token["special"] else ""
    return f"{token['start']}-{token['stop']}"


def _of(row: Plain) -> str:
    """The site, with the backbone's number where there may be several."""
    return row["site"] if not row["backbone"] else f"{row['backbone']}/{row['site']}"
