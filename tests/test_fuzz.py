"""Damaged and forged files of every format: read, or refused with a sentence; never another error, never for long."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from readers import READERS

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
EXAMPLES = 60
JSON_READERS = [
    *("manifest, checksum renewed", "block.json", "store header", "run.json", "label names", "config.json"),
    *("modules.json", "1_Pooling/config.json", "model.safetensors.index.json"),
]
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=READERS)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path, bytes]]:
    """(name of the format, folder with sound files, the bytes that are changed)."""
    with tempfile.TemporaryDirectory() as folder:
        yield request.param, Path(folder), READERS[request.param].sound(Path(folder))


@st.composite
def damaged(draw: Any, sound: bytes) -> bytes:
    """Sound bytes with some flipped, cut out, doubled or replaced, or cut off."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(0, 40))
        way = draw(st.sampled_from(["flip", "drop", "double", "replace", "end"]))
        if way == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif way == "drop":
            del content[at : at + length]
        elif way == "double":
            content[at:at] = content[at : at + length]
        elif way == "replace":
            content[at : at + length] = draw(st.binary(max_size=40))
        elif way == "end":
            del content[at:]
    return bytes(content)


def test_sound_files_are_read(case: tuple[str, Path, bytes]) -> None:
    name, folder, sound = case
    assert READERS[name].survives(folder, sound) == ""


def test_damaged_files_are_read_or_refused_with_a_sentence(case: tuple[str, Path, bytes]) -> None:
    name, folder, sound = case

    @bounded
    @given(st.one_of(damaged(sound), st.binary(max_size=200)))
    def check(content: bytes) -> None:
        READERS[name].survives(folder, content)

    check()


ODD = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**30,
    -(10**18),
    0.5,
    1e308,
    "",
    "\0",
    "../../etc/passwd",
    "\x1b[2J",
    "a" * 5000,
]
ODD += [[], {}, [[]], [None], {"": None}, [10**12] * 3, ["x"] * 1000]


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON."""
    yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content[:5]):
            yield from places(value, (*path, key))


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """JSON with another value at a place."""
    if not path:
        return value
    content = dict(content) if isinstance(content, dict) else list(content)
    content[path[0]] = put(content[path[0]], path[1:], value)
    return content


@pytest.mark.parametrize("name", JSON_READERS)
def test_forged_json_is_read_or_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    """Each entry in turn is replaced by something that no program of ours writes."""
    content = json.loads(READERS[name].sound(tmp_path))
    where = list(places(content))

    @bounded
    @given(st.sampled_from(where), st.sampled_from(ODD), st.sampled_from(where), st.sampled_from(ODD))
    def check(one: tuple[Any, ...], value: Any, other: tuple[Any, ...], second: Any) -> None:
        forged = put(content, one, value)
        if other[: len(one)] != one and one[: len(other)] != other:
            forged = put(forged, other, second)
        READERS[name].survives(tmp_path, json.dumps(forged).encode())

    check()


@pytest.mark.parametrize("name", JSON_READERS)
@pytest.mark.parametrize("shape", [b"[", b'{"a":', b'{"a":['])
def test_json_without_end_is_refused(name: str, shape: bytes, tmp_path: Path) -> None:
    READERS[name].sound(tmp_path)
    READERS[name].survives(tmp_path, shape * 100_000)


FOUND = [
    ("answers", b'{"sonde_answers": 1}\n{"kmy": "two", "text": "land", "tokens": [3, 1]}\n'),
    ("answers", b'{"sonde_answers": "1"}\n{"key": ["two"], "text": "land", "tokens": [3, 1e999]}\n'),
    ("answers", b'{"sonde_answers": 1}\n' + b"[" * 100_000),
    ("store header", b'{"protocol": 1e999}'),
    ("block.json", b"[" * 100_000),
    ("run.json", b'{"seed":' * 100_000),
    ("modules.json", b'[{"type": "x.Pooling", "path": "' + b"a" * 5000 + b'"}]'),
    ("1_Pooling/config.json", b'{"pooling_mode": 3}'),
]
"""What fuzzing has found, and was mended."""


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_what_fuzzing_found_stays_mended(name: str, content: bytes, tmp_path: Path) -> None:
    READERS[name].sound(tmp_path)
    READERS[name].survives(tmp_path, content)


def test_a_parquet_column_whose_name_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    sound = READERS["parquet"].sound(tmp_path)
    assert b"text" in sound
    said = READERS["parquet"].survives(tmp_path, sound.replace(b"text", b"t\xb6xt"))
    assert "is not a readable parquet file" in said


FUZZER = Path(__file__).with_name("fuzzing.py")


GUIDED = {
    "models": (["manifest, checksum renewed", "arrays, checksum renewed"], 400),
    "others": ([name for name in READERS if "manifest" not in name and "arrays" not in name], 3000),
}
"""Formats that are fuzzed in one process, and how many inputs; some hundred a second, models a tenth of that."""


@pytest.mark.slow
@pytest.mark.parametrize("group", GUIDED)
def test_fuzzing_guided_by_coverage_finds_nothing(group: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    names, runs = GUIDED[group]
    done = subprocess.run(
        [sys.executable, str(FUZZER), ";".join(names), str(runs), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert f"Done {runs} runs" in done.stderr, "the fuzzer did not run"
