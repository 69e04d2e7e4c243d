"""Meter: measures stages of work.

Meter   `with meter.stage("training"):`; counters where the hardware has them, else stated watts
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sonde.cost.power import Counter, counters
from sonde.cost.records import Cost, Energy, Parameters, Prices, StageCost, Tariff, together
from sonde.errors import ArgumentError, MissingExtraError, choose

logger = logging.getLogger(__name__)

JOULES_PER_KWH = 3.6e6
SOURCES = ("auto", "counters", "stated", "codecarbon")
POLL_SECONDS = 60.0
"""RAPL counters of a busy server start again after some 15 minutes at the soonest; read more often, none is missed."""


class Meter:
    """Measures stages of work.

    Parameters
    ----------
    tariff : Tariff
    prices : Prices
    energy : {"auto", "counters", "stated", "codecarbon"}
        Counters where the hardware has them, else stated watts; or one of the two; or the estimate of codecarbon.
    country : str
        ISO code of the country, which codecarbon wants to know; its energy figures do not depend on it.

    Raises
    ------
    ArgumentError
        If counters are demanded and there are none.
    MissingExtraError
        If codecarbon is demanded and not installed.
    """

    def __init__(
        self, tariff: Tariff | None = None, prices: Prices | None = None, *, energy: str = "auto", country: str = "USA"
    ) -> None:
        self.tariff, self.prices = tariff or Tariff(), prices or Prices()
        self.energy, self.country = choose("energy", energy, SOURCES), country
        self._counters = counters() if energy in ("auto", "counters") else []
        if energy == "counters" and not self._counters:
            raise ArgumentError(
                "This machine shows no energy counter: no readable /sys/class/powercap (RAPL), and no NVIDIA GPU with "
                "nvidia-ml-py installed. Use energy='stated', and say so."
            )
        self._seconds: dict[str, float] = {}
        self._energy: dict[str, list[Energy | None]] = {}
        self._tokens: dict[str, tuple[int, int]] = {}

    @contextmanager
    def stage(self, name: str, *, watts: float | None = None, elsewhere: bool = False) -> Iterator[None]:
        """Measure a stage; entered again, its figures add up.

        Parameters
        ----------
        name : str
            Such as `reading_train`, `reading_test`, `training`, `inference`, `generating_reasons`, `retrieving`: up to
            its first underscore a key of the tariff's watts.
        watts : float, optional
            Stated power instead of the tariff's.
        elsewhere : bool
            Whether the work is done by a server: its energy is unknown.
        """
        stated = watts if watts is not None else 0.0 if elsewhere else self.tariff.watts_of(name)
        running = _Running(self._counters, stated, elsewhere, self._codecarbon(elsewhere))
        started = time.perf_counter()
        running.start()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._energy.setdefault(name, []).append(running.stop(seconds))
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def add_tokens(self, name: str, prompt_tokens: int, new_tokens: int) -> None:
        """Add tokens to a stage."""
        into, out = self._tokens.get(name, (0, 0))
        self._tokens[name] = (into + prompt_tokens, out + new_tokens)

    def cost(self, parameters: Parameters | None = None) -> Cost:
        """What was measured so far."""
        return Cost({name: self._stage(name) for name in {**self._seconds, **self._tokens}}, parameters)

    def _stage(self, name: str) -> StageCost:
        energy, tokens = together(self._energy.get(name, [])), self._tokens.get(name, (0, 0))
        dollars = None if energy is None else energy.kwh * self.tariff.usd_per_kwh
        return StageCost(self._seconds.get(name, 0.0), energy, *tokens, dollars, self.prices.usd(*tokens))

    def _codecarbon(self, elsewhere: bool) -> Any:
        if self.energy != "codecarbon" or elsewhere:
            return None
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError as error:
            raise MissingExtraError("codecarbon is not installed: pip install codecarbon") from error
        return OfflineEmissionsTracker(country_iso_code=self.country, save_to_file=False, log_level="error")


class _Running:
    """The counters while a stage runs, read often enough that none starts at 0 twice unseen."""

    def __init__(self, found: list[Counter], watts: float, elsewhere: bool, tracker: Any) -> None:
        self.counters = [] if elsewhere else found
        self.watts, self.elsewhere, self.tracker = watts, elsewhere, tracker
        self._joules = 0.0
        self._last: list[float] | None = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def start(self) -> None:
        if self.tracker is not None:
            self.tracker.start()
        self._last = self._read()
        if self.counters:
            self._thread.start()

    def stop(self, seconds: float) -> Energy | None:
        if self.elsewhere:
            return None
        if self.tracker is not None:
            self.tracker.stop()
            found = getattr(self.tracker, "final_emissions_data", None)  # it logs its own failures and goes on
            return None if found is None else Energy(float(found.energy_consumed), "codecarbon", True)
        if not self.counters:
            return Energy(self.watts * seconds / JOULES_PER_KWH, f"{self.watts:g} W stated", True)
        self._over.set()
        self._thread.join()
        if not self._advance():
            return None
        return Energy(self._joules / JOULES_PER_KWH, ", ".join(counter.name for counter in self.counters), False)

    def _poll(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._advance()

    def _read(self) -> list[float] | None:
        """What the counters say; None if one fails, which loses nobody the work itself."""
        try:
            return [counter.read() for counter in self.counters]
        except Exception:  # OSError, or NVML's own
            logger.warning("an energy counter cannot be read", exc_info=True)
            return None

    def _advance(self) -> bool:
        """Count what was drawn since the last look; whether that is known."""
        now = self._read()
        if now is None or self._last is None:
            return False
        spent = zip(self.counters, self._last, now, strict=True)
        self._joules += sum(counter.between(before, after) for counter, before, after in spent)
        self._last = now
        return True
