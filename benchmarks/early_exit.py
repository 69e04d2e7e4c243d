"""Does a model that needs k of n blocks take the time of k blocks, and do rows that leave save theirs?

    python benchmarks/early_exit.py --data DIR [--rows 500] [--rounds 9] [--out docs/results]

AG News, one backbone, mean pooling, no store. In every round, forwards in one and backwards in the next: the hidden
state of each depth alone, all blocks with a clock before and after each, and a reading in stages, one a block, at each
of which half of the rows leave. Medians over the rounds.

t0   depth 0: tokenising, embedding, pooling
t1   one block: the time between its call and its return, mean over the blocks

run          measure, and write early_exit.{json,md}
summary      ratios, from the measurements
to_markdown  the page, from the JSON alone
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ratios import Times, interleaved, threads, timed

from sonde.bench import machine
from sonde.bench.cells import write_json, write_page
from sonde.bench.datasets import read_split
from sonde.plan import BUNDLE
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.sites import MAIN
from sonde.read.sources import expand_blocks, open_sources
from sonde.read.stages import Staged, read_in_stages

ROWS = 500
ROUNDS = 9  # medians of fewer move by some percent on a machine with other work
THREADS = 1  # processor seconds of one thread hardly move with what else runs
SEED = 0
ALLOWED = 1.15  # the promise: at most this many times t0 + k t1
CLOCKS = ("cpu_seconds", "seconds")


def run(
    *, data: Path, out: Path, rows: int = ROWS, rounds: int = ROUNDS, backbone: str = BUNDLE, note: str = ""
) -> list[Path]:
    """Measure every depth and the stages, and write the page.

    Parameters
    ----------
    data : Path
        Folder of data sets; `ag_news/test.csv.gz` is read.
    out : Path
        Folder of `early_exit.json` and `early_exit.md`.
    rows, rounds : int
    backbone : str
    note : str
        A sentence for the page, such as what else ran on the machine.

    Returns
    -------
    list of Path
    """
    texts = read_split(data, "ag_news", "test").take(rows, SEED).texts
    sources = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="float32", device="cpu")
    depths = expand_blocks(0, sources[0], "hidden.*", "mean")
    staged = in_stages(texts, sources[0], depths[1:])
    contenders: dict[str, Callable[[], Times]] = {
        **{str(depth): _reading(texts, sources, block) for depth, block in enumerate(depths)},
        "blocks": lambda: inside_blocks(texts, sources, depths[-1]),
        "staged": lambda: timed(lambda: in_stages(texts, sources[0], depths[1:])),
    }
    with threads(THREADS):
        times = interleaved(contenders, rounds)
    content: dict[str, Any] = {
        "setting": {
            "data": "ag_news", "backbone": backbone, "rows": len(texts), "rounds": rounds, "threads": THREADS,
            "layers": len(depths) - 1, "tokens": int(staged.tokens.sum() - staged.lost.sum()), "note": note,
        },
        "machine": machine.describe(),
        "shares": shares(staged, len(depths) - 1),
        "times": times,
    }  # fmt: skip
    content["summary"] = summary(content)
    path = Path(out) / "early_exit.json"
    write_json(path, content)
    return write_page(path, to_markdown(content))


def _reading(texts: list[str], sources: Mapping[int, Source], block: Block) -> Callable[[], Times]:
    return lambda: timed(lambda: read(texts, sources, [block]))


def inside_blocks(texts: list[str], sources: Mapping[int, Source], last: Block) -> Times:
    """Time spent within the blocks while the last hidden state is read."""
    spent = np.zeros(2)

    def begin(*_: object) -> None:
        spent[:] -= time.process_time(), time.perf_counter()

    def end(*_: object) -> None:
        spent[:] += time.process_time(), time.perf_counter()

    modules = {place.module for place in sources[0].backbone._forward.stacks[MAIN].blocks}
    handles = [h for m in modules for h in (m.register_forward_pre_hook(begin), m.register_forward_hook(end))]
    try:
        read(texts, sources, [last])
    finally:
        for handle in handles:
            handle.remove()
    return dict(zip(CLOCKS, spent.tolist(), strict=True))


def in_stages(texts: list[str], source: Source, depths: Sequence[Block]) -> Staged:
    """A stage after each block; half of the rows still in leave at each, whatever their values."""
    rank = np.random.default_rng(SEED).permutation(len(texts))

    def every_other(stage: int, rows: np.ndarray, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(rank[rows] % 2 ** (stage + 1) == 0)

    return read_in_stages(texts, source, [[block] for block in depths], every_other)


def shares(staged: Staged, layers: int) -> list[float]:
    """The share of all tokens that entered each block."""
    seen = staged.tokens - staged.lost
    return [round(float(seen[staged.reached >= block].sum() / seen.sum()), 6) for block in range(layers)]


# ------------------------------------------------------------------ figures


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """By clock: t0, t1, and how many times t0 + k t1 each depth takes; for the stages, of the blocks really run."""
    layers, times = content["setting"]["layers"], content["times"]
    found: dict[str, Any] = {}
    for clock in CLOCKS:
        middle = {name: statistics.median(one[clock] for one in runs) for name, runs in times.items()}
        t0, t1 = middle["0"], middle["blocks"] / layers
        blocks = sum(content["shares"])
        rows = [
            {"depth": k, "time": middle[str(k)], "ratio": middle[str(k)] / (t0 + k * t1)} for k in range(1, layers + 1)
        ]
        found[clock] = {
            "t0": t0, "t1": t1, "depths": rows, "largest": max(row["ratio"] for row in rows),
            "staged": {"time": middle["staged"], "blocks": blocks, "ratio": middle["staged"] / (t0 + blocks * t1)},
        }  # fmt: skip
    return found


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    parts = [
        "# Early exit: the time of k blocks",
        "Written by `python benchmarks/early_exit.py`; every figure comes from `early_exit.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"AG News, {setting['rows']:,} texts of {setting['tokens']:,} tokens, {setting['backbone']}, mean pooling, "
        f"{setting['threads']} thread, no store; medians of {setting['rounds']} rounds in which all are timed in turn. "
        "t0 is the time of depth 0 (tokenising, embedding, pooling), t1 that of one block, by a clock before and after "
        "its call.",
        _sentence(content),
        _table(content),
        "## Rows that leave",
        _staged(content),
    ]
    return "\n\n".join(parts) + "\n"


def _sentence(content: Mapping[str, Any]) -> str:
    cpu, wall = (content["summary"][clock] for clock in CLOCKS)
    kept = "within" if cpu["largest"] <= ALLOWED else "not within"
    return (
        f"**Reading depth k takes at most {cpu['largest']:.2f} (t0 + k t1) processor seconds, {kept} the promised "
        f"{ALLOWED}** (wall time: {wall['largest']:.2f})."
    )


def _table(content: Mapping[str, Any]) -> str:
    found = content["summary"]
    heads = ["depth k", "CPU ms", "t0 + k t1", "ratio", "wall ms", "t0 + k t1", "ratio"]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    for place in range(content["setting"]["layers"]):
        shown = [str(place + 1)]
        for clock in CLOCKS:
            row = found[clock]["depths"][place]
            shown += [_ms(row["time"]), _ms(row["time"] / row["ratio"]), f"{row['ratio']:.3f}"]
        lines.append(f"| {' | '.join(shown)} |")
    t = [f"{_ms(found[clock][name])} ms" for clock in CLOCKS for name in ("t0", "t1")]
    return "\n".join(lines) + f"\n\nt0 = {t[0]}, t1 = {t[1]} of processor time (wall: {t[2]} and {t[3]})."


def _staged(content: Mapping[str, Any]) -> str:
    cpu, wall = (content["summary"][clock]["staged"] for clock in CLOCKS)
    whole = content["summary"]["cpu_seconds"]["depths"][-1]["time"]
    entered = ", ".join(f"{share:.3f}" for share in content["shares"])
    return (
        f"One stage after each block, at each of which half of the rows leave. Share of the tokens that enters each "
        f"block: {entered}; in sum {cpu['blocks']:.2f} of {content['setting']['layers']} blocks. "
        f"{_ms(cpu['time'])} ms of processor time, **{cpu['ratio']:.2f} times t0 and these blocks** (wall time: "
        f"{wall['ratio']:.2f}); {cpu['time'] / whole:.2f} of reading the last hidden state of all rows."
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=ROWS, help="texts (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else ran on the machine")
    written = run(**vars(parser.parse_args(arguments)))
    content = json.loads(written[0].read_text(encoding="utf-8"))
    sys.stdout.write("\n\n".join([_sentence(content), _table(content), _staged(content)]) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
