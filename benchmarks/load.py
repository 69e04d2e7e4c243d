"""A bounded load on `sonde serve`, from a process of its own: python benchmarks/load.py PLAN.json

run     a plan -> what came back: latencies, refusals, wrong and lost answers, this process's own processor time
Client  one connection that is kept, and opened anew when it was cut

A plan (JSON) has `url`, `rows` (pairs of a text and its probabilities, which every answer is compared with),
`tolerance`, `texts` (in one request), `connections`, `seconds`, and `rate`: requests a second that are sent whether or
not earlier ones were answered (an open loop), or null: every connection asks as soon as it was answered (a closed
loop).

Outcomes: `right`, `wrong` (another probability), `refused` (503), `status N`, `unreachable` (nobody listens),
`lost` (no answer though somebody listened), `not sent` (every connection was busy when it was due). A kept connection
may be closed by the other side just when it is used again; such a request is sent once more, as HTTP clients do (RFC
9112, 9.3.1), and counted as `sent again` beside its outcome.
"""

import asyncio
import contextlib
import itertools
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PERCENTILES = (50, 95, 99)
PATIENCE_SECONDS = 60
"""A request without any answer for so long is lost; the service answers or refuses within 30 s."""

Row = tuple[str, list[float]]


class Client:
    """One connection."""

    def __init__(self, url: str) -> None:
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        self.sent_again = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of one answer; `OSError` or `EOFError` if there is no answer."""
        kept = self._streams is not None
        try:
            return await self._ask(body)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
            if not kept or begun:
                raise
        self.sent_again += 1
        return await self._ask(body)

    async def _ask(self, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self._streams
        head = f"POST /v1/classify HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nContent-Length: "
        try:
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.decode("latin-1").lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            content = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), content

    def close(self) -> None:
        """Cut the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Load:
    """What is asked in turn, and what came of it."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.plan = plan
        self.outcomes: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.worst = 0.0
        self.clients: list[Client] = []
        self._bodies = itertools.cycle(list(_bodies(plan["rows"], plan["texts"])))

    def client(self) -> Client:
        """A connection, still to be opened."""
        self.clients.append(Client(self.plan["url"]))
        return self.clients[-1]

    async def one(self, client: Client) -> None:
        """One request, judged."""
        body, expected = next(self._bodies)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                status, content = await client.ask(body)
        except ConnectionRefusedError:
            self.outcomes["unreachable"] += 1
            return
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            self.outcomes["lost"] += 1
            return
        if status == 503:
            self.outcomes["refused"] += 1
        elif status != 200:
            self.outcomes[f"status {status}"] += 1
        else:
            self.latencies.append(time.perf_counter() - began)
            self.outcomes["right" if self._is_right(content, expected) else "wrong"] += 1

    def _is_right(self, content: bytes, expected: Sequence[Sequence[float]]) -> bool:
        found = [result["probabilities"] for result in json.loads(content)["results"]]
        if list(map(len, found)) != list(map(len, expected)):
            return False
        gap = max(abs(a - b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True))
        self.worst = max(self.worst, gap)
        return bool(gap <= self.plan["tolerance"])


def _bodies(rows: Sequence[Row], texts: int) -> Iterator[tuple[bytes, list[list[float]]]]:
    """Requests of so many texts each, every row in turn, with what their answers must hold."""
    for start in range(0, len(rows) - texts + 1, texts):
        some = rows[start : start + texts]
        content = {"text": some[0][0]} if texts == 1 else {"texts": [text for text, _ in some]}
        yield json.dumps(content).encode(), [probabilities for _, probabilities in some]


async def _closed(load: _Load) -> None:
    """Every connection asks as soon as it was answered."""
    end = time.perf_counter() + load.plan["seconds"]

    async def keep_asking() -> None:
        client = load.client()
        while time.perf_counter() < end:
            await load.one(client)
        client.close()

    await asyncio.gather(*(keep_asking() for _ in range(load.plan["connections"])))


async def _open(load: _Load) -> None:
    """Requests begin at a fixed rate; where every connection is busy, none begins, and that is counted."""
    idle = [load.client() for _ in range(load.plan["connections"])]
    running: set[asyncio.Task[None]] = set()

    async def borrow(client: Client) -> None:
        await load.one(client)
        idle.append(client)

    began, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < load.plan["seconds"]:
        while sent < now * load.plan["rate"]:
            sent += 1
            if not idle:
                load.outcomes["not sent"] += 1
                continue
            task = asyncio.create_task(borrow(idle.pop()))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(0.005)
    await asyncio.gather(*running)
    for client in idle:
        client.close()


def run(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Play a plan."""
    _allow_connections(plan["connections"])
    load = _Load(plan)
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(_closed(load) if plan["rate"] is None else _open(load))
    seconds = time.perf_counter() - began
    answered = load.outcomes["right"] + load.outcomes["wrong"]
    load.outcomes["sent again"] = sum(client.sent_again for client in load.clients)
    return {
        "seconds": round(seconds, 3),
        "client_cpu_seconds": round(time.process_time() - cpu, 3),
        "texts": answered * plan["texts"],
        "outcomes": {name: count for name, count in load.outcomes.items() if count},
        "latency_ms": _percentiles(load.latencies),
        "largest_difference": load.worst,
    }


def _percentiles(latencies: list[float]) -> dict[str, float]:
    falling = sorted(latencies)
    last = len(falling) - 1
    return (
        {f"p{p}": round(1000 * falling[min(len(falling) * p // 100, last)], 2) for p in PERCENTILES} if falling else {}
    )


def _allow_connections(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count + 100, hard)), hard))


if __name__ == "__main__":
    json.dump(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), sys.stdout)
