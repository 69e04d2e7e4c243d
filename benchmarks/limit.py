"""How near does reading come to the machine's own matrix product?

    python benchmarks/limit.py --data DIR [--rows 1000] [--threads N] [--out docs/results]

The matrix products of a reading, alone: every linear map of every batch is done once as a bare product of random
matrices of its shape, into memory that is there already: the peak. These products and the whole reading (tokenising,
attention, activations, normalisation, pooling) take turns. The model's FLOP, those of its linear maps and of the two
products of attention, by the time of the reading, over the peak: that is the share that reading keeps.

run            measure, and write limit.{json,md}
shapes_of      the linear maps that a reading runs
attention_flop FLOP of the products of attention
Products       these, alone
operators      where the time of a reading goes
to_markdown    the page, from the JSON alone
"""

import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ratios import ROUNDS, against, asked_of, interleaved, publish, ratio, sha256_of, shown, threads, timed
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import TITLES, read_split
from sonde.plan import BUNDLE
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources
from sonde.read.view import tokenise

SETS = ("ag_news", "sst2")
ROWS = 1000
SEED = 0
SHOWN = 12  # operators: the rest is below 1% each
POOLINGS = ("mean", "max")
MUSTS = {"last": (0.50, 0.65), "every": (0.40, 0.55)}
"""Share of the peak that is asked for, and the goal."""
TITLES_OF = {"last": "last layer", "every": "all hidden and feed-forward sites, mean and max"}
REASONS = {
    "addmm": "the linear maps; each product first copies its bias",
    "mm": "the linear maps",
    "_linear_pointwise": "the linear maps, with bias and residual; slower than alone, for their memory is cold",
    "_scaled_dot_product_flash_attention_for_cpu": "attention of long texts: many exponentials",
    "baddbmm": "attention: scores, a product with 32 numbers a pair",
    "exp_": "attention: exponentials, bound by arithmetic",
    "div": "attention: divided by its sums; pooling: by the tokens",
    "mul": "attention: values beside pads set to 0",
    "gelu": "the activation: one error function an element, bound by arithmetic",
    "copy_": "copies: biases, changes of type, heads set beside each other again",
    "add": "residual sums and embeddings: bound by memory",
    "native_layer_norm": "normalisation: bound by memory",
    "amax": "the pooling max, among whole numbers",
    "amin": "the same where all values are negative",
    "bmm": "attention: weighted values; the pooling mean, one product",
    "_index_put_impl_": "pooled rows put back in order",
    "index_select": "embeddings looked up",
}
"""Operator -> what it does, and why it stays. Others are overhead of calls and bookkeeping."""

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a linear map."""


def run(
    *,
    data: Path,
    out: Path,
    rows: int = ROWS,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    backbone: str = BUNDLE,
    note: str = "",
) -> list[Path]:
    """Measure, and write the page; arguments as in `reading.run`."""
    with threads(thread_count) as count:
        source = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="cpu")[0]
        sets = {}
        for name in SETS:
            texts = read_split(data, name, "test").take(rows, SEED).texts
            sets[name] = {kind: measure(texts, source, kind, rounds) for kind in MUSTS} | {"sha256": sha256_of(texts)}
        dtype = str(source.backbone.dtype).removeprefix("torch.")
        content: dict[str, Any] = {
            "setting": {"backbone": backbone, "rows": rows, "rounds": rounds, "threads": count, "dtype": dtype,
                        "note": note},
            "machine": machine.describe(),
            "sets": sets,
        }  # fmt: skip
    return publish(out, "limit", content, to_markdown)


def blocks_of(source: Source, kind: str) -> list[Block]:
    """The sentence embedding, or every hidden and feed-forward site."""
    if kind == "last":
        return expand_blocks(0, source, "sentence", "")
    return [b for spec in ("hidden.*", "ffn.*") for how in POOLINGS for b in expand_blocks(0, source, spec, how)]


def measure(texts: list[str], source: Source, kind: str, rounds: int) -> dict[str, Any]:
    """Times of a reading and of its products, in turn; and where the time goes."""
    blocks = blocks_of(source, kind)

    def reading() -> object:
        return read(texts, {0: source}, blocks)

    with source.backbone._lanes.first() as forward:  # where it is read meanwhile, in this thread
        products = Products(shapes_of(reading, forward.model), source.backbone.dtype)
    attention = attention_flop(texts, source)
    whole = products.flop + attention
    times = interleaved({"products": lambda: timed(products.run), "reading": lambda: timed(reading)}, rounds)
    middle = statistics.median(one["seconds"] for one in times["reading"])
    shares = {clock: ratio(times["products"], times["reading"], clock) for clock in ("seconds", "cpu_seconds")}
    return {
        "gflop": round(products.flop / 1e9, 2),
        "gflop_attention": round(attention / 1e9, 2),
        "share": {
            clock: {name: round(value * whole / products.flop, 3) for name, value in found.items()}
            for clock, found in shares.items()
        },
        "gflops_reading": round(whole / 1e9 / middle, 1),
        "gflops_products": round(
            products.flop / 1e9 / statistics.median(one["seconds"] for one in times["products"]), 1
        ),
        "gflops_best_shape": round(products.best_rate() / 1e9, 1),
        "times": times,
        "operators": operators(reading),
    }


def shapes_of(work: Callable[[], object], model: nn.Module) -> Counter[Shape]:
    """How often each shape of a linear map is run by `work`."""
    found: Counter[Shape] = Counter()

    def note(module: nn.Linear, args: tuple[torch.Tensor, ...], _: object) -> None:
        found[args[0].numel() // module.in_features, module.in_features, module.out_features] += 1

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(note) for module in linear]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    assert found, "a reading runs linear maps"
    return found


def attention_flop(texts: Sequence[str], source: Source) -> int:
    """FLOP of the two products of attention in every block, among the tokens of each text alone."""
    config = source.backbone._forward.model.config
    pieces = tokenise(list(dict.fromkeys(texts)), source.backbone.tokenizer, source.view)
    return int(4 * sum(len(ids) ** 2 for ids in pieces.ids) * config.hidden_size * config.num_hidden_layers)


class Products:
    """The matrix products of a reading, alone."""

    def __init__(self, shapes: Mapping[Shape, int], dtype: torch.dtype) -> None:
        self.shapes = dict(shapes)
        self.flop = sum(2 * m * k * n * times for (m, k, n), times in shapes.items())
        rows = max(m for m, _, _ in shapes)
        self._left = {k: torch.randn(rows, k, dtype=dtype) for k in {k for _, k, _ in shapes}}
        self._right = {(k, n): torch.randn(n, k, dtype=dtype).t() for _, k, n in shapes}  # as linear maps lie
        self._out = {n: torch.empty(rows, n, dtype=dtype) for n in {n for _, _, n in shapes}}

    def run(self) -> None:
        """Every product once."""
        for shape, times in self.shapes.items():
            self._repeat(shape, times)

    def best_rate(self, repeats: int = 5) -> float:
        """FLOP per second of the fastest shape, the best of some repeats."""
        best = 0.0
        for m, k, n in self.shapes:
            seconds = min(timed(lambda s=(m, k, n): self._repeat(s, 8))["seconds"] for _ in range(repeats))  # type: ignore[misc]
            best = max(best, 8 * 2 * m * k * n / max(seconds, 1e-3))
        return best

    def _repeat(self, shape: Shape, times: int) -> None:
        m, k, n = shape
        left, right, out = self._left[k][:m], self._right[k, n], self._out[n][:m]
        for _ in range(times):
            torch.mm(left, right, out=out)  # (m, k) x (k, n)


def operators(work: Callable[[], object]) -> list[dict[str, Any]]:
    """Share of the processor time by operator, the largest first; the profiler slows small operators down."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    averages = found.key_averages()
    whole = sum(one.self_cpu_time_total for one in averages)
    ordered = sorted(averages, key=lambda one: -one.self_cpu_time_total)[:SHOWN]
    return [
        {
            "operator": one.key.rpartition("::")[2],
            "share": round(one.self_cpu_time_total / whole, 4),
            "calls": one.count,
        }
        for one in ordered
    ]


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    parts = [
        "# Reading and the machine's limit",
        "Written by `python benchmarks/limit.py`; every figure comes from `limit.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"{setting['backbone']}, {setting['rows']:,} texts a set, {setting['dtype']}, {setting['threads']} threads. "
        "The peak is that of the same matrix products alone, done in turn with the reading, "
        f"{setting['rounds']} times. FLOP are those of the linear maps and of attention's two products; pooling and "
        "activations are not counted as work.",
        shares(content),
    ]
    for name, one in content["sets"].items():
        for kind in MUSTS:
            parts += [f"## Where the time goes: {TITLES[name]}, {TITLES_OF[kind]}", _profile(one[kind]["operators"])]
    return "\n\n".join(parts) + "\n"


def shares(content: Mapping[str, Any]) -> str:
    """Shares of the peak by set and kind."""
    rows = []
    for name, one in content["sets"].items():
        for kind, (must, goal) in MUSTS.items():
            found = one[kind]
            wall = found["share"]["seconds"]
            rates = [f"{found[key]:,.0f}" for key in ("gflops_reading", "gflops_products", "gflops_best_shape")]
            cpu, asked = shown(found["share"]["cpu_seconds"]), f"{must:g} (goal {goal:g})"
            rows.append([TITLES[name], TITLES_OF[kind], *rates, shown(wall), cpu, asked, against(wall, must, goal)])
    heads = ["set", "read", "GFLOP/s", "products alone", "fastest shape", "share", "share (CPU)", "asked", ""]
    return table(heads, rows)


def _profile(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [f"`{one['operator']}`", f"{one['share']:.1%}", f"{one['calls']:,}", REASONS.get(one["operator"], "")]
        for one in found
    ]
    return table(["operator", "share of the time", "calls", "what, and why it stays"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the shares."""
    parser = asked_of(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="texts of each set (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write(shares(json.loads(written[0].read_text(encoding="utf-8"))) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
