"""The page on performance: what each benchmark found, what it means, and where its limit lies.

    python benchmarks/performance.py [--results docs/results] [--out docs/performance.md]

Every figure comes from the JSON files of the benchmarks; one that is missing is said to be missing, with the command
that measures it.

PARTS   the benchmarks, in the order of the page
page    the folder of results -> Markdown
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import growth
import heads
import limit
import memory
import reading
import released
import start
import training

from sonde.bench import machine
from sonde.tables import write_atomically

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One benchmark on the page."""

    name: str
    """Of the script and of its JSON file."""
    title: str
    """The heading."""
    figures: Callable[[Content], Sequence[str]]
    """What it found, as paragraphs."""
    limit: str
    """What the figures mean, and what bounds them."""


PARTS = (
    Part(
        "reading",
        "Beside sentence-transformers",
        lambda found: [
            reading.ratios_table(found, "seconds"), reading.taps(found), reading.accuracy_sentence(found["accuracy"])
        ],
        "Each ratio is that of two readings of the same texts, one after the other. Most of it is the dtype: "
        "processors with tiles for bfloat16 (AMX) multiply several times faster in it, those with vector units alone "
        "(AVX512-BF16) about twice. The rest is texts that stand side by "
        "side without pads, freed memory that is kept for the next batch, attention of short texts in two batched "
        "products, sums that are made in the products, and pooling while the model runs. Long texts that nearly all "
        "have the same length gain least. On processors without such units "
        "sonde reads in float32, and the line on float32 holds. `dtype=\"float32\"` switches bfloat16 off.",
    ),
    Part(
        "limit",
        "Beside the machine's own matrix product",
        lambda found: [limit.shares(found)],
        "A share of 1 would be a reading that does nothing but multiply. What is lost goes to work that is no matrix "
        "product: exponentials of attention, the error function of the activation, sums and normalisation, which wait "
        "for memory. The page of the benchmark has it by operator.",
    ),
    Part(
        "released",
        "Beside the released way of LLMEmbed",
        lambda found: [released.ratios_table(found)],
        "The gain is the padding that is not computed, hence it follows the ratio of padded to real tokens: large "
        "where texts are much shorter than the maximum, none where all are as long.",
    ),
    Part(
        "memory",
        "Memory",
        lambda found: [memory.growth(found)],
        "Memory grows with the model, with the number of values read of each text, and with the longest text; not with "
        "the number of texts. `sonde fit` holds the blocks of its training rows besides.",
    ),
    Part(
        "training",
        "Training",
        lambda found: [
            training.loops_table(found), training.accuracy_sentence(found), heads.heads_table(found["heads"])
        ],
        "Both loops multiply the same matrices. What the released one adds is handing out rows one by one, putting "
        "them together again, sending them from one process to another, and metrics that nobody reads; what is left "
        "is the network, whose width bounds the ratio: the wider the features, the less the rest weighs. Logistic "
        "heads are fitted as paths, all folds over all values of C, which share their matrix products; a single C "
        "alone is solved much further than scikit-learn goes by default, because probabilities depend on it, and takes "
        "the iterations that this needs.",
    ),
    Part(
        "start",
        "Start",
        lambda found: [start.start_table(found)],
        "Most of a prediction of one row is the import of torch and transformers, which sonde cannot shorten; the help "
        "needs neither. A second fit finds its rows in the store: what it takes is finding them and reading files.",
    ),
    Part(
        "growth",
        "Growth",
        lambda found: [
            growth.slopes_table(found), growth.attention_sentence(found),
            *(f"![{alt}](results/{growth.PICTURES[what]})" for what, alt in (
                ("rows", "Seconds over rows"), ("tokens", "Milliseconds of a text over its tokens")
            )),
        ],
        "Below a slope of 1 lie costs that do not grow: of a call, of a batch that is not full. Above it lies "
        "attention, which costs a text the square of its length; on short texts its share is that of many products too "
        "small to fill the processor.",
    ),
)  # fmt: skip


def page(results: Path) -> str:
    """The whole page, from the JSON files that are there."""
    parts = [
        "# Performance",
        "Written by `python benchmarks/performance.py` from the files in `docs/results`; `make bench` measures "
        "all of it on your machine. Everything is a ratio of two times of one run, taken "
        "in turn, after the results were found equal; in brackets an interval of at least 95% for its median. Ratios "
        "differ from processor to processor: where several were measured, the last figures of each are here.",
    ]
    for part in PARTS:
        parts.append(f"## {part.title}")
        path = Path(results) / f"{part.name}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            parts += [
                *part.figures(found),
                part.limit,
                f"{_about(found)} More: [results/{part.name}.md](results/{part.name}.md).",
            ]
            for other in found.get("elsewhere", {}).values():  # a picture is of the first alone
                shown = [one for one in part.figures(other) if not one.startswith("![")]
                parts += ["On another machine:", *shown, _about(other)]
        else:
            parts += [f"Not measured yet: `make bench`, or `python benchmarks/{part.name}.py`.", part.limit]
    return "\n\n".join(parts) + "\n"


def _about(found: Content) -> str:
    """Where it was measured, and what the one who did says of it."""
    return " ".join(filter(None, [machine.sentence(found["machine"]), found["setting"].get("note")]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of JSON files (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"), help="the page (%(default)s)")
    given = parser.parse_args(arguments)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(given.out) as file:
        file.write(page(given.results))
    sys.stdout.write(f"{given.out}\n")


if __name__ == "__main__":
    main()
