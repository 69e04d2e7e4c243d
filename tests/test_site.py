"""The documentation as a site: built with strict links, whole, and without a request to anybody else's server."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import CHECKOUT

pytest.importorskip("mkdocs", reason="mkdocs is not installed")
pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

pytestmark = pytest.mark.slow
PAGES = sorted(path.relative_to(CHECKOUT / "docs") for path in (CHECKOUT / "docs").rglob("*.md"))


def build(checkout: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(CHECKOUT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    navigation = home[home.index("<nav") : home.rindex("</nav>")]
    for page in PAGES:
        assert (site / page).with_suffix(".html").is_file(), page
        assert page.name == "index.md" or f'href="{page.with_suffix(".html")}"' in navigation, f"{page} is in no menu"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//[^"]+"', text)
        fetched += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|preload)"[^>]+href="(?:https?:)?//[^"]+"', text)
        assert not fetched, (path, fetched)


def test_the_reference_holds_parameters_and_errors(site: Path) -> None:
    reference = (site / "api.html").read_text(encoding="utf-8")
    assert "exit_loss" in reference and "predict_or_abstain" in reference and "RecipeError" in reference


def test_a_broken_link_fails(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "docs", checkout / "docs")
    shutil.copytree(CHECKOUT / "src", checkout / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "SECURITY.md"):
        shutil.copy(CHECKOUT / name, checkout)
    page = checkout / "docs" / "tutorial.md"
    page.write_text(page.read_text(encoding="utf-8").replace("(recipes.md)", "(recipes.md#nowhere)").replace(
        "(reasons.md)", "(reason.md)"), encoding="utf-8")  # fmt: skip
    done = build(checkout, tmp_path / "site")
    assert done.returncode != 0 and "reason.md" in done.stdout + done.stderr
