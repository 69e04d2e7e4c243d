"""Scale: more rows than one process can take, the same results.

predict_file    a file -> a file with labels: one process, several, or a Ray cluster; goes on where it stopped
extract_file    a file -> a store of activations, the same way
Workers         how many, where, and what each may take
predict         a `ray.data.Dataset` of texts -> one with labels
write_parquet   a `ray.data.Dataset` -> a folder that appears when it is whole
"""

from typing import TYPE_CHECKING, Any

from sonde.scale.extracting import extract_file
from sonde.scale.predicting import predict_file
from sonde.scale.workers import Workers

if TYPE_CHECKING:
    from sonde.scale.datasets import predict, write_parquet

__all__ = ["Workers", "extract_file", "predict", "predict_file", "write_parquet"]


def __getattr__(name: str) -> Any:
    if name in ("predict", "write_parquet"):  # they need Ray
        from sonde.scale import datasets

        return getattr(datasets, name)
    raise AttributeError(f"module 'sonde.scale' has no attribute {name!r}")
