"""A connection that does not send a whole request head in time is closed.

Protocol   uvicorn's HTTP/1.1 protocol with a clock
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From the first byte, or from the connection, to the end of the request head. uvicorn has a clock between requests
only: without this one, connections that say nothing would be kept for ever."""


class Protocol(H11Protocol):
    """Closes connections on which no request begins, or whose request head does not end."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._wind()

    def data_received(self, data: bytes) -> None:
        """Wind the clock where a head is unfinished, stop it where a request runs."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._clock is None and self.conn.trailing_data[0]:
            self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _wind(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
