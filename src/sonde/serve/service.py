"""A service: its port, its models, its worker, and the signals that it obeys.

Service   bound and loaded when it is made; `run` answers until it is stopped
"""

import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from sonde.errors import ArgumentError, warn
from sonde.serve.app import PATHS, build
from sonde.serve.guard import Guard
from sonde.serve.handles import SPARE, most_connections
from sonde.serve.metrics import Metrics
from sonde.serve.models import Model, Models, said_of
from sonde.serve.page import FILES
from sonde.serve.protocol import bounded
from sonde.serve.settings import Settings, is_loopback
from sonde.serve.waiting import Worker

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the system holds until they are accepted; it may allow fewer."""

SWITCH_SECONDS = 0.0005
"""After which Python lets another thread run. Its default, 5 ms, is what each socket call of the event loop may wait
for while a model runs: a request makes a handful of them."""

IDLE_SECONDS = 20
"""A connection without a request is closed then; longer than the pauses of a person who tries texts."""


class Service:
    """A service that is bound to its port and has its models.

    Parameters
    ----------
    folders : mapping of str to Path
        Name -> folder; the first is asked where a request names none.
    settings : Settings
    **load
        `backbones`, `dtype` and `device`, as in `sonde.load`.

    Attributes
    ----------
    url : str
        Where it answers.
    models : Models

    Raises
    ------
    ArgumentError
        If the port cannot be had.
    SondeError
        If a model cannot be loaded.

    Warns
    -----
    SondeWarning
        open_service: other machines can reach it, and no token is asked for.
    """

    def __init__(self, folders: Mapping[str, Path], settings: Settings, **load: Any) -> None:
        self._settings = settings
        self._socket = _bind(settings)  # first: a port that is taken is said in a second, not after a minute
        try:
            self.models = Models(folders, **load)
            with _refused(settings):
                self._socket.listen(BACKLOG)  # who reads the address from now on may ask there
        except BaseException:
            self._socket.close()
            raise
        address, port = self._socket.getsockname()[:2]
        loopback = is_loopback(address)
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        if not loopback and settings.token is None:
            warn(
                f"Other machines can reach this service at {address}:{port}, and it asks for no token: anybody there "
                "may use it. Set SONDE_TOKEN, or listen at 127.0.0.1.",
                "open_service",
                1,
            )
        self.metrics = Metrics()
        self._worker = Worker(settings, self._observe)
        self._server = _Server(self._configured(loopback), self._hang_up)

    def _configured(self, loopback: bool) -> uvicorn.Config:
        app = build(self.models, self._worker, self._settings, self.metrics, lambda: self._server.should_exit)
        most = most_connections()
        guard = Guard(
            app, self._settings, self.metrics, loopback, PATHS | FILES.keys(),
            lambda: len(self._server.server_state.connections) > most,
        )  # fmt: skip
        self.metrics.watch("queue_texts", lambda: self._worker.texts)
        self.metrics.watch("queue_characters", lambda: self._worker.characters)
        self.metrics.watch("requests_in_flight", lambda: guard.in_flight)
        return uvicorn.Config(
            guard,
            http=bounded(most + SPARE),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=_whole(self._settings.stop_seconds),
        )

    def run(self) -> None:
        """Answer until SIGTERM, SIGINT or `stop`; what was accepted is answered before it ends. SIGHUP reloads."""
        self._worker.start()
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        logger.info("listening", extra={"fields": {"url": self.url, "models": self.models.names}})
        try:
            self._server.run([self._socket])
        finally:
            sys.setswitchinterval(usual)
            self._worker.stop()
            logger.info("stopped")

    def stop(self) -> None:
        """Ask `run` to end, from any thread."""
        self._server.should_exit = True

    @property
    def started(self) -> bool:
        """Whether requests are accepted."""
        return self._server.started

    def _observe(self, model: Model, texts: int, seconds: float) -> None:
        self.metrics.called.labels(model.name).observe(texts)
        self.metrics.busy.labels(model.name).inc(seconds)

    def _hang_up(self) -> None:
        threading.Thread(target=self.models.reload_all, args=(self._tell,), name="sonde-reload", daemon=True).start()

    def _tell(self, name: str, error: Exception | None) -> None:
        outcome = "done" if error is None else "failed"
        self.metrics.reloads.labels(name, outcome).inc()
        fields = {"model": name, "outcome": outcome, "error": None if error is None else said_of(error)}
        logger.log(logging.INFO if error is None else logging.ERROR, "reload", extra={"fields": fields})


class _Server(uvicorn.Server):
    """uvicorn, with signals of our own: a stop that was asked for ends with exit code 0, SIGHUP reloads."""

    def __init__(self, config: uvicorn.Config, hang_up: Any) -> None:
        super().__init__(config)
        self._hang_up = hang_up

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Obey signals while the service runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGTERM: self.handle_exit, signal.SIGINT: self.handle_exit}
        if hasattr(signal, "SIGHUP"):  # not on Windows
            handlers[signal.SIGHUP] = lambda *_: self._hang_up()
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second time, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


@contextmanager
def _refused(settings: Settings) -> Iterator[None]:
    """An `ArgumentError` where the system gives no address."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ArgumentError(
            f"The service cannot listen at {settings.host}, port {settings.port}: {said}. "
            "Give another --host or --port; --port 0 takes any that is free."
        ) from error


def _bind(settings: Settings) -> socket.socket:
    with _refused(settings):
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound


def _whole(seconds: float) -> int:
    """The server takes whole seconds."""
    return max(round(seconds), 1)
