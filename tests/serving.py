"""A real service on a free loopback port, and plain clients of it.

running   folders -> a service that runs in a thread while the context is open
ask       one request -> status, headers, body
connected, everything, answered   the same by hand, for clients that misbehave
hold      makes a model wait until it is told to go on
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from sonde.serve import Settings, open_service
from sonde.serve.service import Service

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error, which every error must have."""
        assert set(self.json) == {"error", "request_id"}, self.json
        assert self.headers["x-request-id"] == self.json["request_id"]
        return str(self.json["error"])


@contextmanager
def running(folders: Mapping[str, Path], **settings: Any) -> Iterator[Service]:
    service = open_service(folders, Settings(**{"port": 0, **settings}))
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    until(lambda: service.started)
    try:
        yield service
    finally:
        service.stop()
        thread.join(120)
        assert not thread.is_alive(), "the service did not stop"


def until(true: Any, seconds: float = 60.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def address(service: Service) -> tuple[str, int]:
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def ask(
    service: Service, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str | None = None
) -> Reply:
    """GET, or POST of a body: bytes as they are, anything else as JSON."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {**(JSON if body is not None else {}), **(headers or {})}
    connection = http.client.HTTPConnection(*address(service), timeout=300)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, content, sent)
        reply = connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        connection.close()


def classify(service: Service, *texts: str, **fields: Any) -> Any:
    """The results of some texts."""
    reply = ask(service, "/v1/classify", {"texts": list(texts), **fields})
    assert reply.status == 200, reply.body
    return reply.json["results"]


def connected(service: Service) -> socket.socket:
    return socket.create_connection(address(service), timeout=300)


def everything(connection: socket.socket) -> bytes:
    """What a connection says until it is closed."""
    said = b""
    with connection:
        while chunk := connection.recv(65536):
            said += chunk
    return said


def answered(connection: socket.socket, path: str) -> int:
    """The status of one request on a connection that is kept."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    reply.read()
    return reply.status


class Hold:
    """A model that waits before each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = threading.Event()

    def wait(self, texts: list[str]) -> None:
        self.calls.append(list(texts))
        assert self.gate.wait(120)


def hold(service: Service, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Make the first model wait until `gate` is set; `calls` says what it was asked together."""
    held = Hold()
    classifier = service.models.find(None).classifier
    stream = classifier.stream

    def waiting(texts: list[str]) -> Any:
        held.wait(texts)
        yield from stream(texts)

    monkeypatch.setattr(classifier, "stream", waiting, raising=False)
    return held
