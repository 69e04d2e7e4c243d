"""Fuzzing of some formats, guided by coverage of sonde's own code: python fuzzing.py NAME[;NAME...] RUNS FOLDER.

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
    names, runs, place = sys.argv[1].split(";"), int(sys.argv[2]), Path(tempfile.mkdtemp(dir=sys.argv[3]))
    (place / "corpus").mkdir()
    for number, name in enumerate(names):  # the first byte says of which format the others are
        (place / str(number)).mkdir()
        sound = READERS[name].sound(place / str(number))
        (place / "corpus" / str(number)).write_bytes(bytes([number]) + sound)

    def once(content: bytes) -> None:
        number = content[0] % len(names) if content else 0
        READERS[names[number]].survives(place / str(number), content[1:])

    options = [f"-runs={runs}", "-seed=1", "-max_len=20000", "-timeout=20", "-rss_limit_mb=4096"]
    artifacts = f"-artifact_prefix={place}/"
    atheris.Setup([sys.argv[0], *options, artifacts, str(place / "corpus")], once)
    atheris.Fuzz()


main()
