"""How fast are texts read beside sentence-transformers, and what do taps cost?

    python benchmarks/reading.py --data DIR [--out docs/results] [--threads N] [--scale 1.0] [--int8]

2,000 texts of AG News, 4,000 of SST-2, 500 of IMDb; all-MiniLM-L6-v2, the machine's cores, no store, the same
`max_tokens` (that of the sentence-transformers folder) on both sides. Each library has a process of its own: sonde
tells the C library to keep freed memory, which would speed up the other, too. First the vectors are compared: nothing
is timed unless the least cosine is .999. Then every contender reads the same texts in turn, seven times.

st_float32, st_bfloat16   `SentenceTransformer.encode` with its defaults, and with the model in bfloat16
st_int8                   the same loop over ONNX Runtime and an int8 model, in its own environment (`onnx_int8.py`)
last, float32             sonde: the sentence embedding, in the dtype that it chooses, and forced to float32
hidden, every             sonde: all hidden states, mean and max; all feed-forward activations beside them
untapped                  sonde's batches through the model, nothing pooled

run          measure, and write reading.{json,md}
summary      ratios, from the measurements
accuracy     what bfloat16 costs in accuracy on AG News
to_markdown  the page, from the JSON alone
"""

import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx_int8 import started
from ratios import (
    ROUNDS,
    Times,
    against,
    asked_of,
    interleaved,
    lowest_cosine,
    publish,
    ratio,
    sha256_of,
    shown,
    threads,
    timed,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from worker import Unavailable, Worker, working

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import TITLES, DataSet, read_split
from sonde.errors import DataError
from sonde.learn.metrics import mcnemar
from sonde.plan import BUNDLE
from sonde.read.backbone import load_backbone
from sonde.read.batching import collate
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.forward import Forward
from sonde.read.packing import BUDGET, WIDER, apart, lay
from sonde.read.reader import divide
from sonde.read.sites import MAIN
from sonde.read.sources import expand_blocks, open_sources
from sonde.read.truncation import without_pooler
from sonde.read.view import filler_id, tokenise

ROWS = {"ag_news": 2000, "sst2": 4000, "imdb": 500}
SPLITS = {"ag_news": "test", "sst2": "train", "imdb": "test"}
"""SST-2's test split has fewer rows; nothing is learned from these texts."""
WARM_UP = 0.1  # share of the texts that every contender reads before the clock runs
LEAST_COSINE = 0.999  # of bfloat16 and float32; measured .9998 and above
SEED = 0
TRAIN_ROWS, TEST_ROWS = 4000, 7600
"""AG News: 4,000 rows train the logistic regression; the whole test split, so that .2 points are 15 rows."""
STRENGTH = 0.01  # C on standardised features: near what cross-validation takes on this set
MOST_LOST = 0.2  # points
MOST_TAPPED = 1.25

SITES: dict[str, tuple[tuple[str, str], ...]] = {
    "last": (("sentence", ""),),
    "hidden": (("hidden.*", "mean"), ("hidden.*", "max")),
    "every": (("hidden.*", "mean"), ("hidden.*", "max"), ("ffn.*", "mean"), ("ffn.*", "max")),
}
ASKED: tuple[tuple[str, str, str, float, float | None], ...] = (
    ("last layer, beside the default", "st_float32", "last", 3.8, 5.0),
    ("last layer, beside bfloat16", "st_bfloat16", "last", 1.3, None),
    ("last layer, beside int8", "st_int8", "last", 1.0, None),
    ("all hidden layers, mean and max, beside the default", "st_float32", "hidden", 3.4, 4.5),
    ("all hidden and feed-forward sites, beside the default", "st_float32", "every", 3.0, 4.0),
    ("last layer in float32, beside the default", "st_float32", "float32", 1.0, 1.1),
)
"""What, slower, faster, least ratio, goal. For int8 no ratio is asked: 1 says which is faster."""


def run(
    *,
    data: Path,
    out: Path,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    backbone: str = BUNDLE,
    int8: bool = False,
    note: str = "",
) -> list[Path]:
    """Compare, time, and write the page.

    Parameters
    ----------
    data : Path
        Folder of data sets.
    out : Path
        Folder of `reading.json` and `reading.md`.
    scale : float
        Share of the rows; below 1 for a trial.
    rounds : int
    thread_count : int, optional
        By default the machine's cores.
    backbone : str
        A folder that sentence-transformers can load, or the bundle.
    int8 : bool
        Make the environment of ONNX Runtime and time it too.
    note : str
        A sentence for the page, such as what else ran on the machine.

    Returns
    -------
    list of Path
    """
    with threads(thread_count) as count, ExitStack() as stack:
        folder = folder_of(backbone)
        theirs = theirs_in(stack, folder, count)
        width = width_of(folder)
        ours = {name: source(backbone, width, dtype) for name, dtype in (("auto", "auto"), ("float32", "float32"))}
        skipped = {}
        if int8:
            try:
                theirs["st_int8"] = stack.enter_context(started(folder, width, count))
            except Unavailable as reason:
                skipped["st_int8"] = str(reason)
        else:
            skipped["st_int8"] = "--int8 was not given"
        sets = {}
        for name, rows in ROWS.items():
            texts = read_split(data, name, SPLITS[name]).take(max(int(rows * scale), 1), SEED).texts
            sets[name] = measure(texts, theirs, ours, rounds)
        version = importlib.metadata.version("sentence-transformers")
        content: dict[str, Any] = {
            "setting": {
                "backbone": backbone, "max_tokens": width, "beside": f"sentence-transformers {version}",
                "rounds": rounds, "threads": count, "note": note,
                "dtype": str(ours["auto"].backbone.dtype).removeprefix("torch."),
            },
            "machine": machine.describe(),
            "sets": sets,
            "skipped": skipped,
            "accuracy": accuracy(data, ours, scale),
        }  # fmt: skip
    content["summary"] = summary(content)
    return publish(out, "reading", content, to_markdown)


def folder_of(backbone: str) -> str:
    """The folder of the weights, for whoever wants one."""
    return str(load_backbone(backbone, dtype="float32", device="cpu").path)


def theirs_in(stack: ExitStack, folder: str, count: int) -> dict[str, Worker]:
    """sentence-transformers with its defaults, and in bfloat16, each in a process of its own."""
    script = str(Path(__file__).with_name("sentences.py"))
    dtypes = {"st_float32": "float32", "st_bfloat16": "bfloat16"}
    return {
        name: stack.enter_context(working([sys.executable, script, folder, dtype, str(count)]))
        for name, dtype in dtypes.items()
    }


def width_of(folder: str) -> int:
    """Tokens that sentence-transformers reads of a text."""
    settings = json.loads((Path(folder) / "sentence_bert_config.json").read_text(encoding="utf-8"))
    return int(settings["max_seq_length"])


def source(backbone: str, max_tokens: int, dtype: str) -> Source:
    """The backbone as sonde reads it."""
    return open_sources({0: backbone}, max_tokens=max_tokens, long_text="cut", dtype=dtype, device="cpu")[0]


def measure(texts: list[str], theirs: Mapping[str, Worker], ours: Mapping[str, Source], rounds: int) -> dict[str, Any]:
    """Equality, then the times of every contender on one set."""
    made = {name: contender(ours, name) for name in ("last", "hidden", "every", "float32", "untapped")}
    few = texts[: max(int(len(texts) * WARM_UP), 1)]
    equal = equality(few, {**made, **{name: worker.vectors for name, worker in theirs.items()}})
    contenders = {name: _turn(reads, texts) for name, reads in made.items()}
    contenders |= {name: partial(worker.timed, texts) for name, worker in theirs.items()}
    pieces = tokenise(texts, ours["auto"].backbone.tokenizer, ours["auto"].view)
    return {
        "rows": len(texts), "tokens": int(pieces.tokens.sum() - pieces.lost.sum()), "sha256": sha256_of(texts),
        "lowest_cosine": equal, "times": interleaved(contenders, rounds, warm_up=lambda: None),
    }  # fmt: skip


def _turn(reads: Callable[[list[str]], object], texts: list[str]) -> Callable[[], Times]:
    return lambda: timed(lambda: reads(texts))


def contender(ours: Mapping[str, Source], name: str) -> Callable[[list[str]], Any]:
    """What sonde reads under this name; an array for the last layer, else nothing that is compared."""
    if name == "untapped":
        return lambda texts: untapped(texts, ours["auto"])
    place = ours["float32" if name == "float32" else "auto"]
    blocks = blocks_of(place, "last" if name == "float32" else name)
    if len(blocks) == 1:
        return lambda texts: read(texts, {0: place}, blocks).blocks[blocks[0].name]
    return lambda texts: read(texts, {0: place}, blocks)


def blocks_of(place: Source, name: str) -> list[Block]:
    """The blocks of `SITES`."""
    return [block for spec, how in SITES[name] for block in expand_blocks(0, place, spec, how)]


def untapped(texts: list[str], place: Source) -> None:
    """Tokenise, batch and run the model as reading does, pooling nothing."""
    backbone = place.backbone
    pieces = tokenise(list(dict.fromkeys(texts)), backbone.tokenizer, place.view)
    lengths, filler, packs = [len(ids) for ids in pieces.ids], filler_id(backbone.tokenizer), backbone._forward.packs
    models: dict[Forward, nn.Module] = {}

    def run(batch: np.ndarray) -> None:
        with backbone._lanes.one() as forward, torch.inference_mode():
            if forward not in models:
                models[forward] = forward.main_part(without_pooler(forward.model))
            if packs:
                packed = lay(pieces, batch, filler, backbone.causal, BUDGET + WIDER)
                with apart(packed.spans):
                    forward.call(models[forward], packed.ids, None, MAIN, **forward.placed(packed))
            else:
                inputs = collate(pieces, batch, filler, backbone.causal)
                forward.call(models[forward], inputs.ids, inputs.mask, MAIN)

    lanes, batches = divide(lengths, backbone, packs)
    for _ in backbone.each(run, batches, lanes):
        pass


def equality(texts: list[str], made: Mapping[str, Callable[[list[str]], Any]]) -> dict[str, float]:
    """The least cosine of each last layer with that of sentence-transformers; refused below .999."""
    expected = made["st_float32"](texts)
    found = {name: lowest_cosine(made[name](texts), expected) for name in ("last", "float32", "st_bfloat16")}
    for name, cosine in found.items():
        if not cosine >= LEAST_COSINE:
            raise DataError(
                f"{name} gives other vectors than sentence-transformers: the least cosine is {cosine:.5f}, below "
                f"{LEAST_COSINE}. Times of unequal work are not compared."
            )
    for name in ("hidden", "every", "untapped"):
        made[name](texts)  # warms up
    if "st_int8" in made:
        found["st_int8"] = lowest_cosine(made["st_int8"](texts), expected)  # told, not asked
    return found


# ----------------------------------------------------------------- accuracy


def accuracy(data: Path, ours: Mapping[str, Source], scale: float) -> dict[str, Any]:
    """AG News: logistic regressions on the last layer, read in either dtype, on the same rows."""
    train = read_split(data, "ag_news", "train").take(max(int(TRAIN_ROWS * scale), 40), SEED)
    test = read_split(data, "ag_news", "test").take(max(int(TEST_ROWS * scale), 40), SEED)
    right = {name: _right(train, test, place) for name, place in ours.items()}
    names = {"auto": str(ours["auto"].backbone.dtype).removeprefix("torch."), "float32": "float32"}
    return {
        "train_rows": len(train.texts), "test_rows": len(test.texts), "dtype": names["auto"],
        "accuracy": {name: round(float(bits.mean()), 5) for name, bits in right.items()},
        "points_lost": round(100 * float(right["float32"].mean() - right["auto"].mean()), 3),
        "p": round(mcnemar(right["auto"], right["float32"]), 4),
    }  # fmt: skip


def _right(train: DataSet, test: DataSet, place: Source) -> np.ndarray:
    (block,) = blocks_of(place, "last")
    x, unseen = (read(one.texts, {0: place}, [block]).blocks[block.name] for one in (train, test))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000)).fit(x, train.labels)
    return np.asarray(model.predict(unseen) == test.labels)


# ------------------------------------------------------------------ figures


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """Texts a second of each contender, and ratios by set and clock."""
    found: dict[str, Any] = {}
    for name, one in content["sets"].items():
        times = one["times"]
        rates = {
            key: round(one["rows"] / statistics.median(t["seconds"] for t in runs), 1) for key, runs in times.items()
        }
        found[name] = {"texts_a_second": rates}
        for clock in ("seconds", "cpu_seconds"):
            found[name][clock] = {
                what: ratio(times[slower], times[faster], clock)
                for what, slower, faster, _, _ in ASKED
                if slower in times and faster in times
            } | {"taps": ratio(times["every"], times["untapped"], clock)}
    return found


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    parts = [
        "# Reading: texts a second",
        "Written by `python benchmarks/reading.py`; every figure comes from `reading.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"{setting['beside']}; {setting['backbone']}, max_tokens {setting['max_tokens']} on both sides, "
        f"{setting['threads']} threads, no store; sonde reads in {setting['dtype']}, chosen by the "
        f"hardware. Medians of {setting['rounds']} rounds in which all read the same texts in turn; in brackets an "
        "interval of at least 95% for the median ratio of this machine and day.",
        "## Ratios by wall clock",
        ratios_table(content, "seconds"),
        "## Ratios by processor time",
        "Processor seconds of all threads: what else runs on the machine moves them less.",
        ratios_table(content, "cpu_seconds"),
        "## Texts a second",
        _rates(content),
        "## Taps",
        taps(content),
        "## Equal results",
        _equality(content),
        accuracy_sentence(content["accuracy"]),
    ]
    parts += [f"Skipped: {name}, because {reason}." for name, reason in content["skipped"].items()]
    return "\n\n".join(parts) + "\n"


def ratios_table(content: Mapping[str, Any], clock: str) -> str:
    """Every ratio that is asked for, by set."""
    found = content["summary"]
    rows = []
    for what, _, _, must, goal in ASKED:
        if not all(what in one[clock] for one in found.values()):
            continue
        shares = [one[clock][what] for one in found.values()]
        lowest = min(shares, key=lambda share: share["median"])
        asked = f"{must:g}" if goal is None else f"{must:g} (goal {goal:g})"
        rows.append([what, *map(shown, shares), asked, against(lowest, must, goal)])
    return table(["what", *(TITLES[name] for name in found), "asked", "on every set"], rows)


def _rates(content: Mapping[str, Any]) -> str:
    sets = content["sets"]
    names = list(next(iter(sets.values()))["times"])
    heads = [
        "contender",
        *(f"{TITLES[key]} ({one['rows']:,} texts, {one['tokens']:,} tokens)" for key, one in sets.items()),
    ]
    rates = content["summary"]
    return table(heads, [[name, *(f"{rates[key]['texts_a_second'][name]:,.0f}" for key in sets)] for name in names])


def taps(content: Mapping[str, Any]) -> str:
    """What tapping everything costs."""
    found = {name: one["seconds"]["taps"] for name, one in content["summary"].items()}
    largest = max(one["median"] for one in found.values())
    by_set = ", ".join(f"{TITLES[name]} {shown(one)}" for name, one in found.items())
    kept = "within" if largest <= MOST_TAPPED else "**not within**"
    return (
        f"All hidden and feed-forward sites, mean and max, beside the same batches with nothing pooled: {by_set}; "
        f"{kept} {MOST_TAPPED}."
    )


def _equality(content: Mapping[str, Any]) -> str:
    by_set = [
        f"{TITLES[name]} {', '.join(f'{key} {cosine:.5f}' for key, cosine in one['lowest_cosine'].items())}"
        for name, one in content["sets"].items()
    ]
    return f"Least cosine with the default of sentence-transformers, before anything was timed: {'; '.join(by_set)}."


def accuracy_sentence(found: Mapping[str, Any]) -> str:
    """What the coarser dtype costs."""
    kept = found["points_lost"] <= MOST_LOST and found["p"] > 0.05
    return (
        f"AG News, logistic regression on the last layer, {found['train_rows']:,} training and {found['test_rows']:,} "
        f"test rows: {100 * found['accuracy']['auto']:.2f}% in {found['dtype']}, "
        f"{100 * found['accuracy']['float32']:.2f}% in float32, {found['points_lost']:+.2f} points lost, McNemar p = "
        f"{found['p']:.3f}: {'within' if kept else '**not within**'} .2 points and p > .05."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the ratios."""
    parser = asked_of(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a trial (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    parser.add_argument("--int8", action="store_true", help="make an environment for ONNX Runtime, and time it")
    written = run(**vars(parser.parse_args(arguments)))
    content = json.loads(written[0].read_text(encoding="utf-8"))
    sys.stdout.write(f"{ratios_table(content, 'seconds')}\n\n{taps(content)}\n\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
