"""Neurons: which of which layers the model uses, without any text.

neurons   Subject -> the picture of `sonde inspect --svg`, or a sentence
"""

from typing import Any

from sonde.explanation import layers_of
from sonde.show.layers import picture
from sonde.show.report.markup import Markup, element, joined, percent, scrolled, table
from sonde.show.report.subject import Subject

PLACES = 64
"""Of a layer in the picture: half of what `sonde inspect` draws, so that it fits beside its figures."""


def neurons(subject: Subject) -> Markup:
    """Left out, with a sentence, for networks and models that read no backbone."""
    blocks = layers_of(subject.classifier)
    if not blocks:
        why = "it ends in a network" if subject.classifier.backbones_ else "it reads no backbone"
        return element("p", f"Left out: this model is not linear in a backbone's neurons, as {why}.")
    said = (
        "The squared weight of each neuron on standardised activations, over that of all: what the model may use, "
        "before it sees a text."
    )
    coarse = [{**block, "stretches": _joined(block["stretches"])} for block in blocks]
    drawn = scrolled(Markup(picture(coarse, "Layers and neurons that the model uses")), "Picture")
    return joined([element("p", said), element("figure", drawn, class_="layers"), _figures(blocks)])


def _joined(stretches: list[float]) -> list[float]:
    size = -(-len(stretches) // PLACES)
    return [sum(stretches[start : start + size]) for start in range(0, len(stretches), size)]


def _figures(blocks: list[dict[str, Any]]) -> Markup:
    several = len({block["backbone"] for block in blocks}) > 1
    rows = []
    for block in reversed(blocks):
        layer = f"{block['backbone']}/{block['site']}" if several else block["site"]
        width = f"{block['width']:,}" if block["width"] else "–"
        rows.append([layer, block["pooling"], f"{block['kept']:,}", width, percent(block["share"])])
    return table("The same in figures", ["layer", "pooling", "neurons used", "of", "weight"], rows, words=2)
