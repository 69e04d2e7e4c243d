"""Reading beside the way of LLMEmbed's released code: every text padded to the maximum, all hidden states kept.

    python benchmarks/released.py --data DIR --model FOLDER [--scale 1.0] [--threads N] [--out docs/results]

FOLDER holds a decoder. Two ways read the mean of its last five hidden states, each in a process of its own, in turn:

released   fixed batches (90 of SST-2, 40 of AG News, 10 of IMDb), every text padded to the set's maximum length, all
           hidden states returned, the mean over all positions, pads included
sonde      `sonde.read.extract.read`

First the states are compared, with the mean over real tokens: the least cosine must be .999. On a GPU, where there is
one, LLaMA2-7B's shape with random weights reads texts of the lengths of SST-2 and AG News; else the page says so.

run          measure, and write released.{json,md}
on_device    the part that wants a GPU, for a shape and a device
to_markdown  the page, from the JSON alone

Source: LLMEmbed (ACL 2024, arXiv 2406.03725) and its released code.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from worker import Worker, working

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import TITLES, read_split
from sonde.cost.power import counters
from sonde.errors import DataError
from sonde.read.batching import TOKEN_BUDGET, plan
from sonde.read.extract import read
from sonde.read.forward import Forward
from sonde.read.sites import MAIN, Site
from sonde.read.sources import expand_blocks, open_sources
from sonde.read.view import tokenise


@dataclass(frozen=True)
class Way:
    """How the released scripts read a set."""

    rows: int
    """Texts that are timed here."""
    max_tokens: int
    """Length that every text is padded to."""
    batch: int
    """Texts in a batch."""


WAYS = {"sst2": Way(1000, 128, 90), "ag_news": Way(500, 256, 40), "imdb": Way(100, 256, 10)}
"""Lengths and batches of the released scripts; IMDb there has 3,000 tokens, more than small models have positions."""
ASKED = ("sst2", "ag_news")
LEAST_COSINE = 0.999
LEAST_SHARE = 0.9
"""Of padded tokens / real tokens: what padding costs at most, if a token costs the same in both ways."""
DEPTHS = "hidden.-5:"  # phi(m, 1) to phi(m, 5) of the paper
DTYPES = ("float32", "bfloat16")
SEED = 0
LLAMA2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
             "vocab_size": 32000}  # fmt: skip
GPU_ROWS = 512
GPU_GOAL = 0.60


def run(
    *,
    data: Path,
    model: Path,
    out: Path,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    note: str = "",
) -> list[Path]:
    """Compare, time, and write the page.

    Parameters
    ----------
    data, model, out : Path
        Folders of the data sets, of a decoder, and of `released.{json,md}`.
    scale : float
        Share of the rows; below 1 for a trial.
    rounds : int
    thread_count : int, optional
        By default the machine's cores.
    note : str
        A sentence for the page.

    Returns
    -------
    list of Path
    """
    with threads(thread_count) as count:
        sets = {}
        for name, way in WAYS.items():
            texts = read_split(data, name, "test").take(max(int(way.rows * scale), 2), SEED).texts
            sets[name] = measure(texts, way, str(model), rounds, count)
        gpu = _gpu(data, str(model)) if torch.cuda.is_available() else {"skipped": "no CUDA device"}
    content: dict[str, Any] = {
        "setting": {"model": Path(model).name, "rounds": rounds, "threads": count, "depths": DEPTHS, "note": note},
        "machine": machine.describe(),
        "sets": sets,
        "gpu": gpu,
    }
    return publish(out, "released", content, to_markdown)


def measure(texts: list[str], way: Way, model: str, rounds: int, count: int) -> dict[str, Any]:
    """Tokens, equality and times of both ways in both dtypes."""
    contenders: dict[str, Callable[[], Times]] = {}
    cosines = {}
    with ExitStack() as stack:
        for dtype in DTYPES:
            source = open_sources({0: model}, max_tokens=way.max_tokens, long_text="cut", dtype=dtype, device="cpu")[0]
            blocks = expand_blocks(0, source, DEPTHS, "mean")
            theirs = stack.enter_context(released(model, dtype, count, way))
            few = texts[: way.batch]
            ours = read(few, {0: source}, blocks).blocks[blocks[-1].name]
            cosines[dtype] = lowest_cosine(ours, theirs.vectors(few))
            if not cosines[dtype] >= LEAST_COSINE:
                raise DataError(
                    f"The two ways give other vectors in {dtype}: the least cosine is {cosines[dtype]:.5f}, below "
                    f"{LEAST_COSINE}. Times of unequal work are not compared."
                )
            contenders[f"released {dtype}"] = partial(theirs.timed, texts)
            contenders[f"sonde {dtype}"] = partial(timed, partial(read, texts, {0: source}, blocks))
        times = interleaved(contenders, rounds)
    pieces = tokenise(texts, source.backbone.tokenizer, source.view)
    real = int(pieces.tokens.sum() - pieces.lost.sum())
    return {
        "rows": len(texts), "max_tokens": way.max_tokens, "batch": way.batch, "tokens": real,
        "padded": way.max_tokens * len(texts) / real, "sha256": sha256_of(texts), "lowest_cosine": cosines,
        "times": times,
    }  # fmt: skip


def released(model: str, dtype: str, count: int, way: Way) -> AbstractContextManager[Worker]:
    """The released way in a process of its own: transformers' model as it comes, no setting of ours."""
    script = str(Path(__file__).with_name("padded.py"))
    return working([sys.executable, script, model, dtype, *map(str, (count, way.max_tokens, way.batch))])


# ---------------------------------------------------------------------- gpu


def _gpu(data: Path, model: str) -> dict[str, Any]:
    """LLaMA2-7B's shape on the first GPU, with the lengths of both sets."""
    source = open_sources({0: model}, max_tokens=256, long_text="cut", dtype="float32", device="cpu")[0]
    found = {}
    for name in ASKED:
        texts = read_split(data, name, "test").take(GPU_ROWS, SEED).texts
        lengths = [len(ids) for ids in tokenise(texts, source.backbone.tokenizer, source.view).ids]
        found[name] = on_device(LLAMA2_7B, [min(n, WAYS[name].max_tokens) for n in lengths], WAYS[name], "cuda")
    return found


def on_device(shape: Mapping[str, int], lengths: Sequence[int], way: Way, device: str) -> dict[str, Any]:
    """Read random tokens of these lengths through a model of random weights, both ways, in bfloat16."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(SEED)
    with torch.device(device):
        model = LlamaModel(LlamaConfig(**shape)).to(torch.bfloat16).eval()
        forward = Forward(model, torch.randint(5, shape["vocab_size"], (1, 16)), "random weights")
        ids = torch.randint(5, shape["vocab_size"], (len(lengths), way.max_tokens))
    n = shape["num_hidden_layers"]
    wanted: set[tuple[Site, str | None]] = {(Site(MAIN, "hidden", n - depth), "mean") for depth in range(5)}
    real = torch.arange(way.max_tokens, device=device) < torch.tensor(lengths, device=device)[:, None]
    budget = TOKEN_BUDGET.get(torch.device(device).type, TOKEN_BUDGET["cpu"])

    def ours() -> None:
        for rows in plan(lengths, budget):
            longest = max(lengths[row] for row in rows)
            forward.run(ids[rows, :longest], real[rows, :longest], None, wanted)
        _finish(device)

    def theirs() -> None:
        for start in range(0, len(lengths), way.batch):
            part = slice(start, start + way.batch)
            states = model(ids[part], attention_mask=real[part].long(), output_hidden_states=True).hidden_states
            assert states is not None
            [state.mean(dim=1) for state in states[-5:]]
        _finish(device)

    with torch.inference_mode():
        times = interleaved({"released": lambda: timed(theirs), "sonde": lambda: timed(ours)}, ROUNDS)
        peak_flops = _peak(device, max(shape["hidden_size"], 64), shape["intermediate_size"])
        return _figures(model, lengths, way, times, peak_flops, ours, device)


def _figures(
    model: Any, lengths: Sequence[int], way: Way, times: Mapping[str, list[Times]], peak: float,
    ours: Callable[[], None], device: str,
) -> dict[str, Any]:  # fmt: skip
    tokens, is_gpu = sum(lengths), torch.device(device).type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    meters = [(meter, meter.read()) for meter in counters()]
    seconds = timed(ours)["seconds"]
    joules = sum(meter.between(before, meter.read()) for meter, before in meters)
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    rate = tokens / max(float(np.median([one["seconds"] for one in times["sonde"]])), 1e-9)
    return {
        "tokens": tokens, "padded": way.max_tokens * len(lengths) / tokens, "tokens_a_second": round(rate, 1),
        "share_of_peak": round(2 * weights * rate / peak, 6), "peak_tflops": round(peak / 1e12, 2),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if is_gpu else None,
        "ratio": ratio(times["released"], times["sonde"]), "joules": round(joules, 1), "seconds": seconds,
        "counters": len(meters),
    }  # fmt: skip


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _peak(device: str, width: int, inner: int, repeats: int = 10) -> float:
    """FLOP per second of the model's largest matrix product, the best of some repeats."""
    rows = 8192
    left = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
    right = torch.randn(width, inner, dtype=torch.bfloat16, device=device)

    def once() -> None:
        torch.mm(left, right)  # (row, width) x (width, inner)
        _finish(device)

    return 2.0 * rows * width * inner / max(min(timed_finely(once) for _ in range(repeats)), 1e-9)


def timed_finely(work: Callable[[], None]) -> float:
    """Wall-clock seconds, not rounded: one product takes less than a millisecond."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    parts = [
        "# Reading beside the released way",
        "Written by `python benchmarks/released.py`; every figure comes from `released.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"{setting['model']}, mean of `{setting['depths']}`, {setting['threads']} threads, medians of "
        f"{setting['rounds']} rounds in turn. The released way pads every text to the set's maximum, in fixed batches, "
        "and keeps all hidden states; were a token equally dear in both, it would take padded / real times as long.",
        ratios_table(content),
        "## On a GPU",
        _gpu_part(content["gpu"]),
    ]
    return "\n\n".join(parts) + "\n"


def ratios_table(content: Mapping[str, Any]) -> str:
    """Ratios by set, at the same dtype and in total."""
    rows = []
    for name, one in content["sets"].items():
        times, padding = one["times"], one["padded"]
        same = [ratio(times[f"released {dtype}"], times[f"sonde {dtype}"]) for dtype in DTYPES]
        total = ratio(times["released float32"], times["sonde bfloat16"])
        share = {"median": min(found["median"] for found in same) / padding}
        asked = against(share, LEAST_SHARE) if name in ASKED else ""
        rows.append([
            f"{TITLES[name]} ({one['rows']:,} texts, padded to {one['max_tokens']}, batches of {one['batch']})",
            f"{padding:.2f}", *map(shown, same), f"{share['median']:.2f}", asked, shown(total),
        ])  # fmt: skip
    heads = ["set", "padded / real tokens", *(f"ratio in {dtype}" for dtype in DTYPES), "least ratio / padding",
             f"at least {LEAST_SHARE}", "released in float32 / sonde in bfloat16"]  # fmt: skip
    return table(heads, rows)


def _gpu_part(found: Mapping[str, Any]) -> str:
    if "skipped" in found:
        return (
            f"Skipped: {found['skipped']}. Tokens a second, share of the peak, memory and energy of LLaMA2-7B's shape "
            "are not measured here."
        )
    rows = [
        [TITLES[name], f"{one['tokens_a_second']:,.0f}", f"{one['share_of_peak']:.0%} of {one['peak_tflops']} TFLOP/s",
         f"{one['peak_memory_gb']} GB", shown(one["ratio"]), f"{one['padded']:.2f}",
         f"{one['joules']:,.0f} J" if one["counters"] else "no counter"]
        for name, one in found.items()
    ]  # fmt: skip
    heads = ["set", "tokens a second", f"share of the peak (goal {GPU_GOAL:.0%})", "peak memory",
             "released / sonde", "padded / real tokens", "energy of one reading"]  # fmt: skip
    return table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the ratios."""
    parser = asked_of(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a decoder")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a trial (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    content = json.loads(written[0].read_text(encoding="utf-8"))
    sys.stdout.write(f"{ratios_table(content)}\n\n{_gpu_part(content['gpu'])}\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
