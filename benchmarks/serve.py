"""What `sonde serve` costs beside `predict`, how fast it answers, and what it does under too much load.

    python benchmarks/serve.py --data path/to/data              seconds a level, five seconds of overload
    python benchmarks/serve.py --data path/to/data --minute     a minute of overload

run           everything, written to docs/results/serve.json and serve.md
to_markdown   the page, from the JSON alone

The service is a process, the load another (`load.py`), this one a third that waits. All share the machine's cores: the
processor time of each is measured by itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sonde
from sonde.bench import machine
from sonde.bench.cells import write_json, write_page
from sonde.bench.datasets import read_split
from sonde.classifier import TextClassifier

TRAIN_ROWS, TEXTS = 1500, 512
"""Rows that train the model, whose accuracy plays no part, and test texts that are asked for in turn."""

CONNECTIONS = (1, 8, 64, 512)
BATCH_TEXTS, BATCH_CONNECTIONS = 64, 4
"""Four clients that send 64 texts at a time keep the service supplied while answers travel."""

OVERLOAD = 4
OVERLOAD_CONNECTIONS = 1500
"""More than the requests that the service takes at once (1,024), so that it must refuse some."""

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""What docs/reading.md promises of every text that is read in other company."""
WANTED_SHARE, WANTED_TIMES = 0.8, 1.5
"""Of offline throughput with 64 texts a request; of offline processor time with one."""

RECOVERED = 3.0
"""The service has recovered when a single request takes at most three times the median before the overload."""

RECOVERY_SECONDS = 30
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def run(
    *, data: Path, out: Path, seconds: float, overload_seconds: float, recipe: str, dtype: str, cache: Any,
    connections: Sequence[int] = CONNECTIONS, texts: int = TEXTS,
) -> list[Path]:  # fmt: skip
    """Measure everything; the JSON and the page."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        train = read_split(data, "ag_news", "train").take(TRAIN_ROWS)
        TextClassifier(recipe, dtype=dtype, cache=cache).fit(train.texts, train.labels).save(model)
        asked = read_split(data, "ag_news", "test").take(texts).texts
        offline, rows = predicted(model, asked, dtype)
        content: dict[str, Any] = {
            "machine": machine.describe(),
            "setting": {
                "recipe": recipe, "dtype": dtype, "texts": len(asked), "seconds": seconds,
                "overload_seconds": overload_seconds, "tolerance": TOLERANCE[dtype],
                "mean_characters": round(sum(map(len, asked)) / len(asked), 1),
            },
            "offline": offline,
        }  # fmt: skip
        with served(model, dtype) as service:
            plan = {"url": service.url, "rows": rows, "tolerance": TOLERANCE[dtype], "seconds": seconds, "rate": None}
            measure(service, {**plan, "texts": 1, "connections": 2, "seconds": 1})  # warms up both sides
            batches = {**plan, "texts": BATCH_TEXTS, "connections": BATCH_CONNECTIONS}
            content["batches"] = measure(service, batches)
            content["levels"] = {
                str(count): measure(service, {**plan, "texts": 1, "connections": count}) for count in connections
            }
            content["overload"] = overload(service, plan, content["levels"], overload_seconds)
    path = out / "serve.json"
    write_json(path, content)
    return write_page(path, to_markdown(content))


# ------------------------------------------------------------------ measuring


def predicted(model: Path, texts: Sequence[str], dtype: str) -> tuple[dict[str, Any], list[Any]]:
    """Offline: all texts at once, and one by one; and the probabilities that the service must give."""
    classifier = sonde.load(model, dtype=dtype, cache=None)
    probabilities = classifier.predict_proba(list(texts))  # warms up, too
    watch = machine.Stopwatch()
    classifier.predict(list(texts))
    together = watch.read()
    few = list(texts[: max(len(texts) // 8, 1)])
    watch = machine.Stopwatch()
    for text in few:
        classifier.predict([text])
    alone = watch.read()
    found = {
        "texts_a_second": round(len(texts) / together["seconds"], 2),
        "cpu_ms_a_text": _ms(together["cpu_seconds"], len(texts)),
        "cpu_ms_a_text_alone": _ms(alone["cpu_seconds"], len(few)),
    }
    return found, [list(pair) for pair in zip(texts, probabilities.astype(float).tolist(), strict=True)]


class Service:
    """The process, its address, and what the system says of it."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    def cpu_seconds(self) -> float:
        """Processor time of all its threads, in user and system mode."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def memory_mb(self) -> float:
        """Resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def served(model: Path, dtype: str, port: int = 0) -> Iterator[Service]:
    """`sonde serve` as a process of its own, stopped at the end; port 0 is any that is free."""
    command = [sys.executable, "-m", "sonde", "serve", str(model), "--port", str(port), "--dtype", dtype, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield Service(process, json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
            process.wait(60)


def measure(service: Service, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Play a plan in a process of its own; what came back, and the service's processor time."""
    before = service.cpu_seconds()
    shown = {name: plan[name] for name in ("texts", "connections", "rate", "seconds")}
    sys.stderr.write(f"{shown}\n")
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(plan, file)
        file.flush()
        command = [sys.executable, str(Path(__file__).with_name("load.py")), file.name]
        found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    cpu = service.cpu_seconds() - before
    found["texts_a_second"] = round(found["texts"] / found["seconds"], 2)
    found["service_cpu_ms_a_text"] = _ms(cpu, found["texts"])
    found["memory_mb"] = round(service.memory_mb(), 1)
    return found


def overload(service: Service, plan: Mapping[str, Any], levels: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Four times what it can do; memory meanwhile; how soon it answers as before."""
    capacity = max(level["texts_a_second"] for level in levels.values())
    usual = next(iter(levels.values()))["latency_ms"]["p50"]
    memory: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            memory.append(service.memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rate = {"texts": 1, "connections": OVERLOAD_CONNECTIONS, "seconds": seconds, "rate": OVERLOAD * capacity}
    found = measure(service, {**plan, **rate})
    over.set()
    watcher.join()
    quarter = max(len(memory) // 4, 1)
    found["rate"] = round(OVERLOAD * capacity, 1)
    found["memory_mb_first_and_last_quarter"] = [round(max(memory[:quarter]), 1), round(max(memory[-quarter:]), 1)]
    found["recovery_seconds"] = _recovery(service, plan, usual)
    return found


def _recovery(service: Service, plan: Mapping[str, Any], usual_ms: float) -> float | None:
    """Seconds until single requests take about as long as before; None if that does not come."""
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < RECOVERY_SECONDS:
        found = measure(service, {**plan, "texts": 1, "connections": 1, "seconds": 0.2})
        if found["latency_ms"] and found["latency_ms"]["p50"] <= RECOVERED * usual_ms:
            return round(passed, 2)
    return None


def lost(found: Mapping[str, Any]) -> int:
    """Requests that never had an answer."""
    return sum(found["outcomes"].get(name, 0) for name in ("lost", "unreachable"))


def _ms(seconds: float, texts: int) -> float:
    return round(1000 * seconds / max(texts, 1), 3)


# ----------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, offline, batches = content["setting"], content["offline"], content["batches"]
    parts = [
        "# The service: its cost, its latency, and too much load",
        "Written by `python benchmarks/serve.py`; every figure comes from `serve.json` beside this page.",
        machine.sentence(content["machine"]),
        f"Recipe `{setting['recipe']}` on all-MiniLM-L6-v2 in {setting['dtype']}, {setting['texts']} texts of AG News "
        f"({setting['mean_characters']:g} characters on average), no store. Service and load are two processes on the "
        f"same cores; {setting['seconds']:g} s a level.",
        "## Beside `predict`",
        f"Offline, all texts at once: {offline['texts_a_second']:g} texts a second, {offline['cpu_ms_a_text']:g} ms of "
        f"processor time a text; one text a call: {offline['cpu_ms_a_text_alone']:g} ms.",
        _batches(batches, offline, content["machine"]["cores"]),
        "## One text a request",
        _levels(content["levels"], offline),
        f"## {OVERLOAD} times as much as it can do",
        _overload(content["overload"], setting),
    ]
    return "\n\n".join(parts) + "\n"


def _batches(batches: Mapping[str, Any], offline: Mapping[str, Any], cores: int) -> str:
    share = batches["texts_a_second"] / offline["texts_a_second"]
    left = batches["seconds"] - batches["client_cpu_seconds"] / cores
    alone = batches["texts"] / left / offline["texts_a_second"]
    return (
        f"With {BATCH_TEXTS} texts a request on {BATCH_CONNECTIONS} connections: {batches['texts_a_second']:g} texts a "
        f"second, **{share:.0%} of offline** (wanted: {WANTED_SHARE:.0%}); {alone:.0%} with the client's processor "
        f"time ({batches['client_cpu_seconds']:g} s of {batches['seconds']:g} s on {cores} cores) taken off. The "
        f"service spends {batches['service_cpu_ms_a_text']:g} ms of processor time a text."
    )


def _levels(levels: Mapping[str, Any], offline: Mapping[str, Any]) -> str:
    heads = [
        "connections", "texts a second", "p50, ms", "p95, ms", "p99, ms", "CPU ms a text", "times offline",
        "times one by one", "wrong", "lost", "refused", "memory, MB",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for count, level in levels.items():
        spent = level["service_cpu_ms_a_text"]
        times, alone = spent / offline["cpu_ms_a_text"], spent / offline["cpu_ms_a_text_alone"]
        latency = [f"{level['latency_ms'].get(name, float('nan')):g}" for name in ("p50", "p95", "p99")]
        outcomes = level["outcomes"]
        counts = [str(outcomes.get("wrong", 0)), str(lost(level)), str(outcomes.get("refused", 0))]
        shown = [
            count, f"{level['texts_a_second']:g}", *latency, f"{spent:g}", f"{times:.2f}",
            f"{alone:.2f}", *counts, f"{level['memory_mb']:g}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(shown)} |")
    worst = max(level["largest_difference"] for level in levels.values())
    note = (
        "CPU time a text beside that of `predict` on all texts at once, and on one text a call; wanted: at most "
        f"{WANTED_TIMES:g}. A text that comes alone is read alone: its weights are fetched from memory for it. Largest "
        f"difference of a probability to `predict_proba`: {worst:.1e}."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _overload(found: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    outcomes = found["outcomes"]
    first, last = found["memory_mb_first_and_last_quarter"]
    recovery = found["recovery_seconds"]
    soon = f"after {recovery:g} s" if recovery is not None else f"not within {RECOVERY_SECONDS} s"
    other = {name: count for name, count in outcomes.items() if name.startswith("status")}
    rest = "".join(f", {count} with {name}" for name, count in other.items())
    return (
        f"{found['rate']:g} requests a second for {setting['overload_seconds']:g} s: {outcomes.get('right', 0):,} "
        f"answered right, {outcomes.get('wrong', 0)} wrong, {lost(found)} lost, "
        f"{outcomes.get('refused', 0):,} refused with 503{rest}; {outcomes.get('sent again', 0)} were sent twice, the "
        "first time on a connection that the service was just closing, idle for seconds; "
        f"{outcomes.get('not sent', 0):,} more would have begun "
        f"had one of the {OVERLOAD_CONNECTIONS:,} connections been free. Those answered took "
        f"{found['latency_ms'].get('p50', 0) / 1000:.1f} s in the median. Memory: {first:g} MB at most in the first "
        f"quarter, {last:g} MB in the last. It answered single requests as before (at most {RECOVERED:g} times the "
        f"median) {soon}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and name the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--recipe", default="linear", help="what is served (%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE), help="of the backbone (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each level (%(default)s)")
    parser.add_argument("--texts", type=int, default=TEXTS, help="asked for in turn (%(default)s)")
    parser.add_argument("--minute", action="store_true", help="a minute of overload, not five seconds")
    parser.add_argument("--cache", default="auto", help="store for the training rows")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    given = vars(parser.parse_args(arguments))
    overload_seconds = 60.0 if given.pop("minute") else 5.0
    written = run(**given, overload_seconds=overload_seconds)
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
