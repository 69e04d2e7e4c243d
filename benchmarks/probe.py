"""How long until L1 probes are as good as those of the released code of Sparsify-then-Classify?

    python benchmarks/probe.py --data DIR [--rows 20000] [--cache DIR] [--out docs/results] [--libraries]

SST-2, every hidden layer of one backbone, mean pooling; validation = 3% of the training file. Two contenders, in one
process, on as many threads, layer after layer:

released   the released grid: five C, scikit-learn's saga with L1, 16 warm restarts of 4 iterations, features as read,
           validation accuracy after every restart
walked     `sonde.learn.probe.path`: every C run to its optimum, standardising and eigenvectors timed too

run        measure, and write probe.{json,md}
summary    totals and ratios, from the measurements
to_markdown  the page, from the JSON alone

Source of the grid: Sparsify-then-Classify (arXiv 2311.15983), step 3, and its released code.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ratios import threads
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sonde.bench import machine
from sonde.bench.datasets import DataSet, read_split
from sonde.bench.machine import Stopwatch
from sonde.errors import DataError
from sonde.learn import probe
from sonde.learn.problem import Problem
from sonde.learn.splitting import validation_folds
from sonde.learn.targets import encode
from sonde.plan import BUNDLE
from sonde.read.extract import read
from sonde.read.sources import Cache, expand_blocks, open_sources, open_store
from sonde.tables import write_atomically

ROWS = 20_000
VALIDATION = 0.03  # of the training file, as in the paper
RESTARTS, SAGA_ITERATIONS = 16, 4  # of the released code
FINER = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Three values of C a decade: the released grid looks at 80 models a layer, five optima are few beside them."""
PATHS = {"path": probe.GRID, "finer": FINER}
THREADS = 1
SEED = 0
LIBRARIES = (
    "{layer}, the training rows: processor seconds of the first fit, at ever smaller tolerances, whose objective is "
    "within 1e-5 of the least. Ours includes standardising, theirs does not; compiling is not counted. celer fits no "
    "intercept: its objective is compared with the least that it reaches itself. Neither has sample weights in its "
    "logistic loss or runs on a GPU, and both solve one class after the other."
)
WARM_UP_ROWS = 400  # of either contender, not timed: the first call of a library loads parts of it


def run(
    *,
    data: Path,
    out: Path,
    rows: int = ROWS,
    cache: Cache = "auto",
    backbone: str = BUNDLE,
    libraries: bool = False,
) -> list[Path]:
    """Measure every layer and write the page.

    Parameters
    ----------
    data : Path
        Folder of data sets; `sst2/train.csv.gz` is read.
    out : Path
        Folder of `probe.json` and `probe.md`.
    rows : int
        Training rows.
    cache : str or None
        Folder of the store, "auto", or None for none.
    backbone : str
    libraries : bool
        Time skglm and celer on one layer too.

    Returns
    -------
    list of Path
    """
    whole = read_split(data, "sst2", "train")
    sample, n_train = sampled(whole, rows)
    problem = _problem(sample, n_train, cache, backbone)
    names = list(problem.blocks)
    content: dict[str, Any] = {
        "setting": {
            "data": "sst2", "backbone": backbone, "rows": n_train, "validation_rows": len(sample.texts) - n_train,
            "released": {"C": probe.GRID, "restarts": RESTARTS, "iterations": SAGA_ITERATIONS}, "paths": PATHS,
            "tolerance": probe.TOLERANCE, "threads": THREADS, "seed": SEED,
        },
        "machine": machine.describe(),
        "layers": {},
    }  # fmt: skip
    with threads(THREADS):
        _warm_up(problem, names[0])
        for name in names:
            content["layers"][name] = {"released": released(problem, name, n_train)}
            content["layers"][name] |= {key: walked(problem, name, grid) for key, grid in PATHS.items()}
        content["summary"] = summary(content)
        if libraries:
            from libraries import compare

            content["libraries"] = compare(problem, names[len(names) // 2], n_train)  # a middle layer
    return _written(Path(out), content)


def sampled(whole: DataSet, rows: int) -> tuple[DataSet, int]:
    """Training rows, then validation rows, of a seeded shuffle; and how many train."""
    size = round(VALIDATION * len(whole.texts))
    if size == 0 or rows + size > len(whole.texts):
        raise DataError(
            f"The training file has {len(whole.texts)} rows: too few for {rows} and {VALIDATION:.0%} of it."
        )
    order = np.random.default_rng(SEED).permutation(len(whole.texts))[: rows + size]
    return DataSet([whole.texts[i] for i in order], whole.labels[order]), rows


def _problem(sample: DataSet, n_train: int, cache: Cache, backbone: str) -> Problem:
    sources = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="auto")
    wanted = expand_blocks(0, sources[0], "hidden.*", "mean")
    blocks = read(sample.texts, sources, wanted, open_store(cache)).blocks
    targets = encode(sample.labels)
    folds = validation_folds(n_train, targets, SEED)
    return Problem(blocks, sample.texts, targets, np.ones(len(sample.texts)), folds, "accuracy", SEED)


def _warm_up(problem: Problem, name: str) -> None:
    few = np.arange(min(WARM_UP_ROWS, problem.rows))
    targets, texts = problem.targets.take(few), list(problem.texts)[: len(few)]
    folds = validation_folds(len(few) // 2, targets, SEED)
    small = Problem({name: problem.blocks[name][few]}, texts, targets, np.ones(len(few)), folds, "accuracy", SEED)
    released(small, name, len(few) // 2)
    walked(small, name, probe.GRID)


# -------------------------------------------------------------- contenders


def released(problem: Problem, name: str, n_train: int) -> dict[str, Any]:
    """The released grid: its best validation accuracy, when it first had it, and its whole time."""
    x, truth = problem.blocks[name], problem.targets.indicator[:, 1]
    best, first = -1.0, dict[str, float]()
    watch = Stopwatch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in probe.GRID:
            model = LogisticRegression(
                l1_ratio=1, C=c, solver="saga", max_iter=SAGA_ITERATIONS, warm_start=True, random_state=SEED
            )
            for restart in range(1, RESTARTS + 1):
                model.fit(x[:n_train], truth[:n_train])
                accuracy = float(model.score(x[n_train:], truth[n_train:]))
                if accuracy > best:
                    best, first = accuracy, {"C": c, "restart": restart, **watch.read()}
    return {"best": best, "first": first, "total": watch.read()}


def walked(problem: Problem, name: str, grid: Sequence[float]) -> list[dict[str, float]]:
    """Our path: validation accuracy and time since its start at every C."""
    held = problem.folds.held >= 0
    truth = problem.targets.indicator[held, 1] > 0
    watch = Stopwatch()
    return [
        {
            "C": step.c,
            "accuracy": float(np.mean((step.held_out[held, 0] > 0) == truth)),
            "iterations": step.iterations,
            "unfinished": step.unfinished,
            **watch.read(),
        }
        for step in probe.path(problem, name, grid=grid)
    ]


# ------------------------------------------------------------------ figures


def reached(steps: Sequence[Mapping[str, float]], goal: float) -> Mapping[str, float] | None:
    """The first step that is at least as accurate as `goal`, or None."""
    return next((step for step in steps if step["accuracy"] >= goal), None)


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of either contender over all layers, and how many times ours is shorter.

    Where a path never is as accurate as the best of the released grid, its whole time counts, and the gap is kept.
    """
    layers = content["layers"].values()
    found: dict[str, Any] = {}
    for key in ("cpu_seconds", "seconds"):
        grid = sum(layer["released"]["total"][key] for layer in layers)
        first = sum(layer["released"]["first"][key] for layer in layers)
        found[key] = {"released_whole": round(grid, 2), "released_first": round(first, 2)}
        for path in PATHS:
            steps = [(layer[path], reached(layer[path], layer["released"]["best"])) for layer in layers]
            until = sum((step or walk[-1])[key] for walk, step in steps)
            found[key][path] = {
                "until": round(until, 3),
                "whole": round(sum(walk[-1][key] for walk, _ in steps), 3),
                "times_shorter_than_whole_grid": round(grid / max(until, 1e-9), 1),
                "times_shorter_than_first_reached": round(first / max(until, 1e-9), 1),
            }
    found["never_reached"] = {path: _gaps(content["layers"], path) for path in PATHS}
    return found


def _gaps(layers: Mapping[str, Any], path: str) -> dict[str, float]:
    """Points that are missing in the layers in which the path is never as accurate."""
    gaps = {name: layer["released"]["best"] - _best(layer[path]) for name, layer in layers.items()}
    return {name: round(100 * gap, 2) for name, gap in gaps.items() if gap > 0}


def _best(steps: Sequence[Mapping[str, float]]) -> float:
    return max(step["accuracy"] for step in steps)


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, found = content["setting"], content["summary"]
    looks = len(setting["released"]["C"]) * setting["released"]["restarts"]
    error = 100 * (0.83 * 0.17 / setting["validation_rows"]) ** 0.5
    parts = [
        "# L1 probes: the released grid and the path",
        "Written by `python benchmarks/probe.py`; every figure comes from `probe.json` beside this page.",
        machine.sentence(content["machine"]),
        f"SST-2, {setting['rows']:,} training rows, {setting['validation_rows']:,} validation rows, "
        f"{setting['backbone']}, mean pooling, {setting['threads']} thread; processor seconds, all in one run. The "
        f"released grid is scikit-learn's saga with five C and {setting['released']['restarts']} warm restarts of "
        f"{setting['released']['iterations']} iterations each, on features as read; its best validation accuracy is "
        f"the best of {looks} looks a layer. The path goes to the optimum of every C, to a relative tolerance of "
        f"{setting['tolerance']:g}; its time starts before the features are standardised. One accuracy has a standard "
        f"error of about {error:.1f} points.",
    ]
    titles = {"path": "The same five C", "finer": f"{len(setting['paths']['finer'])} C from .005 to 100"}
    for path, title in titles.items():
        parts += [f"## {title}", _sentence(found, path), _table(content["layers"], path)]
    parts += ["## Libraries", _libraries(content.get("libraries"))]
    return "\n\n".join(parts) + "\n"


def _sentence(found: Mapping[str, Any], path: str) -> str:
    cpu, wall = found["cpu_seconds"][path], found["seconds"][path]
    gaps = found["never_reached"][path]
    where = ", ".join(f"{_layer(name)} ({gap:.2f} points missing)" for name, gap in gaps.items())
    missing = f" Never as accurate, so that its whole time counts: {where}." if gaps else ""
    return (
        f"**{cpu['times_shorter_than_whole_grid']:.1f} times shorter than the whole grid, "
        f"{cpu['times_shorter_than_first_reached']:.1f} times shorter than until the grid first was at its best** "
        f"(wall time: {wall['times_shorter_than_whole_grid']:.1f} and "
        f"{wall['times_shorter_than_first_reached']:.1f}).{missing}"
    )


def _table(layers: Mapping[str, Any], path: str) -> str:
    heads = [
        "layer", "grid: best accuracy", "at C", "first after, s", "whole, s", "path: best accuracy", "as accurate at C",
        "after, s", "whole, s",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, layer in layers.items():
        grid, steps = layer["released"], layer[path]
        step = reached(steps, grid["best"])
        there = ("never", "") if step is None else (f"{step['C']:g}", f"{step['cpu_seconds']:.2f}")
        shown = [
            _layer(name), f"{100 * grid['best']:.2f}", f"{grid['first']['C']:g}",
            f"{grid['first']['cpu_seconds']:.2f}", f"{grid['total']['cpu_seconds']:.2f}",
            f"{100 * _best(steps):.2f}", *there, f"{steps[-1]['cpu_seconds']:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _layer(name: str) -> str:
    return name.split("/")[1]


def _libraries(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "Not measured: `--libraries` was not given."
    heads = ["solver", "C", "CPU seconds", "above the least objective", "tolerance"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for one in found["fits"]:
        time = f"{one['cpu_seconds']:.2f}" if one["within"] else f"not within {one['cpu_seconds']:.0f}"
        solver = f"{one['solver']} {found['versions'].get(one['solver'], '')}".strip()
        lines.append(f"| {solver} | {one['C']:g} | {time} | {_excess(one['above'])} | {one['tolerance']:g} |")
    absent = [f"{name} is not installed: not measured." for name in found["absent"]]
    return "\n\n".join([LIBRARIES.format(layer=_layer(found["block"])), *absent, "\n".join(lines)])


def _excess(value: float) -> str:
    return f"{value:.0e}" if value > 1e-7 else "below 1e-7"  # what float32 leaves


def _written(out: Path, content: Mapping[str, Any]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "probe.json", out / "probe.md"]
    for path, text in zip(paths, (json.dumps(content, indent=1) + "\n", to_markdown(content)), strict=True):
        with write_atomically(path) as file:
            file.write(text)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows (%(default)s)")
    parser.add_argument("--cache", default="auto", help="folder of the store")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    parser.add_argument("--libraries", action="store_true", help="time skglm and celer too, where they are installed")
    written = run(**vars(parser.parse_args(arguments)))
    found = json.loads(written[0].read_text(encoding="utf-8"))["summary"]
    for path in PATHS:
        sys.stdout.write(f"{path}: {_sentence(found, path)}\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
