"""A connection that does not send a whole request head in time, or does not take its answer, is closed.

Protocol   uvicorn's HTTP/1.1 protocol with a clock
bounded    one that hangs up where too many call
"""

import asyncio
import math
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From the first byte, or from the connection, to the end of the request head. uvicorn has a clock between requests
only: without this one, connections that say nothing would be kept for ever."""


TAKEN_SECONDS = 60.0
"""For what waits to be sent to drain: a client that asks and does not read would keep its answer here for ever."""


class Protocol(H11Protocol):
    """Closes connections on which no request begins, or whose request head does not end, and those that do not read."""

    _clock: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    most_connections: float = math.inf
    """One more is closed at once."""

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.close()
        else:
            self._wind()

    def data_received(self, data: bytes) -> None:
        """Stop the clock where a request runs; wind it where a head is unfinished.

        And where a body goes on whose request is answered already: uvicorn's own clock stops at each of its bytes.
        """
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
            self._stop()
        elif self._clock is None:
            self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._patiently()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._taken()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, whether or not it takes what is still to be sent."""
        super().timeout_keep_alive_handler()
        self._patiently()

    def _wind(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _patiently(self) -> None:
        if self._sending is None:
            self._sending = self.loop.call_later(TAKEN_SECONDS, self.transport.abort)

    def _taken(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._patiently()


def bounded(most: int) -> type[Protocol]:
    """A protocol of which there are at most so many connections."""
    return type("BoundedProtocol", (Protocol,), {"most_connections": most})
