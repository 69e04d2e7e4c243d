"""What every request goes through before the routes see it.

Guard      an ASGI application around another: ids, who may ask, bounds of bodies, headers, one log line, metrics

The body is read here, so that its size and its time are bounded while it arrives; the routes get it whole.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sonde.serve.metrics import Metrics
from sonde.serve.problems import CLIENT_GONE, DEFECT, Refused, problem
from sonde.serve.settings import MAX_BODIES_BYTES, Settings

logger = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids of requests that are taken over; others could forge lines of a log."""

OPEN_PATHS = {"/", "/healthz", "/readyz", "/openapi.json"}
"""What a token does not protect, with the files of the page: none of it says anything about models or texts."""

OPEN_FOLDER = "/static/"

RELOAD = re.compile(r"/v1/models/[^/]+/reload")

MAX_REQUESTS = 1024
"""Requests in flight; each may hold a connection and a body."""


DRAINED_BODIES = 16
"""So many times the allowed size is read and dropped before a 413: a client that is still sending reads no answer."""

SMALL_BODY_BYTES = 65536
"""A refusal that comes before the body closes the connection, unless the body is this small: it is here already then,
and who was told to come again need not connect again."""

PROBES = {"/healthz", "/readyz", "/metrics"}
"""Answered however many requests there are: who kills what does not answer would otherwise kill what is busy."""

BUSY_SECONDS = 1
"""Retry-After where there are too many requests or bodies: each is gone in about that time."""

LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "[::1]"}
"""How a browser calls this machine. A page of elsewhere, whose name was made to point here, sends its own name."""

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
"""On every answer; a route may set its own."""


class Guard:
    """An ASGI application around another.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    metrics : Metrics
    loopback : bool
        Whether it listens on this machine alone: without a token, only names of this machine are then answered.
    paths : set of str
        Routes, as metrics and logs name them; others are "other".
    crowded : callable
        Whether there are too many connections.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, loopback: bool, paths: set[str],
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._app, self._settings, self._metrics, self._paths = app, settings, metrics, paths
        self._crowded = crowded
        self._expected = None if settings.token is None else settings.token.encode()
        self._hosts = LOOPBACK_HOSTS | {settings.host.lower()} if loopback and settings.token is None else None
        self._bytes = 0
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        self.in_flight += 1
        try:
            await self._checked(scope, receive, exchange)
        except Refused as refused:
            await self._refuse(refused, exchange, receive)
        except asyncio.CancelledError:  # the stop waits no longer
            if not exchange.status:
                headers = {"Retry-After": str(BUSY_SECONDS), "Connection": "close"}
                await self._refuse(Refused(503, "The service is stopping.", headers), exchange, receive)
            raise
        except Exception:
            logger.exception("a request failed", extra={"fields": {"id": exchange.id}})
            if not exchange.status:
                await self._refuse(Refused(500, DEFECT), exchange, receive)
        finally:
            self.in_flight -= 1
            self._record(exchange)

    async def _checked(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_token(scope["path"], headers)
        if scope["path"] not in PROBES:
            if self._crowded():
                closing = {"Retry-After": str(BUSY_SECONDS), "Connection": "close"}
                raise Refused(503, "Too many connections at once; come again.", closing)
            if self.in_flight > MAX_REQUESTS:
                raise Refused(503, "Too many requests at once; come again.", {"Retry-After": str(BUSY_SECONDS)})
        body = bytearray()
        try:
            await self._timed(self._read(body, headers, receive))
            await self._app(scope, _Replay(bytes(body), receive), exchange.send)
        except _Gone:
            return
        finally:
            self._bytes -= len(body)

    async def _timed(self, reading: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                await reading
        except TimeoutError:
            sentence = f"The body took longer than {self._settings.body_seconds:g} s to arrive."
            raise Refused(408, sentence, {"Connection": "close"}) from None

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        if self._hosts is not None and re.sub(r":\d*$", "", host) not in self._hosts:
            raise Refused(
                403,
                "This service answers to the names of this machine alone (localhost, 127.0.0.1). To reach it under "
                "another name, start it with a token.",
            )

    def _check_token(self, path: str, headers: Headers) -> None:
        if self._expected is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._expected)
        if not (right and kind.lower() == "bearer"):
            raise Refused(
                401,
                "This service asks for a token: send the header 'Authorization: Bearer TOKEN'.",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, body: bytearray, asked: Headers, receive: Receive) -> None:
        """Fill `body`; what is too large is dropped as it comes, never kept."""
        most = self._settings.max_body_bytes
        announced = asked.get("content-length", "")
        too_large = announced.isdecimal() and int(announced) > most
        if too_large and asked.get("expect", "").lower() == "100-continue":
            raise self._too_large()
        seen, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            chunk, more = message.get("body", b""), message.get("more_body", False)
            seen += len(chunk)
            if too_large or seen > most:
                too_large = True
                self._bytes -= len(body)
                body.clear()
                if seen > DRAINED_BODIES * most:
                    break
                continue
            body += chunk
            self._bytes += len(chunk)
            if self._bytes > MAX_BODIES_BYTES:
                headers = {"Retry-After": str(BUSY_SECONDS), "Connection": "close"}
                raise Refused(503, "Too much arrives at once; come again.", headers)
        if too_large:
            raise self._too_large()

    def _too_large(self) -> Refused:
        most = self._settings.max_body_bytes
        return Refused(
            413, f"The body is larger than {most:,} bytes. Send fewer texts at once.", {"Connection": "close"}
        )

    async def _refuse(self, refused: Refused, exchange: "_Exchange", receive: Receive) -> None:
        closing = {"Connection": "close"} if _is_large(Headers(scope=exchange.scope)) else {}
        response = problem(refused.status, refused.sentence, exchange.id, {**closing, **refused.headers})
        await response(exchange.scope, receive, exchange.send)

    def _record(self, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.started
        path = self._named(exchange.scope["path"])
        method = exchange.scope["method"] if exchange.scope["method"] in _METHODS else "other"
        status = exchange.status or CLIENT_GONE
        self._metrics.requests.labels(method, path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        client = exchange.scope.get("client")
        fields = {
            "id": exchange.id,
            "client": client[0] if client else None,
            "method": method,
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
            **exchange.scope.get("sonde", {}),
        }
        logger.info("request", extra={"fields": fields})

    def _named(self, path: str) -> str:
        if path in self._paths:
            return path
        return "/v1/models/{name}/reload" if RELOAD.fullmatch(path) else "other"


def _is_large(headers: Headers) -> bool:
    """Whether a request announces a large body, or one of unknown size."""
    announced = headers.get("content-length", "")
    return "transfer-encoding" in headers or (announced.isdecimal() and int(announced) > SMALL_BODY_BYTES)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class _Gone(Exception):
    """The connection was cut while the body arrived."""


class _Exchange:
    """One request: its id, when it began, what it was answered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        scope["sonde"] = {}
        scope["sonde_id"] = self.id

    async def send(self, message: Message) -> None:
        """Add the headers of every answer, and remember its status."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name for name, _ in message.get("headers", ())}
            added = {**SECURITY_HEADERS, "x-request-id": self.id}
            more = [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in own]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self._send(message)


class _Replay:
    """`receive` for the routes: the whole body at once, then what the connection says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> dict[str, Any]:
        if self._body is None:
            return dict(await self._receive())
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
