"""What does a classifier lose and gain as an ONNX file, in float32 and in int8?

    python benchmarks/export.py --data DIR [--rows 2000] [--train 2000] [--rounds 7] [--out docs/results]

AG News, one backbone. Each recipe is trained, exported both ways, and asked for the same test texts by the library and
through the files, tokenised by the files beside them. Times are those of some of the texts, in turn, by both clocks.

run          measure, and write export.{json,md}
to_markdown  the page, from the JSON alone
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ratios import ROUNDS, asked_of, interleaved, publish, ratio, sha256_of, shown, threads, timed

from sonde import TextClassifier
from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import DataSet, read_split
from sonde.export import TOLERANCE, to_onnx
from sonde.export.running import BATCH, Session
from sonde.learn import metrics
from sonde.plan import BUNDLE

SET = "ag_news"
TRAIN, ROWS, TIMED = 2000, 2000, 256
RECIPES = ("linear", "stc", "llmembed-4")
"""A head on one layer, on neurons of every layer, and a network on five layers: each reads another part of a model."""
WEIGHTS = ("float32", "int8")
SEED = 0
LIBRARY = "library"


def run(
    *,
    data: Path,
    out: Path,
    rows: int = ROWS,
    train: int = TRAIN,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    backbone: str = BUNDLE,
    recipes: Sequence[str] = RECIPES,
    note: str = "",
) -> list[Path]:
    """Train, export, compare, and write the page.

    Parameters
    ----------
    data : Path
        Folder of data sets; AG News is read.
    out : Path
        Folder of `export.json` and `export.md`.
    rows, train, rounds : int
        Test texts, training texts, rounds of timing.
    thread_count : int, optional
    backbone : str
    recipes : sequence of str
    note : str
        A sentence for the page, such as what else ran on the machine.
    """
    learned, asked = read_split(data, SET, "train").take(train, SEED), read_split(data, SET, "test").take(rows, SEED)
    with threads(thread_count) as count, tempfile.TemporaryDirectory() as folder:
        found = {name: measured(name, learned, asked, backbone, Path(folder), rounds, count) for name in recipes}
    content: dict[str, Any] = {
        "setting": {
            "data": SET, "backbone": backbone, "train": len(learned.texts), "rows": len(asked.texts), "batch": BATCH,
            "timed": min(TIMED, len(asked.texts)), "rounds": rounds, "threads": count,
            "sha256": sha256_of(asked.texts), "note": note,
        },
        "machine": machine.describe(),
        "recipes": found,
    }  # fmt: skip
    return publish(out, "export", content, to_markdown)


def measured(
    recipe: str, learned: DataSet, asked: DataSet, backbone: str, folder: Path, rounds: int, count: int
) -> dict[str, Any]:
    """One recipe: size, accuracy and times of the library in float32 and of both files."""
    classifier = TextClassifier(recipe, (backbone,), dtype="float32", device="cpu", cache=None)
    classifier.fit(learned.texts, learned.labels)
    sessions: dict[str, Session] = {}
    sizes: dict[str, int] = {}
    for weights in WEIGHTS:
        done = to_onnx(classifier, folder / f"{recipe}-{weights}.onnx", int8=weights == "int8")
        tokenizers = [path.read_text(encoding="utf-8") for path in done.tokenizers]
        sessions[weights], sizes[weights] = Session(str(done.model), tokenizers, count), done.bytes
    said = {LIBRARY: classifier.predict_proba(asked.texts)}  # row class
    said |= {weights: session.stream(asked.texts) for weights, session in sessions.items()}
    some = asked.texts[:TIMED]
    contenders = {
        LIBRARY: lambda: timed(lambda: classifier.predict_proba(some)),
        **{weights: lambda s=session: timed(lambda: s.stream(some)) for weights, session in sessions.items()},  # type: ignore[misc]
    }
    return {
        "bytes": sizes,
        **{weights: against_library(said[LIBRARY], said[weights], asked, classifier) for weights in WEIGHTS},
        "accuracy": float((classifier.classes_[said[LIBRARY].argmax(axis=1)] == asked.labels).mean()),
        "times": interleaved(contenders, rounds),
    }


def against_library(
    library: np.ndarray, file: np.ndarray, asked: DataSet, classifier: TextClassifier
) -> dict[str, Any]:
    """How far the probabilities are, how many labels change, what that costs."""
    truth = (classifier.classes_[None, :] == asked.labels[:, None]).astype(float)  # row class
    one, two = _decided(library), _decided(file)
    lost, error = metrics.difference(metrics.accuracy, truth, one, two, np.ones(len(truth)))
    apart = np.abs(library - file).max(axis=1)  # row
    return {
        "accuracy": metrics.accuracy(truth, two),
        "lost": lost,
        "error": error,
        "changed": int((one != two).any(axis=1).sum()),
        "largest": float(apart.max()),
        "quantile_99": float(np.quantile(apart, 0.99)),
    }


def _decided(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None])


# ------------------------------------------------------------------ page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    certain = setting["rounds"] >= _FEWEST
    bounds = "an interval of at least 95% for the median" if certain else "the smallest and the largest"
    plural = "thread" if setting["threads"] == 1 else "threads"
    parts = [
        "# Export: what ONNX files cost and gain",
        "Written by `python benchmarks/export.py`; every figure comes from `export.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"AG News, {setting['train']:,} training texts, {setting['rows']:,} of the 7,600 test texts (drawn with seed "
        f"{SEED}), {setting['backbone']}, {setting['threads']} {plural}. The library reads in float32, with no store.",
        "## Accuracy",
        accuracy_table(content),
        _parity(content),
        "## Size and speed",
        speed_table(content),
        f"Texts per second are medians of {setting['rounds']} rounds in turn, over {setting['timed']:,} of the texts, "
        f"tokenised and classified; through the files in batches of {setting['batch']}, the longest texts first. "
        f"Ratios are the library's time over the file's, in brackets {bounds}.",
    ]
    return "\n\n".join(parts) + "\n"


def accuracy_table(content: Mapping[str, Any]) -> str:
    """A line a recipe and file."""
    rows = []
    for name, cell in content["recipes"].items():
        for weights in WEIGHTS:
            one = cell[weights]
            rows.append([
                f"`{name}`", weights, f"{cell['accuracy']:.4f}", f"{one['accuracy']:.4f}",
                f"{100 * one['lost']:+.2f} ± {100 * one['error']:.2f}", one["changed"], f"{one['quantile_99']:.1e}",
                f"{one['largest']:.1e}",
            ])  # fmt: skip
    heads = ["recipe", "weights", "library", "file", "points lost", "labels changed", "99% differ by", "largest"]
    return table(heads, rows)


def _parity(content: Mapping[str, Any]) -> str:
    largest = max(cell["float32"]["largest"] for cell in content["recipes"].values())
    kept = "within" if largest <= TOLERANCE else "**not within**"
    return (
        f"In float32 the largest difference of a probability is {largest:.1e}, {kept} the promised {TOLERANCE:g}. "
        "Points lost are those of accuracy, with one standard error; the last two columns are of probabilities."
    )


def speed_table(content: Mapping[str, Any]) -> str:
    """A line a recipe and file."""
    rows = []
    for name, cell in content["recipes"].items():
        per_second = {
            who: content["setting"]["timed"] / statistics.median(one["seconds"] for one in times)
            for who, times in cell["times"].items()
        }
        for weights in WEIGHTS:
            wall, cpu = (ratio(cell["times"][LIBRARY], cell["times"][weights], clock) for clock in _CLOCKS)
            rows.append([
                f"`{name}`", weights, f"{cell['bytes'][weights] / 1e6:.1f} MB", f"{per_second[LIBRARY]:.0f}",
                f"{per_second[weights]:.0f}", shown(wall), shown(cpu),
            ])  # fmt: skip
    return table(["recipe", "weights", "file", "library, texts/s", "file, texts/s", "ratio", "ratio of CPU time"], rows)


_FEWEST = 6  # rounds whose smallest and largest hold the median with 95%
_CLOCKS = ("seconds", "cpu_seconds")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the tables."""
    parser = asked_of(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="test texts (%(default)s)")
    parser.add_argument("--train", type=int, default=TRAIN, help="training texts (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    parser.add_argument("--recipe", dest="recipes", action="append", help=f"default: {', '.join(RECIPES)}")
    given = vars(parser.parse_args(arguments))
    given["recipes"] = given["recipes"] or RECIPES
    written = run(**given)
    content = json.loads(written[0].read_text(encoding="utf-8"))
    sys.stdout.write("\n\n".join([accuracy_table(content), _parity(content), speed_table(content)]) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
