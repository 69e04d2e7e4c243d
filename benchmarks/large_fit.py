"""How much memory and time does `sonde fit` take on a file with many more rows than it trains on?

    python benchmarks/large_fit.py --data DIR [--file-rows 1000000] [--rows 500000] [--recipes stc auto]

The training texts of SST-2, repeated, words of each in another order and with a running number (see `scale.py`), as
Parquet with their labels. Each line is `sonde fit --rows` as a command of its own, which draws its rows while the file
streams by; its resident memory is asked for once a second. The accuracy is that on SST-2's own test sentences, beside
that of the same recipe on a small part of the rows: it says that nothing broke, not how good repeated texts are.

A fit that is finished is kept: the same command goes on with those that are missing.

run          measure, and write large_fit.{json,md}
to_markdown  the page, from the JSON alone
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ratios import asked_of, sha256_of
from scale import LOOK_SECONDS, STRETCH, resident

from sonde.bench import machine
from sonde.bench.cells import opened, table, write_page
from sonde.bench.datasets import DataSet, read_split
from sonde.errors import DataError
from sonde.tables import TableWriter, write_table

FILE_ROWS, ROWS, FEW_ROWS = 1_000_000, 500_000, 5_000
RECIPES = ("stc", "auto")
MOST_GB = 8.0 * 2**30 / 1e9
"""What a fit on half a million rows may hold: 8 GiB."""


def run(
    *, data: Path, out: Path, file_rows: int = FILE_ROWS, rows: int = ROWS, recipes: Sequence[str] = RECIPES,
    rounds: int = 1, thread_count: int | None = None, note: str = "",
) -> list[Path]:  # fmt: skip
    """Measure, and write the page."""
    if not 0 < rows <= file_rows:
        raise DataError(f"--rows is {rows} of {file_rows}; train on one row or more, and no more than the file has.")
    train, test = read_split(data, "sst2", "train"), read_split(data, "sst2", "test")
    with tempfile.TemporaryDirectory() as folder:
        source, held = Path(folder) / "train.parquet", Path(folder) / "test.parquet"
        with TableWriter(source) as writer:
            for stretch in repeated(train, file_rows):
                writer.write(stretch)
        write_table(held, {"text": list(test.texts), "label": test.labels.tolist()})
        cells = opened(out / "large_fit.json", {
            "file_rows": file_rows, "file_mb": round(source.stat().st_size / 1e6, 1), "note": note,
            "threads": thread_count, "sha256": sha256_of(train.texts), "test_rows": len(test.texts),
        })  # fmt: skip
        for recipe in recipes:
            for count in dict.fromkeys((min(FEW_ROWS, rows), rows)):
                if (key := f"{recipe}|{count}") not in cells:
                    found = fitted(source, held, Path(folder) / "model", recipe, count)
                    cells.put(key, {"recipe": recipe, "rows": count, **found})
    return write_page(cells.path, to_markdown(cells.content))


def repeated(train: DataSet, rows: int) -> Iterator[dict[str, list[Any]]]:
    """Texts and labels, no two texts equal."""
    generator = np.random.default_rng(0)
    for start in range(0, rows, STRETCH):
        numbers = range(start, min(start + STRETCH, rows))
        places = [number % len(train.texts) for number in numbers]
        texts = [
            " ".join([*generator.permutation(train.texts[place].split()).tolist(), str(number)])
            for place, number in zip(places, numbers, strict=True)
        ]
        yield {"text": texts, "label": train.labels[places].tolist()}


def fitted(source: Path, held: Path, model: Path, recipe: str, rows: int) -> dict[str, Any]:
    """One `sonde fit`, watched, and the accuracy of what it made."""
    line = ["fit", str(source), "--out", str(model), "--recipe", recipe, "--rows", str(rows), "--no-cache"]
    began, peak = time.monotonic(), 0.0
    with subprocess.Popen(
        [sys.executable, "-m", "sonde", *line, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - began
    if process.returncode:
        raise DataError(f"sonde fit stopped with {process.returncode}; run it: sonde {' '.join(line)}")
    asked = [sys.executable, "-m", "sonde", "evaluate", str(model), str(held), "--no-cache", "--json"]
    said = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return {
        "seconds": round(seconds, 1), "peak_gb": round(peak / 1000, 2), "accuracy": json.loads(said.stdout)["accuracy"],
    }  # fmt: skip


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    rows = [
        [
            f"`{fit['recipe']}`", f"{fit['rows']:,}", f"{fit['seconds']:,.0f}", f"{fit['peak_gb']:.2f}",
            "within" if fit["peak_gb"] <= MOST_GB else "**above**", f"{100 * fit['accuracy']:.1f}%",
        ]
        for fit in content["cells"].values()
    ]  # fmt: skip
    heads = ["recipe", "rows", "seconds", "peak memory, GB", "8 GiB", "accuracy"]
    parts = [
        "# Training on a part of a large file",
        "Written by `python benchmarks/large_fit.py`; every figure comes from `large_fit.json` beside this page.",
        machine.sentence(content["machine"]),
        f"`sonde fit FILE --rows ROWS --no-cache` on SST-2's training texts, repeated, words shuffled and numbered: "
        f"{setting['file_rows']:,} rows in {setting['file_mb']:g} MB of Parquet; all-MiniLM-L6-v2. Accuracy on "
        f"{setting['test_rows']} sentences of SST-2." + (f" {setting['note']}" if setting["note"] else ""),
        table(heads, rows),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and name the files."""
    parser = asked_of(__doc__, rounds=1)
    parser.add_argument("--file-rows", type=int, default=FILE_ROWS, help="of the file (%(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="that are drawn (%(default)s)")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="(%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
