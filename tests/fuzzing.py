"""Fuzzing of one format, guided by coverage of sonde's own code: python fuzzing.py NAME RUNS FOLDER.

A crash is printed with its bytes, which then become a case of tests/test_fuzz.py.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sonde.tables", "sonde.saving", "sonde.loading", "sonde.read", "sonde.learn",
                                         "sonde.baselines.answers", "sonde.baselines.templates", "sonde.cli.files",
                                         "sonde.baselines.resuming", "sonde.card"]):  # fmt: skip
    from readers import READERS


def main() -> None:
    """Run libFuzzer from the sound file on; its exit status is that of the process."""
    name, runs, place = sys.argv[1], int(sys.argv[2]), Path(tempfile.mkdtemp(dir=sys.argv[3]))
    (place / "corpus").mkdir()
    (place / "work").mkdir()
    reader = READERS[name]
    (place / "corpus" / "sound").write_bytes(reader.sound(place / "work"))

    def once(content: bytes) -> None:
        reader.survives(place / "work", content)

    options = [f"-runs={runs}", "-seed=1", "-max_len=20000", "-timeout=20", "-rss_limit_mb=4096"]
    artifacts = f"-artifact_prefix={place}/"
    atheris.Setup([sys.argv[0], *options, artifacts, str(place / "corpus")], once)
    atheris.Fuzz()


main()
