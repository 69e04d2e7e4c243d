"""Nothing of a text leaves the machine or is written where nobody asked for it: watched from inside, in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samples import worded
from tiny import build

from sonde.tables import write_table

SECRET = "xylophonequokka"
"""In every text of these tests, and nowhere else."""

SCRIPT = """
import json, logging, runpy, sys, threading, urllib.error, urllib.request, warnings
from pathlib import Path

commands, secret = json.loads(sys.argv[1]), sys.argv[2]
touched = []
REACHING = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
            "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "webbrowser.open")


def watch(event, arguments):
    if event in REACHING:
        touched.append([event, str([one for one in arguments if isinstance(one, (str, bytes, int, tuple, list))])])


sys.addaudithook(watch)
logging.basicConfig(level=logging.DEBUG, filename="everything.log", force=True)
logging.captureWarnings(True)
warnings.simplefilter("always")


def serve(folder):
    from sonde.serve import Settings, open_service
    from sonde.serve.logs import to_stderr

    to_stderr(logging.DEBUG)
    service = open_service({"m": Path(folder)}, Settings(port=0))
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    while not service.started:
        pass
    bodies = [("classify", {"text": secret}), ("explain", {"text": secret}), ("classify", {"texts": [secret, 3]}),
              ("classify", {secret: "a"}), ("classify", {"text": "a", "model": secret})]
    for path, body in bodies:
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{service.url}/v1/{path}", json.dumps(body).encode(), kind)
        try:
            urllib.request.urlopen(request).read()
        except urllib.error.HTTPError as error:
            error.read()
    assert secret not in urllib.request.urlopen(service.url + "/metrics").read().decode()
    service.stop()
    thread.join(20)
    touched[:] = [one for one in touched if "127.0.0.1" not in one[1]]  # the service and our own client of it


for command in commands:
    if command[0] == "serve":
        serve(command[1])
        continue
    sys.argv = ["sonde", *command]
    try:
        runpy.run_module("sonde", run_name="__main__")
    except SystemExit as left:
        assert not left.code, left.code
print("touched:", json.dumps(touched))
"""


def watched(place: Path, *commands: list[str], path: list[str] = sys.path) -> tuple[list[Any], str]:
    """(what was reached for, what was said) by commands in one process; the hub is not told to be offline."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"OMP_NUM_THREADS": "1", "SONDE_CACHE": str(place / "cache"), "HF_HOME": str(place / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands), SECRET],
        env=environment | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=200,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said, _, touched = done.stdout.rpartition("touched:")
    return json.loads(touched), said + done.stderr


def holding(place: Path) -> set[str]:
    """Files below a folder that hold the secret, in any encoding that one would search for."""
    needles = [SECRET.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-32-le")]
    files = [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)) for path in files if any(needle in path.read_bytes() for needle in needles)}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "lexical"])
def test_no_text_leaves_the_machine_or_stays_behind(tmp_path: Path, recipe: str) -> None:
    texts, labels = worded(90)
    write_table(tmp_path / "in.csv", {"text": [f"{text} {SECRET}" for text in texts], "label": labels})
    kept = ["--cache", "store", "--dtype", "float32"]
    backbone = ["--backbone", str(build("bert"))] if recipe == "linear" else []
    touched, said = watched(
        tmp_path,
        ["fit", "in.csv", "--out", "m", "--recipe", recipe, *backbone, *kept],
        ["predict", "m", "in.csv", "--out", "out.csv", *kept],
        ["evaluate", "m", "in.csv", *kept],
        ["serve", "m"],
    )
    assert touched == [], "something was reached for"
    assert SECRET not in said and '"event": "request"' in said
    model = {"m/arrays.safetensors"} if recipe == "lexical" else set()  # n-grams of texts are what lexical is
    assert holding(tmp_path) == {"in.csv", "out.csv", *model}
    assert (tmp_path / "everything.log").is_file() and (tmp_path / "m" / "sonde.json").is_file()
    assert (tmp_path / "store" / "sonde-store.json").is_file() == (recipe == "linear")


def test_the_watch_sees_what_it_watches(tmp_path: Path) -> None:
    """A test that could not fail would prove nothing."""
    (tmp_path / "sonde.py").write_text(
        "import logging, socket\n"
        f"logging.getLogger('x').debug('{SECRET}')\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:\n"
        f"    one.sendto(b'{SECRET}', ('127.0.0.1', 9))\n"
    )
    touched, _ = watched(tmp_path, ["fit"], path=[str(tmp_path)])
    assert [event for event, _ in touched] == ["socket.sendto"] and "127.0.0.1" in touched[0][1]
    assert "everything.log" in holding(tmp_path)
