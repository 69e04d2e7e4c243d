"""Does reading time grow as the texts do: with their number, and with their length?

    python benchmarks/growth.py --data DIR [--scale 1.0] [--rounds 2] [--threads N] [--out docs/results]

rows     1,000 to 64,000 rows of SST-2, repeated, each with a running number, so that no two are equal
tokens   8 to 256 tokens a text, 65,536 tokens in all for each length: words of AG News that are one token each, in
         their order, cut to equal lengths; hence time / texts is the time of a text

Sentence embeddings of all-MiniLM-L6-v2, no store. Each size is read once a round, by both clocks. The slope is that of
the least-squares line through log time and log size of all rounds, its interval that of Student's t (95%). Attention
costs a text the square of its length; one more reading of each length says which share of the processor time its
function took, and the slope of the rest is shown beside that of everything.

run          measure, and write growth.{json,md} and two pictures, growth_rows.svg and growth_tokens.svg
slope        sizes and times -> slope with its interval
picture      the same as SVG
to_markdown  the page, from the JSON alone
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from memory import numbered
from ratios import Times, asked_of, publish, sha256_of, threads, timed
from scipy.stats import linregress, t
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import read_split
from sonde.errors import DataError
from sonde.plan import BUNDLE
from sonde.read.blocks import Source
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources
from sonde.read.view import tokenise
from sonde.show.report.charts import Axis, Curve, chart
from sonde.tables import write_atomically

ROWS = (1000, 4000, 16_000, 64_000)
LENGTHS = (8, 16, 32, 64, 128, 256)
TOKENS = 65_536
"""Of each length: eight batches of a CPU, which the shortest and the longest texts fill alike."""
ROUNDS = 2  # up and down the sizes: eight and twelve readings, two for each size
LEAST, MOST = 0.93, 1.07
CLOCKS = {"seconds": "wall clock", "cpu_seconds": "processor time"}
STYLE = (
    "text{font:11px sans-serif;fill:#565c67}.name{fill:#1b1d21}.grid,.axis,.line,.whisker{fill:none;stroke:#d6d9df}"
    ".axis{stroke:#565c67}.line{stroke-width:1.8}.line.first{stroke:#2f6fd0}.line.second{stroke:#c4620a;"
    "stroke-dasharray:6 4}.line.guide{stroke:#a9afba}.dot.first{fill:#2f6fd0}.dot.second{fill:#c4620a}"
)
"""The colours of the report, which a picture in a file of its own must bring along."""
PICTURES = {"rows": "growth_rows.svg", "tokens": "growth_tokens.svg"}


def run(
    *,
    data: Path,
    out: Path,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    backbone: str = BUNDLE,
    note: str = "",
) -> list[Path]:
    """Measure, and write the page and its pictures; arguments as in `reading.run`."""
    with threads(thread_count) as count:
        source = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="cpu")[0]
        lengths = [length for length in LENGTHS if length <= source.view.max_tokens]
        by_rows, some = rows_part(data, source, scale, rounds)
        by_tokens, others = tokens_part(data, source, lengths, max(int(TOKENS * scale), max(lengths) * 2), rounds)
        content: dict[str, Any] = {
            "setting": {
                "backbone": backbone, "rounds": rounds, "threads": count, "note": note,
                "dtype": str(source.backbone.dtype).removeprefix("torch."),
                "sha256": {"sst2": some, "ag_news": others},
            },
            "machine": machine.describe(),
            "rows": by_rows,
            "tokens": by_tokens,
        }  # fmt: skip
    written = publish(out, "growth", content, to_markdown)
    for what, name in PICTURES.items():
        path = Path(out) / name
        with write_atomically(path) as file:
            file.write(picture(content, what))
        written.append(path)
    return written


def rows_part(data: Path, source: Source, scale: float, rounds: int) -> tuple[dict[str, Any], str]:
    """Times of every number of rows, and what the texts were."""
    known = read_split(data, "sst2", "train").texts
    sizes = [max(int(rows * scale), 2 + place) for place, rows in enumerate(ROWS)]
    texts = {size: numbered(known, size) for size in sizes}
    found = timed_in_turn({size: texts[size] for size in sizes}, source, rounds)
    return {"times": {str(size): times for size, times in found.items()}}, sha256_of(known)


def tokens_part(
    data: Path, source: Source, lengths: Sequence[int], tokens: int, rounds: int
) -> tuple[dict[str, Any], str]:
    """Times of a text by its length, attention's share, and what the texts were."""
    known = read_split(data, "ag_news", "train").texts
    words = single_words(known, source)
    texts = {length: of_length(words, length, tokens // length, source) for length in lengths}
    found = timed_in_turn(texts, source, rounds)
    return {
        "rows": {str(length): len(some) for length, some in texts.items()},
        "times": {str(length): times for length, times in found.items()},
        "attention": {str(length): attention(some, source) for length, some in texts.items()},
    }, sha256_of(known)


def timed_in_turn(texts: Mapping[int, list[str]], source: Source, rounds: int) -> dict[int, list[Times]]:
    """Every size once a round: ascending in one, descending in the next."""
    blocks = expand_blocks(0, source, "sentence", "")
    times: dict[int, list[Times]] = {size: [] for size in texts}
    read(texts[min(texts)], {0: source}, blocks)  # warms up
    for turn in range(rounds):
        for size in sorted(texts, reverse=turn % 2 == 1):
            times[size].append(timed(lambda some=texts[size]: read(some, {0: source}, blocks)))  # type: ignore[misc]
    return times


def single_words(texts: Sequence[str], source: Source) -> list[str]:
    """The words of the texts that are one token, in their order."""
    stream = [word for text in texts for word in text.split()]
    unique = list(dict.fromkeys(stream))
    found = source.backbone.tokenizer(unique, add_special_tokens=False)["input_ids"]
    single = {word for word, ids in zip(unique, found, strict=True) if len(ids) == 1}
    return [word for word in stream if word in single]


def of_length(words: Sequence[str], length: int, rows: int, source: Source) -> list[str]:
    """Distinct texts of exactly so many tokens, special tokens included."""
    room = length - int(tokenise([words[0]], source.backbone.tokenizer, source.view).tokens[0]) + 1
    found = dict.fromkeys(_first(_runs(words, room), rows))
    pieces = tokenise(list(found), source.backbone.tokenizer, source.view)
    if len(found) < rows or set(pieces.tokens.tolist()) != {length}:
        raise DataError(
            f"AG News gives {len(found):,} texts of {length} tokens for this tokenizer, of {rows:,} that are needed; "
            "give a smaller --scale, or a backbone whose tokens are words."
        )
    return list(found)


def _runs(words: Sequence[str], room: int) -> Iterator[str]:
    for start in range(0, len(words) - room + 1, room):
        yield " ".join(words[start : start + room])


def _first(texts: Iterator[str], count: int) -> list[str]:
    found: dict[str, None] = {}
    for text in texts:
        if len(found) == count:
            break
        found[text] = None
    return list(found)


def attention(texts: list[str], source: Source) -> float:
    """Attention's share of the processor time of one reading: what its function takes, of all layers."""
    blocks, name = expand_blocks(0, source, "sentence", ""), source.backbone._forward.model.config._attn_implementation
    real: Any = ALL_ATTENTION_FUNCTIONS.get(name)
    if real is None:  # a model with a way of its own
        return 0.0
    spent = 0.0

    def watched(*given: Any, **named: Any) -> Any:
        nonlocal spent
        start = time.process_time()
        found = real(*given, **named)
        spent += time.process_time() - start
        return found

    AttentionInterface.register(name, watched)
    try:
        whole = timed(lambda: read(texts, {0: source}, blocks))["cpu_seconds"]
    finally:
        AttentionInterface.register(name, real)
    return round(spent / max(whole, 1e-9), 4)


# ------------------------------------------------------------------ figures


def slope(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Slope of log time over log size by least squares: `slope`, and the 95% interval `low` to `high`."""
    x, y = np.log(np.array(points)).T
    line = linregress(x, y)
    width = float(t.ppf(0.975, max(len(points) - 2, 1)) * line.stderr)
    found = {"slope": float(line.slope), "low": float(line.slope) - width, "high": float(line.slope) + width}
    return {name: round(value, 4) for name, value in found.items()}


def points_of(content: Mapping[str, Any], what: str, clock: str, bare: bool = False) -> list[tuple[float, float]]:
    """Sizes and seconds of all rounds: of all rows, or of one text by its length; `bare` leaves attention out."""
    part = content[what]
    found = []
    for size, times in part["times"].items():
        share = (1 - part["attention"][size] if bare else 1.0) / (part["rows"][size] if what == "tokens" else 1)
        found += [(float(size), max(one[clock], 1e-4) * share) for one in times]
    return found


def slopes_table(content: Mapping[str, Any]) -> str:
    """Every slope, and whether it is what was asked for."""
    kinds = [
        ("time over rows", "rows", False), ("time of a text over its tokens", "tokens", False),
        ("the same without attention", "tokens", True),
    ]  # fmt: skip
    rows = []
    for title, what, bare in kinds:
        for clock, name in CLOCKS.items():
            found = slope(points_of(content, what, clock, bare))
            kept = LEAST <= found["slope"] <= MOST
            rows.append([
                f"{title}, {name}", f"{found['slope']:.3f} ({found['low']:.3f} to {found['high']:.3f})",
                "within" if kept else "**not within**",
            ])  # fmt: skip
    return table(["what", "slope", f"{LEAST} to {MOST}"], rows)


def attention_sentence(content: Mapping[str, Any]) -> str:
    """Attention's share of each length."""
    shares = content["tokens"]["attention"]
    by_length = ", ".join(f"{share:.1%} at {length}" for length, share in shares.items())
    if not any(shares.values()):
        return "This model has an attention of its own, whose share is not known here."
    return f"Attention's share of the processor time, in one reading, by tokens a text: {by_length}."


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    parts = [
        "# Growth of reading time",
        "Written by `python benchmarks/growth.py`; every figure comes from `growth.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"{setting['backbone']}, sentence embeddings in {setting['dtype']}, {setting['threads']} threads, no store; "
        f"{setting['rounds']} rounds. Slopes of least-squares lines through log time and log size of all rounds, with "
        "the 95% interval of Student's t. A slope of 1 is a time that doubles where the size does.",
        slopes_table(content),
        attention_sentence(content),
        "## Rows",
        "SST-2, repeated, each text with a running number.",
        _times(content, "rows"),
        f"![Seconds over rows, both axes logarithmic]({PICTURES['rows']})",
        "## Tokens a text",
        "Words of AG News that are one token each, cut to equal lengths; the same number of tokens in all for each.",
        _times(content, "tokens"),
        f"![Milliseconds of a text over its tokens, both axes logarithmic]({PICTURES['tokens']})",
    ]
    return "\n\n".join(parts) + "\n"


def _times(content: Mapping[str, Any], what: str) -> str:
    part = content[what]
    rows = []
    for size, times in part["times"].items():
        count = part["rows"][size] if what == "tokens" else int(size)
        wall, cpu = (statistics.median(one[clock] for one in times) for clock in CLOCKS)
        rows.append([f"{int(size):,}", f"{count:,}", f"{wall:.2f}", f"{cpu:.2f}", f"{1000 * wall / count:.3f}"])
    heads = ["tokens a text" if what == "tokens" else "rows", "texts", "seconds", "processor seconds", "ms a text"]
    return table(heads, rows)


def picture(content: Mapping[str, Any], what: str) -> str:
    """Times over sizes as an SVG document: dots of every round, a line through their medians, a line of slope 1."""
    unit = 1000.0 if what == "tokens" else 1.0
    every = {clock: [(x, y * unit) for x, y in points_of(content, what, clock)] for clock in CLOCKS}
    sizes = sorted({x for x, _ in every["seconds"]})
    curves = [Curve(_proportional(_medians(every["seconds"]), sizes), "guide")]
    for clock, kind in (("seconds", "first"), ("cpu_seconds", "second")):
        curves += [Curve(_medians(every[clock]), kind), Curve(every[clock], kind, dots=True, line=False)]
    values = [y for curve in curves for _, y in curve.points]
    x = Axis("tokens a text" if what == "tokens" else "rows", sizes[0], sizes[-1], "{:,.0f}".format, True, tuple(sizes))
    low, high = min(values) / 1.2, max(values) * 1.2
    name = "ms a text" if what == "tokens" else "seconds"
    y = Axis(name, low, high, "{:g}".format, True, tuple(_marks(low, high)))
    said = "Blue: wall clock. Orange, dashed: processor time. Grey: a slope of 1."
    return standing_alone(str(chart(f"growth-{what}", f"{name} over {x.title}", said, x, y, curves, said)))


def _medians(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    sizes = sorted({x for x, _ in points})
    return [(size, statistics.median(y for x, y in points if x == size)) for size in sizes]


def _proportional(medians: Sequence[tuple[float, float]], sizes: Sequence[float]) -> list[tuple[float, float]]:
    """Slope 1 through the middle of the medians."""
    rate = float(np.exp(np.mean([np.log(y / x) for x, y in medians])))
    return [(size, rate * size) for size in (sizes[0], sizes[-1])]


def _marks(low: float, high: float) -> list[float]:
    """1, 3 and 10 of every decade."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    return [value for power in powers for value in (10.0**power, 3 * 10.0**power) if low <= value <= high]


def standing_alone(figure: str) -> str:
    """The picture of a chart of the report, with its colours, as a file of its own."""
    start, end = figure.index("<svg"), figure.index("</svg>") + len("</svg>")
    head, _, body = figure[start:end].partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="600" height="420"', 1)
    return f'{head}><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}\n'


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the slopes."""
    parser = asked_of(__doc__, ROUNDS)
    parser.add_argument("--scale", type=float, default=1.0, help="share of rows and tokens, for a trial (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    content = json.loads(written[0].read_text(encoding="utf-8"))
    sys.stdout.write(f"{slopes_table(content)}\n\n{attention_sentence(content)}\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
