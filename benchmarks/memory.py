"""Does the memory of `sonde extract` grow with the number of rows?

    python benchmarks/memory.py --data DIR [--rows 10000 100000] [--out docs/results]

The training texts of SST-2, repeated, each with a running number, so that no two are equal. `sonde extract` runs as a
command of its own, once for each number of rows, into an empty store; the system says how much memory it held at most.

run          measure, and write memory.{json,md}
to_markdown  the page, from the JSON alone
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ratios import Times, publish, sha256_of

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import read_split
from sonde.bench.machine import Stopwatch
from sonde.errors import DataError
from sonde.plan import BUNDLE
from sonde.read.extract import WINDOW_ROWS
from sonde.tables import write_atomically

ROWS = (10_000, 100_000)
MOST = 1.10
"""The most that the larger run may hold, as a multiple of the smaller one."""
UNIT = 1024 if sys.platform != "darwin" else 1  # bytes: Linux counts resident memory in kilobytes, macOS in bytes


def run(
    *, data: Path, out: Path, rows: Sequence[int] = ROWS, backbone: str = BUNDLE, site: str = "hidden.*", note: str = ""
) -> list[Path]:
    """Run the command for each number of rows, and write the page."""
    if len(rows) < 2 or sorted(rows) != list(rows):
        raise DataError(f"--rows is {list(rows)}; give at least two numbers, the smaller first.")
    texts = read_split(data, "sst2", "train").texts
    runs = {str(count): extracted(numbered(texts, count), backbone, site) for count in rows}
    content: dict[str, Any] = {
        "setting": {"backbone": backbone, "site": site, "sha256": sha256_of(texts), "note": note},
        "machine": machine.describe(),
        "runs": runs,
        "growth": round(runs[str(rows[-1])]["peak_mb"] / runs[str(rows[0])]["peak_mb"], 3),
    }
    return publish(out, "memory", content, to_markdown)


def numbered(texts: Sequence[str], rows: int) -> list[str]:
    """So many texts, in turn and again from the first, each with its number."""
    return [f"{text} {number}" for number, text in enumerate(itertools.islice(itertools.cycle(texts), rows))]


def extracted(texts: Sequence[str], backbone: str, site: str) -> Times:
    """Peak resident memory in MB, and wall-clock seconds, of one command that reads these texts."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl"
        with write_atomically(source) as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        store = str(Path(folder) / "store")
        words = ["extract", str(source), "--out", store, "--backbone", backbone, "--site", site]
        watch = Stopwatch()
        process = subprocess.Popen(
            [sys.executable, "-m", "sonde", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise DataError(f"sonde extract stopped with {process.returncode}: {' '.join(last)}")
    return {"peak_mb": round(usage.ru_maxrss * UNIT / 1e6, 1), "seconds": watch.read()["seconds"]}


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    parts = [
        "# Memory of `sonde extract`",
        "Written by `python benchmarks/memory.py`; every figure comes from `memory.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"SST-2, repeated, each text with a running number; {setting['backbone']}, `{setting['site']}`, mean, into an "
        "empty store.",
        table(
            ["rows", "peak memory, MB", "seconds"],
            [[f"{int(n):,}", f"{one['peak_mb']:,.0f}", f"{one['seconds']:,.0f}"] for n, one in content["runs"].items()],
        ),
        growth(content),
    ]
    return "\n\n".join(parts) + "\n"


def growth(content: Mapping[str, Any]) -> str:
    """The ratio that is asked for."""
    first, *_, last = content["runs"]
    kept = "within" if content["growth"] <= MOST else "**not within**"
    return (
        f"{int(last):,} rows hold {content['growth']:.3f} times the memory of {int(first):,}, {kept} the promised "
        f"{MOST:.2f}. The limit is the window: {WINDOW_ROWS:,} texts, their tokens and values are held at a time."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="numbers of rows, ascending")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    parser.add_argument("--site", default="hidden.*", help="what is read (%(default)s)")
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else ran on the machine")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write(growth(json.loads(written[0].read_text(encoding="utf-8"))) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
