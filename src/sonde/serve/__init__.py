"""Saved models over HTTP, for programs and for people.

Settings        where to listen, who may ask, and every bound
open_service    folders of saved models -> a Service, loaded and bound to its port
named_folders   what a command line says -> name and folder of each model

A request goes through these rooms, in this order:

    protocol   a connection that sends no request in time, or is one too many (`handles`), is closed
    guard      who may ask, how large and how slow a body may be; request ids, headers, logs, metrics
    app        routes; `fields` says what stands in a body, `answers` turns probabilities into it
    waiting    a bounded queue, and the one thread that calls models for all who wait
    models     what is served, and how it is replaced while it is
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import need
from sonde.serve.models import named_folders
from sonde.serve.settings import Settings

if TYPE_CHECKING:
    from sonde.serve.service import Service

__all__ = ["Settings", "named_folders", "open_service"]

EXTRA = ("fastapi", "uvicorn", "prometheus_client")
"""What the extra `serve` brings."""


def open_service(folders: Mapping[str, Path], settings: Settings, **load: Any) -> "Service":
    """Bind the port, load the models, and return a service that is ready to run.

    Parameters
    ----------
    folders : mapping of str to Path
        Name -> folder of a saved model; the first is asked where a request names none.
    settings : Settings
    **load
        `backbones`, `dtype` and `device`, as in `sonde.load`.

    Raises
    ------
    MissingExtraError
        If the extra `serve` is not installed.
    ArgumentError
        If a setting is out of range, or the port cannot be had.
    ModelError, BackboneError
        If a model cannot be loaded.
    """
    for module in EXTRA:
        need(module, "serve")
    from sonde.serve.service import Service

    return Service(folders, settings, **load)
