"""How long until sonde does something: the help, one text, a second fit.

    python benchmarks/start.py --data DIR [--scale 1.0] [--rounds 7] [--out docs/results]

Every figure is that of a process of its own, from its start to its end, by wall clock.

help      `sonde --help`
predict   `sonde predict` of one row, no store, beside a process that imports torch and transformers and loads the same
          backbone with its tokenizer
second    two `sonde fit` on the same 500 texts of AG News, the first into an empty store: reading times, as both say

run          measure, and write start.{json,md}
to_markdown  the page, from the JSON alone
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ratios import ROUNDS, Times, asked_of, interleaved, publish, ratio, sha256_of, shown, timed

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import DataSet, read_split
from sonde.errors import DataError
from sonde.plan import BUNDLE
from sonde.read.backbone import load_backbone
from sonde.tables import write_atomically

ROWS = 500
SET = "ag_news"
SEED = 0
MOST_HELP = 0.5
"""Seconds."""
MOST_PREDICT = 1.5
"""Times what importing and loading take."""
MOST_SECOND = 0.15
"""Of the reading time of the first fit."""
LOADING = """
import sys
import torch
from transformers import AutoModel, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1])
AutoModel.from_pretrained(sys.argv[1])
"""
"""What whoever reads a text with a backbone must do first."""


def run(
    *,
    data: Path,
    out: Path,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    backbone: str = BUNDLE,
    note: str = "",
) -> list[Path]:
    """Run the commands, and write the page; arguments as in `reading.run`."""
    known = read_split(data, SET, "train").take(max(int(ROWS * scale), 40), SEED)
    bound = () if thread_count is None else (f"OMP_NUM_THREADS={thread_count}",)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fits = [both_fits(known, folder / str(turn), backbone, bound) for turn in range(rounds)]
        content: dict[str, Any] = {
            "setting": {
                "backbone": backbone, "rounds": rounds, "threads": thread_count, "rows": len(known.texts),
                "sha256": sha256_of(known.texts), "note": note,
            },
            "machine": machine.describe(),
            "times": {
                "help": [timed(lambda: sonde(["--help"], bound)) for _ in range(rounds)],
                **predictions(folder / "0" / "model", known.texts[0], folder, backbone, bound, rounds),
                "first": [first for first, _ in fits],
                "second": [second for _, second in fits],
            },
        }  # fmt: skip
    return publish(out, "start", content, to_markdown)


def predictions(
    model: Path, text: str, folder: Path, backbone: str, bound: Sequence[str], rounds: int
) -> dict[str, list[Times]]:
    """Times of `sonde predict` of one row, and of loading the backbone alone, in turn."""
    source, where = folder / "one.jsonl", load_backbone(backbone, dtype="float32", device="cpu").path
    with write_atomically(source) as file:
        file.write(json.dumps({"text": text}) + "\n")
    words = ["predict", str(model), str(source), "--out", str(folder / "out.jsonl"), "--no-cache"]
    return interleaved(
        {
            "loading": lambda: timed(lambda: process([sys.executable, "-c", LOADING, str(where)], bound)),
            "predict": lambda: timed(lambda: sonde(words, bound)),
        },
        rounds,
        warm_up=lambda: None,  # the fits have brought every file into memory
    )


def both_fits(known: DataSet, folder: Path, backbone: str, bound: Sequence[str]) -> tuple[Times, Times]:
    """Reading times of a fit into an empty store, and of the same fit again, beside all that each took."""
    folder.mkdir()
    source = folder / "train.jsonl"
    with write_atomically(source) as file:
        rows = zip(known.texts, known.labels.tolist(), strict=True)
        file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    words = ["fit", str(source), "--out", str(folder / "model"), "--recipe", "linear", "--backbone", backbone, "--json"]
    first, second = (fitted([*words, "--cache", str(folder / "store")], bound) for _ in range(2))
    return first, second


def fitted(words: Sequence[str], bound: Sequence[str]) -> Times:
    """Reading seconds that a fit tells, and seconds of the whole process."""
    said: list[str] = []
    whole = timed(lambda: said.append(sonde(words, bound)))
    return {"seconds": max(json.loads(said[0])["seconds"]["reading"], 1e-3), "process_seconds": whole["seconds"]}


def sonde(words: Sequence[str], bound: Sequence[str]) -> str:
    """What a command of sonde prints."""
    return process([sys.executable, "-m", "sonde", *words], bound)


def process(words: Sequence[str], bound: Sequence[str]) -> str:
    """What a process prints; `bound` are settings of its environment."""
    done = subprocess.run([*(("env", *bound) if bound else ()), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise DataError(f"{' '.join(words[:4])} stopped with {done.returncode}: {last}")
    return done.stdout


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting = content["setting"]
    bound = f"{setting['threads']} threads" if setting["threads"] else "threads as the machine has cores"
    parts = [
        "# Start",
        "Written by `python benchmarks/start.py`; every figure comes from `start.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        f"{setting['backbone']}, {bound}, each figure that of a process of its own; {setting['rounds']} rounds in "
        "turn, medians, in brackets an interval of at least 95% for the median ratio. Files lie in the system's cache.",
        start_table(content),
        _whole(content),
    ]
    return "\n\n".join(parts) + "\n"


def start_table(content: Mapping[str, Any]) -> str:
    """The three figures, and what is asked of them."""
    times, rows = content["times"], content["setting"]["rows"]
    helped = statistics.median(one["seconds"] for one in times["help"])
    spread = sorted(one["seconds"] for one in times["help"])
    predicted = ratio(times["predict"], times["loading"])
    again = ratio(times["second"], times["first"])
    lines = [
        ["`sonde --help`, seconds", f"{helped:.2f} ({spread[0]:.2f} to {spread[-1]:.2f})", f"{MOST_HELP}",
         _within(helped, MOST_HELP)],
        [f"`sonde predict` of one row ({_median(times['predict'])} s) / importing torch and transformers and loading "
         f"({_median(times['loading'])} s)", shown(predicted), f"{MOST_PREDICT}",
         _within(predicted["median"], MOST_PREDICT)],
        [f"reading of a second `sonde fit` on {rows:,} texts ({_median(times['second'])} s) / of the first "
         f"({_median(times['first'])} s)", _fine(again), f"{MOST_SECOND}", _within(again["median"], MOST_SECOND)],
    ]  # fmt: skip
    return table(["what", "found", "at most", ""], lines)


def _whole(content: Mapping[str, Any]) -> str:
    both = [_median(content["times"][name], "process_seconds") for name in ("first", "second")]
    return f"Both fits from start to end, imports and training included: {both[0]} and {both[1]} seconds."


def _within(found: float, most: float) -> str:
    return "within" if found <= most else "**not within**"


def _fine(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _median(times: Sequence[Times], clock: str = "seconds") -> str:
    return f"{statistics.median(one[clock] for one in times):.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the figures."""
    parser = asked_of(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a trial (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write(start_table(json.loads(written[0].read_text(encoding="utf-8"))) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
