"""Records of cost: prices, and what stages took.

Prices, Tariff      what tokens and kilowatt hours cost, and the watts of stages that no counter measures
Cost, StageCost     what work took
Energy              kilowatt hours, and whether they were measured
together            several such figures as one
Parameters          how many numbers the backbones and the trained part hold
WATTS               the paper's watts by kind of stage
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sonde.errors import ArgumentError, choose

WATTS = {"reading": 240.0, "training": 45.0, "inference": 45.0, "generating": 180.0, "retrieving": 250.0}
"""LLMEmbed, Table 4, on an A100: extraction of embeddings, its head, CARP's generation (170 to 190), its kNN."""


@dataclass(frozen=True)
class Prices:
    """What tokens cost; the defaults are those of LLMEmbed's Table 5 (GPT-3.5)."""

    usd_per_1k_prompt_tokens: float = 0.002
    """Dollars for 1,000 tokens in."""
    usd_per_1k_new_tokens: float = 0.002
    """Dollars for 1,000 tokens out."""

    def __post_init__(self) -> None:
        _check_numbers(self)

    def usd(self, prompt_tokens: int, new_tokens: int) -> float:
        """Dollars for so many tokens."""
        return (prompt_tokens * self.usd_per_1k_prompt_tokens + new_tokens * self.usd_per_1k_new_tokens) / 1000


@dataclass(frozen=True)
class Tariff:
    """What energy costs, and how much a stage draws where nothing measures it."""

    usd_per_kwh: float = 0.065
    """Dollars for a kilowatt hour; LLMEmbed, Table 5."""
    watts: Mapping[str, float] = field(default_factory=lambda: dict(WATTS))
    """Power by kind of stage: the name of a stage up to its first underscore."""

    def __post_init__(self) -> None:
        _check_numbers(self)

    def watts_of(self, stage: str) -> float:
        """The stated power of a stage."""
        kind = choose("Stage", stage.partition("_")[0], self.watts)
        return float(self.watts[kind])


@dataclass(frozen=True)
class Energy:
    """Kilowatt hours, and where the figure comes from."""

    kwh: float
    """Energy."""
    source: str
    """The counters, or the stated watts."""
    estimated: bool
    """Whether nothing measured it."""

    def __str__(self) -> str:
        return f"{self.kwh:.4g} kWh ({'estimated' if self.estimated else 'measured'}: {self.source})"


def together(parts: Iterable[Energy | None]) -> Energy | None:
    """The sum; estimated if any part is, None if any is unknown or there are none."""
    every = list(parts)
    known = [part for part in every if part is not None]
    if not known or len(known) < len(every):
        return None
    sources = "; ".join(dict.fromkeys(part.source for part in known))
    return Energy(sum(part.kwh for part in known), sources, any(part.estimated for part in known))


@dataclass(frozen=True)
class Parameters:
    """How many numbers a classifier holds."""

    backbone: int
    """In the frozen models that are read or asked, as stored."""
    trained: int
    """In what was fitted to the labelled rows."""


@dataclass(frozen=True)
class StageCost:
    """What one stage took."""

    seconds: float
    """Wall-clock time."""
    energy: Energy | None
    """None where the work is done elsewhere: nobody here can know what an endpoint draws."""
    prompt_tokens: int = 0
    """Tokens into language models that answer."""
    new_tokens: int = 0
    """Tokens out of them."""
    usd_electricity: float | None = None
    """Dollars for the energy."""
    usd_tokens: float = 0.0
    """Dollars for the tokens."""


@dataclass(frozen=True)
class Cost:
    """What work took, by stage."""

    stages: Mapping[str, StageCost]
    """In the order in which they were first entered."""
    parameters: Parameters | None = None
    """Where they are known."""

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def energy(self) -> Energy | None:
        """Of all stages; estimated if any of them is, None if any is unknown."""
        return together(stage.energy for stage in self.stages.values())

    @property
    def usd(self) -> float:
        """Dollars for tokens and, where it is known, electricity."""
        return sum(stage.usd_tokens + (stage.usd_electricity or 0.0) for stage in self.stages.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        energy = self.energy
        total = {"seconds": self.seconds, "energy": asdict(energy) if energy else None, "usd": self.usd}
        stages = {name: asdict(stage) for name, stage in self.stages.items()}
        return {"stages": stages, "total": total, "parameters": asdict(self.parameters) if self.parameters else None}


def _check_numbers(record: Any) -> None:
    """Every price and power is a number that is not negative."""
    values: dict[str, Any] = dict(vars(record))
    values |= values.pop("watts", {})
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ArgumentError(f"{name} is {value!r}; it must be a number, 0 or more.")
