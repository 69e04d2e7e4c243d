"""Workers: who does the work, in a user's words.

Workers      how many, where, and what each may take
as_workers   a number, or these
"""

from dataclasses import dataclass

from sonde.errors import ArgumentError, choose

ENGINES = ("local", "ray")

TIMEOUT_SECONDS = 1800.0
"""A worker that says nothing for so long hangs. It speaks after every window that is read, which takes an encoder of
100M parameters a quarter of an hour on one core, where texts are long."""


@dataclass(frozen=True)
class Workers:
    """Who does the work; each worker holds a model of its own.

    Raises
    ------
    ArgumentError
        Numbers out of range, or an address without Ray.
    """

    count: int = 1
    """How many."""
    engine: str = "local"
    """`local`: processes of this machine; `ray`: actors of a Ray cluster."""
    address: str | None = None
    """Of the cluster; "auto" = the one that RAY_ADDRESS names or that runs here; None = one that is started here while
    it is needed."""
    timeout: float = TIMEOUT_SECONDS
    """Seconds of silence after which a local worker counts as hanging."""
    cpus: float | None = None
    """Processors that Ray reserves for each; None = one, or a half on a Ray started here."""
    gpus: float = 0.0
    """GPUs that Ray reserves for each; a fraction where several workers share one."""

    def __post_init__(self) -> None:
        choose("engine", self.engine, ENGINES)
        if self.count < 1:
            raise ArgumentError(f"There are {self.count} workers (--workers); there must be one or more.")
        if not self.timeout > 0:
            raise ArgumentError(f"The timeout of a worker (--worker-timeout) is {self.timeout}; give seconds above 0.")
        if self.engine != "ray" and (self.address is not None or self.cpus is not None or self.gpus):
            raise ArgumentError(
                "An address, processors and GPUs of workers are said to Ray; add --engine ray, or leave them out."
            )
        if (self.cpus is not None and not self.cpus > 0) or not self.gpus >= 0:
            raise ArgumentError(
                f"A worker asks Ray for {self.cpus} processors and {self.gpus} GPUs; give numbers above 0."
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ArgumentError(f"A worker asks Ray for {self.gpus} GPUs; above 1 only whole ones can be had.")


def as_workers(workers: int | Workers) -> Workers:
    """What a user says: a number of local processes, or all of it."""
    return workers if isinstance(workers, Workers) else Workers(workers)
