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


FUZZER = Path(__file__).with_name("fuzzing.py")
RUNS = 1500


GUIDED = [
    ["csv", "jsonl", "label names", "template"],
    ["manifest, checksum renewed"],
    ["arrays, checksum renewed"],
    ["shard", "block.json", "store header", "answers"],
    ["config.json", "modules.json", "model.safetensors.index.json", "run.json"],
]


@pytest.mark.slow
@pytest.mark.parametrize("names", GUIDED)
def test_fuzzing_guided_by_coverage_finds_nothing(names: list[str], tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    for name in names:
        done = subprocess.run(
            [sys.executable, str(FUZZER), name, str(RUNS // len(names)), str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert "Done " in done.stderr, "the fuzzer did not run"
