"""Half an hour of `sonde serve`: a steady load, requests that are wrong, reloads, restarts; memory must stay as it is.

    python benchmarks/soak.py --data DIR [--minutes 30] [--restarts 2] [--out docs/results]

Three processes share the cores: the service, a load that judges every answer (`load.py`, at a rate that the service can
bear), and this one, which sends requests that no service should take, has the models loaded anew, and now and then ends
the service and starts another at the same port while the load goes on, as a supervisor would. Once a second it asks the
system what memory the service holds. One that has just begun still grows; the first fifth of every life is shown, but
not judged.

run          measure, and write soak.{json,md} and soak.svg
Stranger     sends what no service should take, and counts what it is told
lived        one process of the service, from its start to its end
growth       how much more memory the end of a life holds than its beginning
to_markdown  the page, from the JSON alone
"""

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from growth import standing_alone
from ratios import asked_of, publish, sha256_of
from serve import TOLERANCE, Service, measure, predicted, served

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import read_split
from sonde.classifier import TextClassifier
from sonde.show.report.charts import Axis, Curve, chart

TRAIN_ROWS, TEXTS = 1500, 512
"""Rows that train the model, whose accuracy plays no part, and test texts that are asked for in turn."""

SHARE = 0.5
"""Of what the service can answer: so much is asked of it."""

CONNECTIONS, RELOAD_SECONDS, PAUSE_SECONDS, LOOK_SECONDS = 64, 20.0, 0.2, 1.0
"""Of the load; between reloads; between requests of the stranger; between looks at the memory."""

RELOADING = 0.8
"""The part of a life in which models are loaded anew: what stands at its end is not that of a reload under way."""

WARM = 0.2
"""The part of a life in which a service may still grow."""

MOST_GROWTH = 1.05
"""The most memory at the end of a life, as a multiple of that at its beginning."""


def run(
    *, data: Path, out: Path, minutes: float = 30, restarts: int = 2, recipe: str = "linear", dtype: str = "bfloat16",
    rounds: int = 1, thread_count: int | None = None, note: str = "",
) -> list[Path]:  # fmt: skip
    """Measure, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        model, plan_file = Path(folder) / "model", Path(folder) / "plan.json"
        train = read_split(data, "ag_news", "train").take(TRAIN_ROWS)
        TextClassifier(recipe, dtype=dtype, cache=None).fit(train.texts, train.labels).save(model)
        texts = read_split(data, "ag_news", "test").take(TEXTS).texts
        _, rows = predicted(model, texts, dtype)
        seconds = 60 * minutes / (restarts + 1)
        plan = {"rows": rows, "tolerance": TOLERANCE[dtype], "texts": 1, "connections": CONNECTIONS, "rate": None}
        lives: list[dict[str, Any]] = []
        load: subprocess.Popen[str] | None = None
        port, rate = 0, 0.0
        began = time.monotonic()
        while len(lives) <= restarts:
            with served(model, dtype, port) as service:
                if load is None:
                    port = urlsplit(service.url).port or 0
                    capacity = measure(service, {**plan, "url": service.url, "seconds": min(5.0, seconds)})
                    rate, began = SHARE * capacity["texts_a_second"], time.monotonic()
                    whole = {**plan, "url": service.url, "seconds": 60 * minutes, "rate": rate}
                    plan_file.write_text(json.dumps(whole), encoding="utf-8")
                    command = [sys.executable, str(Path(__file__).with_name("load.py")), str(plan_file)]
                    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                lives.append(lived(service, seconds, began))
                if len(lives) > restarts:  # it must still be there for the load's last requests
                    found = json.loads(load.communicate()[0])
    content = {
        "machine": machine.describe(),
        "setting": {
            "minutes": minutes, "restarts": restarts, "recipe": recipe, "dtype": dtype, "rate": round(rate, 1),
            "texts": len(texts), "sha256": sha256_of(texts), "threads": thread_count, "note": note,
            "tolerance": TOLERANCE[dtype],
        },
        "load": found,
        "lives": lives,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.svg").write_text(picture(content), encoding="utf-8")
    return publish(out, "soak", content, to_markdown)


# ------------------------------------------------------------------ measuring


class Stranger:
    """Sends what no service should take, until it is told to stop.

    Parameters
    ----------
    url : str
        Of the service.

    Attributes
    ----------
    told : Counter
        How often each (what was sent, what came back).
    surprises : list of str
        What should not have come back.
    """

    def __init__(self, url: str) -> None:
        self.told: Counter[tuple[str, str]] = Counter()
        self.surprises: list[str] = []
        self._at = urlsplit(url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> "Stranger":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        generator = random.Random(0)
        while not self._over.wait(PAUSE_SECONDS):
            what, (method, path, body, due) = generator.choice(list(hostile(generator).items()))
            try:
                status = self.ask(method, path, body)
            except (OSError, HTTPException) as error:
                status = type(error).__name__
            self.told[what, str(status)] += 1
            if status not in due:
                self.surprises.append(f"{what}: {status}")

    def ask(self, method: str, path: str, body: bytes | None) -> int | str:
        """The status; `cut` for a body that is announced and never sent whole."""
        connection = HTTPConnection(self._at.hostname or "", self._at.port, timeout=60)
        try:
            if body is None:
                connection.putrequest(method, path)
                connection.putheader("Content-Type", "application/json")
                connection.putheader("Content-Length", "1000")
                connection.endheaders(b'{"text": "half')
                return "cut"
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()


Request = tuple[str, str, bytes | None, tuple[int | str, ...]]


def hostile(generator: random.Random) -> dict[str, Request]:
    """What is sent: method, path, body, and what may come back. A body that is None is cut off half-way.

    503 may always come back: the service may be busy.
    """
    noise = bytes(generator.randrange(256) for _ in range(200))
    ask = "/v1/classify"
    large = (413, "ConnectionResetError", "BrokenPipeError")  # refused while it is still being sent
    requests: dict[str, Request] = {
        "a cut body": ("POST", ask, None, ("cut",)),
        "noise": ("POST", ask, noise, (400,)),
        "deep nesting": ("POST", ask, b"[" * 100_000, (400,)),
        "5 MB": ("POST", ask, json.dumps({"text": "a" * 5_000_000}).encode(), large),
        "10,000 texts": ("POST", ask, json.dumps({"texts": ["a"] * 10_000}).encode(), (422,)),
        "a number for a text": ("POST", ask, b'{"text": 7}', (422,)),
        "an unknown field": ("POST", ask, b'{"txet": "a"}', (422,)),
        "an unknown model": ("POST", ask, b'{"text": "a", "model": "../../etc/passwd"}', (404,)),
        "an unknown path": ("GET", f"/{generator.random()}", b"", (404,)),
        "a wrong method": ("DELETE", ask, b"", (405,)),
        "a reload without a token": ("POST", "/v1/models/model/reload", b"", (403,)),
        "a long text": ("POST", ask, json.dumps({"text": "word " * 20_000}).encode(), (200,)),
    }
    return {what: (*request[:3], (*request[3], 503)) for what, request in requests.items()}


def lived(service: Service, seconds: float, origin: float) -> dict[str, Any]:
    """Watch one process of the service for so long; `origin` is when the first one began."""
    began = time.monotonic()
    memory: list[tuple[float, float]] = []
    asked, next_reload = 0, RELOAD_SECONDS
    with Stranger(service.url) as stranger:
        while (passed := time.monotonic() - began) < seconds and service.process.poll() is None:
            memory.append((round(time.monotonic() - origin, 1), round(service.memory_mb(), 1)))
            if passed >= next_reload and passed < RELOADING * seconds:
                service.process.send_signal(signal.SIGHUP)
                asked, next_reload = asked + 1, next_reload + RELOAD_SECONDS
            time.sleep(LOOK_SECONDS)
        reloads = _reloads(service.url)
    return {
        "memory_mb": memory, "reloads_asked": asked, "reloads": reloads, "ended_early": service.process.poll(),
        "told": {f"{what}: {status}": count for (what, status), count in sorted(stranger.told.items())},
        "surprises": stranger.surprises[:20], "n_surprises": len(stranger.surprises),
        "cpu_seconds": round(service.cpu_seconds(), 1) if service.process.poll() is None else None,
    }  # fmt: skip


def _reloads(url: str) -> dict[str, float]:
    """What the service itself counted, by outcome."""
    at = urlsplit(url)
    connection = HTTPConnection(at.hostname or "", at.port, timeout=60)
    found: dict[str, float] = {}
    with suppress(OSError, HTTPException):
        connection.request("GET", "/metrics")
        for line in connection.getresponse().read().decode().splitlines():
            if line.startswith("sonde_reloads_total{"):
                found[line.split('outcome="')[1].split('"')[0]] = float(line.split()[-1])
    connection.close()
    return found


def growth(memory: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Medians, in MB, of the fifth of a life after it is warm and of its last fifth."""
    held = [mb for _, mb in memory]
    fifth = max(int(len(held) * WARM), 1)
    return statistics.median(held[fifth : 2 * fifth] or held), statistics.median(held[-fifth:])


# ----------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, load = content["setting"], content["load"]
    lives = content["lives"]
    rows = []
    for number, life in enumerate(lives, 1):
        early, late = growth(life["memory_mb"])
        times = late / early
        rows.append([
            str(number), f"{early:,.0f}", f"{late:,.0f}", f"{max(mb for _, mb in life['memory_mb']):,.0f}",
            f"{times:.3f}", "within" if times <= MOST_GROWTH else "**grows**",
            f"{life['reloads'].get('done', 0):g} of {life['reloads_asked']}",
            f"{sum(life['told'].values()):,}", str(life["n_surprises"]),
        ])  # fmt: skip
    heads = [
        "life", "memory once warm, MB", "at the end, MB", "most, MB", "times", f"at most {MOST_GROWTH:g}",
        "reloads", "wrong requests", "with another answer than due",
    ]  # fmt: skip
    outcomes = dict(load["outcomes"])
    right = outcomes.pop("right", 0)
    others = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items())) or "nothing else"
    latency = ", ".join(f"{name} {value:g} ms" for name, value in load["latency_ms"].items())
    told: Counter[str] = Counter()
    for life in lives:
        told.update(life["told"])
    surprises = [one for life in lives for one in life["surprises"]]
    parts = [
        "# The service over half an hour" if setting["minutes"] == 30 else "# The service over a while",
        "Written by `python benchmarks/soak.py`; every figure comes from `soak.json` beside this page.",
        machine.sentence(content["machine"]),
        f"Recipe `{setting['recipe']}` on all-MiniLM-L6-v2 in {setting['dtype']}, {setting['texts']} texts of AG News "
        f"in turn, one a request, {setting['rate']:g} requests a second (half of what the service answered before) for "
        f"{setting['minutes']:g} minutes; {setting['restarts']} restarts; the models loaded anew every "
        f"{RELOAD_SECONDS:g} s in the first {RELOADING:.0%} of each life; {1 / PAUSE_SECONDS:g} wrong requests a second"
        "." + (f" {setting['note']}" if setting["note"] else ""),
        "## Memory",
        table(heads, rows),
        f"Medians of the second and of the last fifth of each life, resident memory, asked for every "
        f"{LOOK_SECONDS:g} s.",
        "![Memory over time](soak.svg)",
        "## Answers",
        f"{right:,} right (each probability within {setting['tolerance']:g} of `predict_proba`; largest difference "
        f"{load['largest_difference']:.1e}), {others}. {latency}. Unreachable is the service between its end and its "
        "next start; what it had accepted it answered. A kept connection that it had closed, idle for some "
        "seconds or as it ended, was opened anew and the request sent again.",
        "## What strangers were told",
        table(["sent: told", "times"], [[what, f"{count:,}"] for what, count in sorted(told.items())]),
        "Nothing else than what was due." if not surprises else f"**Not due:** {'; '.join(sorted(set(surprises)))}.",
    ]
    return "\n\n".join(parts) + "\n"


def picture(content: Mapping[str, Any]) -> str:
    """Memory over time, a curve a life, as an SVG document."""
    lives = [[(s / 60, mb) for s, mb in life["memory_mb"]] for life in content["lives"]]
    points = [point for life in lives for point in life]
    x = Axis("minutes", 0.0, max(max(m for m, _ in points), 0.1), "{:g}".format)
    y = Axis("MB", 0.0, 1.1 * max(mb for _, mb in points), "{:,.0f}".format)
    said = "Resident memory of the service; a curve for each of its lives."
    curves = [Curve(life, ("first", "second")[number % 2]) for number, life in enumerate(lives)]
    return standing_alone(str(chart("soak", "memory over time", said, x, y, curves, said)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and name the files."""
    parser = asked_of(__doc__, rounds=1)
    parser.add_argument("--minutes", type=float, default=30, help="in all (%(default)s)")
    parser.add_argument("--restarts", type=int, default=2, help="of the service (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
