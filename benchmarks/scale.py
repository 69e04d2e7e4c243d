"""How fast does `sonde predict` go through long files, in how much memory, and what would a billion texts cost?

    python benchmarks/scale.py --data DIR [--rows 50000 500000 2000000] [--beside 100000] [--ray] [--layer 2]

The training texts of SST-2, repeated, words of each in another order and with a running number, so that no two are
equal; a `linear` model of 2,000 of them on all-MiniLM-L6-v2: of its last layer, or with --layer of an earlier one and
none above it. Each line is a command of its own, without a store. Once a second its processes are asked what memory
they have held at most (resident, summed: pages that they share count several times), and its folder of parts how far it
is. A line that is finished is kept: the same command goes on with those that are missing.

rows     one process, several numbers of rows: memory and rate must not depend on them
beside   one process and two, and with --ray two actors; a run that is killed half-way and goes on: equal bytes
other    a model that reads more layers, or fewer: what a text takes beside its operations follows from both
long     AG News in place of SST-2, through both models: the points that the cost model is checked against

run          measure, and write scale.{json,md}
command_of   one command, watched
gathered     the lines in groups, and what follows from them
cost         what a billion texts take, estimated
to_markdown  the page, from the JSON alone
"""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ratios import asked_of, sha256_of

from sonde.bench import machine
from sonde.bench.cells import Cells, opened, table, write_page
from sonde.bench.datasets import read_split
from sonde.classifier import TextClassifier
from sonde.errors import DataError
from sonde.plan import BUNDLE
from sonde.tables import TableWriter

ROWS = (50_000, 500_000, 2_000_000)
BESIDE = 100_000
TRAIN_ROWS = 2000
LOOK_SECONDS = 1.0
MOST_GROWTH = 1.10
"""The most memory that the longest file may take, as a multiple of the shortest."""
STRETCH = 10_000
BILLION = 10**9


@dataclass(frozen=True)
class Hardware:
    """What a cost is estimated for."""

    name: str
    """In words."""
    flops: float
    """Multiplications and additions a second that it sustains on these models: the product of the next two."""
    peak: float
    """What its maker states, dense, in bfloat16."""
    share: float
    """Of the peak, that is assumed to be reached; measured where it is this machine."""
    dollars_an_hour: float
    """Assumed price."""
    cores: int
    """That handle texts: read, tokenise and write them."""
    apart: bool
    """Whether something else than these cores computes, at the same time."""


@dataclass(frozen=True)
class Backbone:
    """Whose texts are counted."""

    name: str
    """In words."""
    parameters: float
    """That every token is multiplied with: those of the layers, without embeddings."""
    layers: int
    """How many."""
    width: int
    """Of the residual stream."""


SMALL = Backbone("22M parameters (all-MiniLM-L6-v2, 10.6M of them in its layers)", 10.6e6, 6, 384)
LARGE = Backbone("7B parameters (32 layers of width 4,096, 6.5B in them)", 6.5e9, 32, 4096)
H100_PEAK, H100_SHARE, H100_DOLLARS, H100_CORES = 989e12, 0.35, 2.5, 16
"""The data sheet of the SXM version; what transformers without special kernels reach on long batches; a price on demand
of 2026, and the cores that come with it. The last three are assumptions, not measurements."""
CORE_DOLLARS = 0.04
"""An hour of one core of a rented machine: assumed."""
TOKENS = (16, 128, 512)
"""Of a text: a sentence, a message, a page."""


def run(
    *,
    data: Path,
    out: Path,
    rows: Sequence[int] = ROWS,
    beside: int = BESIDE,
    ray: bool = False,
    layer: int | None = None,
    rounds: int = 1,
    thread_count: int | None = None,
    backbone: str = BUNDLE,
    note: str = "",
) -> list[Path]:
    """Measure, and write the page."""
    if sorted(rows) != list(rows) or not rows:
        raise DataError(f"--rows is {list(rows)}; give numbers of rows, the smallest first.")
    if thread_count:
        os.environ["OMP_NUM_THREADS"] = str(thread_count)  # of the commands that are measured
    texts = read_split(data, "sst2", "train")
    long = read_split(data, "ag_news", "train").texts
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, other = root / "model", root / "other"
        trained = texts.take(TRAIN_ROWS)
        for path, last in ((model, layer), (other, other_layer(layer))):
            sites = None if last is None else (f"hidden.{last}",)
            TextClassifier("linear", (backbone,), cache=None, sites=sites).fit(trained.texts, trained.labels).save(path)
        cells = opened(out / "scale.json", {
            "backbone": backbone, "layer": layer, "note": note, "sha256": sha256_of(texts.texts),
            "threads": thread_count, "processor": machine.describe()["processor"],
        })  # fmt: skip
        for count in rows:
            _best(cells, f"rows|{count}", rounds, root, model, texts.texts, count)
        compared(cells, root, model, texts.texts, beside, ray)
        few = max(beside // 2, 100)
        _best(cells, "other", rounds, root, other, texts.texts, few)
        _best(cells, "long|model", rounds, root, model, long, few)
        _best(cells, "long|other", rounds, root, other, long, few)
        if "tokens" not in cells:
            cells.put("tokens", tokenised({"sst2": (texts.texts, rows[-1]), "ag_news": (long, few)}, backbone))
    return write_page(cells.path, to_markdown(cells.content))


def other_layer(layer: int | None) -> int | None:
    """What the second model reads: the last layer, or the first where the first model reads the last."""
    return 1 if layer in (None, SMALL.layers) else None


def _best(cells: Cells, key: str, rounds: int, root: Path, model: Path, texts: Sequence[str], rows: int) -> None:
    """The fastest of several runs."""
    if key not in cells:
        source = write_texts(root / "in.csv", texts, rows)
        found = [command_of(model, source, root / "out.csv") for _ in range(rounds)]
        cells.put(key, min(found, key=lambda one: float(one["seconds"])))


def compared(cells: Cells, root: Path, model: Path, texts: Sequence[str], rows: int, ray: bool) -> None:
    """One process, two, two actors, and one that is killed and goes on: times, memory, and whether the bytes agree."""
    source = write_texts(root / "in.csv", texts, rows)
    lines: dict[str, list[str]] = {"one process": [], "two processes": ["--workers", "2"]}
    if ray:
        lines["two actors of Ray"] = ["--engine", "ray", "--workers", "2"]
    for name, more in lines.items():
        if f"beside|{name}" not in cells:
            cells.put(f"beside|{name}", command_of(model, source, root / "out.csv", more))
    if "beside|killed half-way, and again" not in cells:
        killed = command_of(model, source, root / "out.csv", kill=True)
        again = command_of(model, source, root / "out.csv")
        seconds = round(killed["seconds"] + again["seconds"], 1)
        cells.put("beside|killed half-way, and again", {**again, "seconds": seconds})


def write_texts(path: Path, texts: Sequence[str], rows: int) -> Path:
    """So many different texts: those that there are, words shuffled from the second time on, each with its number."""
    generator = np.random.default_rng(0)
    with TableWriter(path) as writer:
        for start in range(0, rows, STRETCH):
            numbers = range(start, min(start + STRETCH, rows))
            writer.write({"text": [_numbered(texts, number, generator) for number in numbers]})
    return path


def _numbered(texts: Sequence[str], number: int, generator: np.random.Generator) -> str:
    words = texts[number % len(texts)].split()
    return " ".join([*(generator.permutation(words).tolist() if number >= len(texts) else words), str(number)])


def tokenised(sets: Mapping[str, tuple[Sequence[str], int]], backbone: str) -> dict[str, Any]:
    """Mean number of tokens of some of the texts that were written of each set, and how many a core makes in a second.

    Parameters
    ----------
    sets : mapping of str to (texts, how many were written)
    """
    from sonde.read.sources import open_sources
    from sonde.read.view import tokenise

    source = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="cpu")[0]
    found: dict[str, float] = {}
    watch, made = machine.Stopwatch(), 0
    generator = np.random.default_rng(0)
    for name, (texts, rows) in sets.items():
        few = [_numbered(texts, number, generator) for number in range(0, rows, max(rows // TRAIN_ROWS, 1))]
        tokens = sum(map(len, tokenise(few, source.backbone.tokenizer, source.view).ids))
        found[name], made = round(tokens / len(few), 1), made + tokens
    return {"tokens": found, "tokens_a_core_second": round(made / max(watch.read()["cpu_seconds"], 1e-3))}


# ---------------------------------------------------------------------------------------------------- one command


def command_of(model: Path, source: Path, out: Path, more: Sequence[str] = (), kill: bool = False) -> dict[str, Any]:
    """Run `sonde predict`, and watch it; with `kill`, end it when half of its parts are there."""
    line = [sys.executable, "-m", "sonde", "predict", str(model), str(source), "--out", str(out), "--no-cache", *more]
    began = time.monotonic()
    with source.open("rb") as file:
        rows = sum(1 for _ in file) - 1
    seen: list[tuple[float, float, int]] = []  # seconds, MB, rows in parts
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen([*line, "--json"], **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None:
            done = _rows_done(out.with_name(out.name + ".parts"))
            seen.append((time.monotonic() - began, resident(process.pid), done))
            if kill and done >= rows / 2:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(LOOK_SECONDS)
        seconds, said = time.monotonic() - began, process.stdout.read()
    if process.returncode and not kill:
        raise DataError(f"sonde predict stopped with {process.returncode}; run it: {' '.join(line)}")
    return {
        "rows": rows if kill else json.loads(said)["rows"],
        "seconds": round(seconds, 1),
        "peak_mb": round(max(mb for _, mb, _ in seen), 1),
        **steadiness(seen),
        "sha256": "" if kill else _sha256(out),
    }


def _rows_done(parts: Path) -> int:
    """Rows in parts that are written; all parts but the last of a file of short texts are full."""
    from sonde.scale.parts import PART_ROWS

    return PART_ROWS * sum(1 for _ in parts.glob("part-*")) if parts.is_dir() else 0


def steadiness(seen: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Rows a second while parts come, and how the second half of that time compares with the first.

    Parameters
    ----------
    seen : sequence of (seconds, MB, rows in parts)

    Returns
    -------
    dict
        `rows_a_second`, `later_rate` and `later_mb`: the rate and the peak memory of the second half, as multiples of
        those of the first; None where too few parts came to say.
    """
    came = [now for before, now in pairwise(seen) if now[2] > before[2]]  # as a part was first seen
    if len(came) < 4:
        return {"rows_a_second": None, "later_rate": None, "later_mb": None}
    middle = came[len(came) // 2]
    peaks = [max(mb for second, mb, _ in seen if (second > middle[0]) == later) for later in (False, True)]
    return {
        "rows_a_second": round(_rate(came[0], came[-1]), 1),
        "later_rate": round(_rate(middle, came[-1]) / _rate(came[0], middle), 3),
        "later_mb": round(peaks[1] / peaks[0], 3),
    }


def _rate(first: tuple[float, float, int], last: tuple[float, float, int]) -> float:
    return (last[2] - first[2]) / (last[0] - first[0])


def resident(root: int) -> float:
    """MB that a process and its descendants have held at most, each by itself: looks fall between peaks."""
    return sum(_peak(pid) for pid in _tree(root)) * 1024 / 1e6


def _tree(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    left = [root]
    while left:
        yield (pid := left.pop())
        left += children.get(pid, [])


def _peak(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])  # kB
    return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------------- cost


def flops_of(backbone: Backbone, tokens: float) -> float:
    """Multiplications and additions of a text: two a parameter and token, and attention's, which grow as the square."""
    return 2 * backbone.parameters * tokens + 4 * backbone.layers * backbone.width * tokens**2


def gathered(content: Mapping[str, Any]) -> dict[str, Any]:
    """`rows`, `beside`, `other`, `long`, the tokens, and what a billion texts `cost`."""
    cells = content["cells"]
    groups: dict[str, dict[str, Any]] = {"rows": {}, "beside": {}, "long": {}}
    for key, cell in cells.items():
        group, _, name = key.partition("|")
        if group in groups:
            groups[group][name] = cell
    first = groups["beside"]["one process"]["sha256"]
    beside = {name: {**one, "equal": one["sha256"] == first} for name, one in groups["beside"].items()}
    rows = dict(sorted(groups["rows"].items(), key=lambda item: int(item[0])))
    found = {**content, "rows": rows, "beside": beside, "long": groups["long"], "other": cells["other"]}
    found |= cells["tokens"]
    return {**found, "cost": cost(found)}


def _seconds(cell: Mapping[str, Any]) -> float:
    """Of one text."""
    return 1 / float(cell["rows_a_second"] or cell["rows"] / cell["seconds"])


def cost(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a billion texts take: hours and dollars, estimated; the model is checked against what was measured.

    A text takes time of its own (it is read, tokenised and written) and time for its operations. Two models on the same
    texts differ in the second alone, so both follow from their rates on SST-2; with them those on AG News are foretold.
    """
    tokens, a_core = content["tokens"], content["tokens_a_core_second"]
    cores, layer = content["machine"]["cores"], content["setting"]["layer"]
    read = {"model": _of_layers(layer), "other": _of_layers(other_layer(layer))}
    took = {"model": _seconds(list(content["rows"].values())[-1]), "other": _seconds(content["other"])}
    more = flops_of(read["other"], tokens["sst2"]) - flops_of(read["model"], tokens["sst2"])
    longer = took["other"] - took["model"]
    sustained = more / longer if more * longer > 0 else math.inf  # by chance, of a few rows
    handled = took["model"] - flops_of(read["model"], tokens["sst2"]) / sustained
    base = max(handled * cores - tokens["sst2"] / a_core, 0.0)  # seconds of a core and text, but for its tokens
    here = Hardware(f"this machine, {cores} cores", sustained, sustained, 1.0, CORE_DOLLARS * cores, cores, False)
    reached = H100_PEAK * H100_SHARE
    there = Hardware(
        f"one H100 (SXM), {H100_CORES} cores", reached, H100_PEAK, H100_SHARE, H100_DOLLARS, H100_CORES, True
    )

    def parts(backbone: Backbone, hardware: Hardware, length: float) -> tuple[float, float]:
        """Seconds of a text: handling, computing."""
        return (base + length / a_core) / hardware.cores, flops_of(backbone, length) / hardware.flops

    checks = {name: (sum(parts(read[name], here, tokens["ag_news"])), _seconds(content["long"][name])) for name in read}
    return {
        "check": {
            name: {
                "layers": read[name].layers,
                "measured": round(1 / measured, 1),
                "foretold": round(1 / foretold, 1),
                "ratio": round(measured / foretold, 3),
            }
            for name, (foretold, measured) in checks.items()
        },
        "handling_core_seconds": base,
        "hardware": [asdict(one) for one in (here, there)],
        "estimated": [
            _estimate(backbone, hardware, length, *parts(backbone, hardware, length))
            for backbone, hardware in ((SMALL, here), (SMALL, there), (LARGE, there))
            for length in TOKENS
        ],
    }


def _of_layers(layer: int | None) -> Backbone:
    """The small backbone up to a layer."""
    layers = SMALL.layers if layer is None else layer
    return replace(SMALL, parameters=SMALL.parameters * layers / SMALL.layers, layers=layers)


def _estimate(backbone: Backbone, hardware: Hardware, tokens: int, handling: float, computing: float) -> dict[str, Any]:
    seconds = (max(handling, computing) if hardware.apart else handling + computing) * BILLION
    return {
        "backbone": backbone.name,
        "hardware": hardware.name,
        "tokens": tokens,
        "bound": "handling" if handling > computing else "computing",
        "hours": round(seconds / 3600, 1),
        "dollars": round(seconds / 3600 * hardware.dollars_an_hour),
    }


# ----------------------------------------------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    content = gathered(content)
    setting = content["setting"]
    layer = "the last layer" if setting["layer"] is None else f"layer {setting['layer']} (none above it is read)"
    parts = [
        "# Long files",
        "Written by `python benchmarks/scale.py`; every figure comes from `scale.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"`sonde predict` with a `linear` model on {layer} of {setting['backbone']}, no store; SST-2, repeated, words "
        f"shuffled, each text with its number, {content['tokens']['sst2']} tokens on average. Memory is the sum "
        "of the peaks of all processes of the command; pages that they share count several times.",
        "## One process",
        table(["rows", "seconds", "rows/s", "2nd half / 1st", "peak MB", "2nd half / 1st"], list(_rows(content))),
        growth(content),
        "## Beside one another",
        table(["", "rows", "seconds", "rows/s", "peak MB", "the same bytes"], list(_beside(content))),
        "Seconds are those of the whole command: two processes load two models, and Ray starts several processes more. "
        "rows/s are counted while parts come. On a machine whose cores one process keeps busy, several processes gain "
        "little: they are for GPUs and sockets.",
        "## A billion texts, estimated",
        _assumptions(content),
        table(
            ["backbone", "hardware", "tokens a text", "bound by", "hours", "dollars"],
            [
                [*(one[name] for name in ("backbone", "hardware", "tokens", "bound")), *_bill(one)]
                for one in content["cost"]["estimated"]
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    for rows, one in content["rows"].items():
        yield [
            f"{int(rows):,}", f"{one['seconds']:,.0f}", _shown(one["rows_a_second"], ",.0f"),
            _shown(one["later_rate"], ".2f"), f"{one['peak_mb']:,.0f}", _shown(one["later_mb"], ".2f"),
        ]  # fmt: skip


def _beside(content: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, one in content["beside"].items():
        rate = "" if name.startswith("killed") else _shown(one["rows_a_second"], ",.0f")
        equal = "yes" if one["equal"] else "**no**"
        yield [name, f"{one['rows']:,}", f"{one['seconds']:,.0f}", rate, f"{one['peak_mb']:,.0f}", equal]


def _shown(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def _bill(one: Mapping[str, Any]) -> list[str]:
    return [f"{one['hours']:,.0f}", f"{one['dollars']:,.0f}"]


def growth(content: Mapping[str, Any]) -> str:
    """Whether memory is flat."""
    peaks = {int(rows): one["peak_mb"] for rows, one in content["rows"].items()}
    first, last = min(peaks), max(peaks)
    ratio = peaks[last] / peaks[first]
    kept = "within" if ratio <= MOST_GROWTH else "**not within**"
    return (
        f"{last:,} rows hold {ratio:.3f} times the memory of {first:,}, {kept} {MOST_GROWTH:.2f}. One part is held at "
        "a time: at most 4,096 texts, their tokens and values."
    )


def _assumptions(content: Mapping[str, Any]) -> str:
    found = content["cost"]
    here, there = found["hardware"]
    checks = "; ".join(
        f"{one['foretold']:,.0f} rows/s with {one['layers']} layers, where {one['measured']:,.0f} were measured (a "
        f"ratio of {one['ratio']:.2f})"
        for one in found["check"].values()
    )
    return (
        "Estimated, not measured. A text is handled (read, tokenised, written) and computed. Its operations are two a "
        "parameter of the layers and token, and those of attention. The longest run above and "
        f"{content['other']['rows']:,} rows of the same texts through a model of {found['check']['other']['layers']} "
        f"layers differ in them alone: this machine sustains {here['flops'] / 1e9:,.0f} GFLOP/s, and a text takes "
        f"{1e6 * found['handling_core_seconds']:,.0f} microseconds of a core, and what a core takes for its tokens "
        f"({content['tokens_a_core_second']:,} a second). On AG News ({content['tokens']['ag_news']} tokens), which is "
        f"not used, that foretells {checks}. For {there['name']} it is assumed: {there['share']:.0%} of its stated "
        f"{there['peak'] / 1e12:,.0f} TFLOP/s in bfloat16, while its cores handle texts as those here do; the "
        f"slower of the two is the bound. Prices are assumed: ${here['dollars_an_hour']:.2f} and "
        f"${there['dollars_an_hour']:.2f} an hour. Not counted: loading, moving files, machines that stand idle."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and say whether memory is flat."""
    parser = asked_of(__doc__, 1)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="numbers of rows, ascending")
    parser.add_argument("--beside", type=int, default=BESIDE, help="rows of one process beside two (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="two actors of Ray as well; needs the extra `ray`")
    parser.add_argument("--layer", type=int, help="that the model reads (default: the last)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write(growth(gathered(json.loads(written[0].read_text(encoding="utf-8")))) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
