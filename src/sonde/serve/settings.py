"""Where the service listens, who may ask, and every bound that a user may move.

Settings   a frozen record, checked
"""

import math
from dataclasses import dataclass
from ipaddress import ip_address

from sonde.errors import ArgumentError

MAX_PORT = 65535

MAX_BODIES_BYTES = 64 * 2**20
"""Bodies in flight, together: memory stays bounded however many connections send at once."""

MIN_TOKEN = 16
"""Characters: a shorter secret can be guessed by asking."""


@dataclass(frozen=True)
class Settings:
    """How a service runs; every wrong value is refused with a sentence."""

    host: str = "127.0.0.1"
    """Address to listen at; loopback unless somebody asks for more."""
    port: int = 8000
    """0 = any that is free."""
    token: str | None = None
    """What `Authorization: Bearer ...` must hold; None = anybody who reaches the port may ask."""
    max_body_bytes: int = 4 * 2**20
    """A larger body is answered with 413: 1,024 texts of 4 KB."""
    max_texts: int = 1024
    """Texts in one request; more are answered with 422."""
    queue_texts: int = 4096
    """Texts that may wait for a model, those that it reads included; past it, 503. About 20 s of work for a small
    encoder on two cores."""
    queue_characters: int = 16 * 2**20
    """Characters of all waiting texts: at most 64 MB, whatever their alphabet."""
    body_seconds: float = 10.0
    """A body that takes longer to arrive is answered with 408."""
    answer_seconds: float = 30.0
    """An answer that takes longer is given up, with 504; most proxies wait 60 s."""
    stop_seconds: float = 30.0
    """How long a stop waits for answers that are due; process supervisors kill after 30 to 90 s."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is loaded."""
        if not 0 <= self.port <= MAX_PORT:
            raise ArgumentError(f"The port (--port) is {self.port}; it must lie between 0 and {MAX_PORT}.")
        if self.token is not None and (len(self.token) < MIN_TOKEN or not self.token.isascii() or " " in self.token):
            raise ArgumentError(
                f"The token (--token, SONDE_TOKEN) must have at least {MIN_TOKEN} ASCII characters and no blanks. "
                "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        for name in ("max_body_bytes", "max_texts", "queue_texts", "queue_characters"):
            self._at_least_one(name)
        for name in ("body_seconds", "answer_seconds", "stop_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ArgumentError(
                    f"{_option(name)} is {getattr(self, name)}; it must be a number of seconds above 0."
                )
        if self.max_body_bytes > MAX_BODIES_BYTES:
            raise ArgumentError(
                f"--max-body-bytes is {self.max_body_bytes:,}; it must be at most {MAX_BODIES_BYTES:,}, which is what "
                "the bodies of all requests may hold together."
            )
        if self.queue_texts < self.max_texts:
            raise ArgumentError(
                f"--queue-texts is {self.queue_texts}, less than the {self.max_texts} texts that one request may hold "
                "(--max-texts). Raise the first or lower the second."
            )
        if self.queue_characters < self.max_body_bytes:
            raise ArgumentError(
                f"--queue-characters is {self.queue_characters}, less than the {self.max_body_bytes} bytes that one "
                "request may hold (--max-body-bytes). Raise the first or lower the second."
            )

    def _at_least_one(self, name: str) -> None:
        if getattr(self, name) < 1:
            raise ArgumentError(f"{_option(name)} is {getattr(self, name)}; it must be at least 1.")


def is_loopback(address: str) -> bool:
    """Whether a resolved address is reached from this machine alone."""
    return ip_address(address.partition("%")[0]).is_loopback


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
