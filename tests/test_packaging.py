"""The package as users get it: complete, light to import, one version, licence inside."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import sonde

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCE = CHECKOUT / "src" / "sonde"
HEAVY = ("torch", "transformers", "sklearn", "scipy", "pyarrow", "pandas", "sentence_transformers", "matplotlib")


def run(*command: str, cwd: Path = CHECKOUT) -> str:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(CHECKOUT))
    return folder


KINDS = (".py", ".typed", ".txt")
"""Code, its mark of types, and prompts."""


def modules() -> set[str]:
    return {str(path.relative_to(SOURCE.parent)) for path in SOURCE.rglob("*") if path.suffix in KINDS}


@pytest.mark.slow
def test_wheel_holds_every_module_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    info = f"sonde-{sonde.__version__}.dist-info"
    assert {name for name in held if name.startswith("sonde/") and name.endswith(KINDS)} == modules()
    assert "sonde/py.typed" in held
    assert {f"{info}/METADATA", f"{info}/entry_points.txt", f"{info}/licenses/LICENSE"} <= held
    assert {name.split("/")[0] for name in held} == {"sonde", info}


@pytest.mark.slow
def test_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        info = f"sonde-{sonde.__version__}.dist-info"
        metadata = file.read(f"{info}/METADATA").decode()
        assert file.read(f"{info}/entry_points.txt").decode().split() == [
            "[console_scripts]",
            "sonde",
            "=",
            "sonde.cli:main",
        ]
    assert f"\nVersion: {sonde.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


@pytest.mark.slow
def test_sdist_can_be_tested_by_whoever_unpacks_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        held = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    wanted = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "tests/conftest.py",
    }
    assert wanted <= held
    assert {f"src/{name}" for name in modules()} <= held
    assert not [name for name in held if "__pycache__" in name or name.startswith(".venv")]


def test_exported_names_are_sorted_and_importable() -> None:
    assert list(sonde.__all__) == sorted(sonde.__all__)
    for name in sonde.__all__:
        assert getattr(sonde, name) is not None
    assert dir(sonde) == sorted(sonde.__all__)
    with pytest.raises(AttributeError, match="module 'sonde' has no attribute 'nonsense'"):
        sonde.nonsense  # noqa: B018


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", sonde.__version__)
    files = [*SOURCE.rglob("*.py"), CHECKOUT / "pyproject.toml"]
    pattern = re.compile(rf"""version\w*\s*=\s*["']{re.escape(sonde.__version__)}["']""")
    assert [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))] == ["__init__.py"]


def test_importing_sonde_is_light() -> None:
    loaded = run("-c", f"import sonde, sonde.tables, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"
    # The test of the test: what it looks for does show up once it is imported.
    assert "sklearn" in run("-c", f"import sklearn, sys; print([name for name in {HEAVY} if name in sys.modules])")


def test_shapes_are_checked_under_pytest() -> None:
    """The import hook of conftest.py is in place; without it the annotations would be decoration."""
    from sonde.learn.calibration import softmax

    with pytest.raises(TypeError, match=r"Float\[.*row class"):
        softmax(np.zeros(3, dtype=np.float32))


def test_every_module_says_what_it_is() -> None:
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree) or not tree.body, f"{path.name} has no docstring"


def test_pins_cover_every_requirement() -> None:
    """A requirement without a pin would let `make demo` install something that no test has seen."""
    tomllib = importlib.import_module("tomllib")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    assert {_name(one) for one in wanted} <= pinned
    assert all(line.startswith("#") or "==" in line for line in lines)
    assert "torch==2.13.0" in lines


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_makefile_lists_its_targets() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"demo", "test", "test-fast", "lint", "types", "imports", "format", "bench"} <= set(listed)
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)
