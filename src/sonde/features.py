"""ActivationFeatures: texts -> a matrix of activations, through the store, under the scikit-learn contract."""

from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import metadata_routing
from sklearn.utils.validation import check_is_fitted

from sonde.errors import ArgumentError
from sonde.inputs import as_texts
from sonde.plan import BUNDLE, backbone_names, check_bounds, warn_lost
from sonde.read.blocks import Block
from sonde.read.extract import read
from sonde.read.pooling import POOLINGS
from sonde.read.sources import Cache, expand_blocks, open_sources, open_store, prepare


class ActivationFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What frozen models make of texts, as a matrix.

    Parameters
    ----------
    site : str or tuple of str
        Site specification: `hidden.*`, `hidden.-1`, `ffn.2:5`, `pooler`, `sentence`, `decoder.hidden.3`; several stand
        side by side.
    pooling : str or tuple of str
        Of `mean`, `max`, `first`, `last`, `mean_content`; several stand side by side.
    backbones : tuple of str
        Hub ids or folders; their features stand side by side.
    max_tokens, long_text, dtype, device, cache
        As in `TextClassifier`.

    Attributes
    ----------
    blocks_ : tuple of str
        Names of the blocks, in column order.
    widths_ : tuple of int
        Columns of each block.
    """

    # under our names for X and y these are no metadata to be routed
    __metadata_request__fit: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__transform: ClassVar = {"texts": metadata_routing.UNUSED}

    def __init__(
        self,
        site: str | tuple[str, ...] = "hidden.-1",
        pooling: str | tuple[str, ...] = "mean",
        backbones: tuple[str, ...] = (BUNDLE,),
        *,
        max_tokens: int | tuple[int | None, ...] | None = None,
        long_text: str = "cut",
        dtype: str = "auto",
        device: str = "auto",
        cache: Cache = "auto",
    ) -> None:
        self.site = site
        self.pooling = pooling
        self.backbones = backbones
        self.max_tokens = max_tokens
        self.long_text = long_text
        self.dtype = dtype
        self.device = device
        self.cache = cache

    def fit(self, texts: Any, labels: Any = None) -> Self:
        """Open the backbones and list the blocks; nothing is learned."""
        as_texts(texts)
        sources, blocks = self._open()
        self.blocks_ = tuple(block.name for block in blocks)
        self.widths_ = tuple(_width(sources[block.backbone].backbone, block) for block in blocks)
        return self

    def transform(self, texts: Any) -> Float32[np.ndarray, "row feature"]:
        """Read texts into a (row, feature) matrix."""
        check_is_fitted(self, "blocks_")
        rows = as_texts(texts)
        sources, blocks = self._open()
        store = open_store(self.cache)
        unique = dict.fromkeys(rows)
        prepare(len(unique), sources, blocks, store, unique)
        if not rows:
            return np.empty((0, sum(self.widths_)), dtype=np.float32)
        window = read(rows, sources, blocks, store)
        warn_lost(window)
        return np.concatenate([window.blocks[name] for name in self.blocks_], axis=1)  # row feature

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """`<backbone>/<site>/<pooling>/<neuron>` for each column."""
        check_is_fitted(self, "blocks_")
        names = [f"{b}/{i}" for b, width in zip(self.blocks_, self.widths_, strict=True) for i in range(width)]
        return np.array(names, dtype=object)

    def _open(self) -> tuple[dict[int, Any], list[Block]]:
        names = backbone_names(self.backbones)
        check_bounds(self.max_tokens, len(names))
        sources = open_sources(
            names,
            max_tokens=self.max_tokens,
            long_text=self.long_text,
            dtype=self.dtype,
            device=self.device,
        )
        poolings = _several(self.pooling, "pooling", f"one or several of: {', '.join(POOLINGS)}")
        sites = _several(self.site, "site", "one or several, such as 'hidden.-1'")
        blocks = [b for i, s in sources.items() for one in sites for p in poolings for b in expand_blocks(i, s, one, p)]
        return sources, list(dict.fromkeys(blocks))


def _several(given: Any, name: str, wanted: str) -> tuple[str, ...]:
    """One name, or several."""
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else ()
    if not found or not all(isinstance(one, str) for one in found):
        raise ArgumentError(f"{name} is {given!r:.60}; give {wanted}.")
    return found


def _width(backbone: Any, block: Block) -> int:
    site = backbone.sentence.site if block.site.kind == "sentence" else block.site
    return int(backbone.width(site))
