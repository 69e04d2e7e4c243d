"""What the scripts that compare times share: turns, ratios with intervals, equality, and files.

interleaved    contenders -> their times, round by round, in turn
ratio          two lists of times -> median ratio of the pairs, with an interval
interval       the order statistics that hold a median
lowest_cosine  how far two matrices agree, row by row
threads        a number of threads, for a while
sha256_of      what identifies texts
timed, Times   one run by both clocks
publish        the JSON and the page that is made of it alone
elsewhere      what the JSON held of other machines
asked_of       the options that every such script has

A ratio is that of two times of one round, taken one after the other: what else the machine does then slows both. The
interval is the narrowest pair of order statistics that holds the median of such ratios with at least 95% (with seven
pairs the smallest and the largest: 98.4%), whatever their distribution; it says nothing of other machines.
"""

import argparse
import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from threadpoolctl import threadpool_limits

from sonde.bench.cells import write_json, write_page
from sonde.bench.machine import Stopwatch

ROUNDS = 7  # the fewest whose smallest and largest hold the median with more than 95%
CLOCKS = {"seconds": "wall", "cpu_seconds": "CPU"}
LEVEL = 0.95

Times = dict[str, float]


def timed(work: Callable[[], object]) -> Times:
    """Wall-clock and processor seconds of one call."""
    watch = Stopwatch()
    work()
    return watch.read()


def interleaved(
    contenders: Mapping[str, Callable[[], Times]], rounds: int, warm_up: Callable[[], object] | None = None
) -> dict[str, list[Times]]:
    """Times of each contender in each round: forwards in one, backwards in the next.

    Parameters
    ----------
    contenders : mapping of str to function
        Each runs once a call and says how long it took.
    rounds : int
    warm_up : function, optional
        Called before the first round; by default each contender once.
    """
    times: dict[str, list[Times]] = {name: [] for name in contenders}
    if warm_up is None:
        for measure in contenders.values():
            measure()
    else:
        warm_up()
    for turn in range(rounds):
        names = list(contenders)
        for name in names if turn % 2 == 0 else reversed(names):
            times[name].append(contenders[name]())
    return times


def ratio(slower: Sequence[Times], faster: Sequence[Times], clock: str = "seconds") -> dict[str, float]:
    """How many times longer `slower` takes: `median` of the pairs, and the interval `low` to `high`."""
    pairs = sorted(one[clock] / max(other[clock], 1e-9) for one, other in zip(slower, faster, strict=True))
    first, last = interval(len(pairs))
    found = {"median": statistics.median(pairs), "low": pairs[first], "high": pairs[last]}
    return {name: round(value, 3) for name, value in found.items()}


def interval(count: int) -> tuple[int, int]:
    """First and last place, from 0, of the narrowest interval that holds the median with at least 95%.

    The whole range where there are too few values for that. Source: the sign test (Conover 1999, 3.2).
    """
    place, outside = 0, 2 * 0.5**count
    while outside + 2 * math.comb(count, place + 1) * 0.5**count <= 1 - LEVEL:
        place += 1
        outside += 2 * math.comb(count, place) * 0.5**count
    return place, count - 1 - place


def shown(found: Mapping[str, float]) -> str:
    """A ratio as pages write it."""
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def against(found: Mapping[str, float], must: float, goal: float | None = None) -> str:
    """Whether a ratio reaches what is asked of it."""
    if goal is not None and found["median"] >= goal:
        return "goal reached"
    return "reached" if found["median"] >= must else "**missed**"


def lowest_cosine(a: Float32[np.ndarray, "row dim"], b: Float32[np.ndarray, "row dim"]) -> float:
    """The least cosine between equal rows of two matrices."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-300)).min())


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Run with so many threads; None leaves the machine's cores as torch counts them. Yields their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        with threadpool_limits(count):
            yield count or before
    finally:
        torch.set_num_threads(before)


def sha256_of(texts: Sequence[str]) -> str:
    """SHA-256 of texts in their order, each with its length in front."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()


def publish(
    out: Path, name: str, content: dict[str, Any], to_markdown: Callable[[Mapping[str, Any]], str]
) -> list[Path]:
    """Write `<out>/<name>.json`, and the page from what was written; what other machines gave is kept in the JSON."""
    path = Path(out) / f"{name}.json"
    write_json(path, {**content, "elsewhere": elsewhere(path, content["machine"])})
    return write_page(path, to_markdown(json.loads(path.read_text(encoding="utf-8"))))


def elsewhere(path: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds of other machines: the last content of each, by its processor and number of cores."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    kept = {**found.pop("elsewhere", {}), _hardware(found["machine"]): found}
    return {name: one for name, one in kept.items() if name != _hardware(here)}


def _hardware(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores"


def asked_of(about: str | None, rounds: int = ROUNDS) -> argparse.ArgumentParser:
    """A command line with the options that every script has: `data`, `out`, `rounds`, `thread_count`, `note`.

    Parameters
    ----------
    about : str or None
        The script's docstring; its first line is shown.
    rounds : int
        Unless others are asked for.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds (%(default)s)")
    parser.add_argument("--threads", type=int, dest="thread_count", help="threads (default: the machine's cores)")
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else ran on the machine")
    return parser
