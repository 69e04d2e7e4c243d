"""`sonde serve` as a process: what it prints, which signals it obeys, how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import serving  # noqa: F401  skips where the extra is not installed
from samples import Run, command, make, saved, worded

from sonde.errors import ArgumentError
from sonde.serve import Settings

TEXTS, LABELS = worded(90)
run = pytest.fixture(command)


folder = pytest.fixture(scope="module")(saved("lexical"))


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """`sonde serve --port 0 --json` as a process, and the object that it prints when it listens."""
    started = subprocess.Popen(
        [sys.executable, "-m", "sonde.cli", "serve", *map(str, arguments), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line, started.stderr.read() if started.stderr else ""
        yield started, json.loads(line)
    finally:
        started.kill()
        started.communicate()


def post(url: str, body: Any, results: list[Any]) -> None:
    request = urllib.request.Request(
        f"{url}/v1/classify", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        results.append(json.load(reply))


@pytest.mark.parametrize("given", [None, "active"])
def test_threads_of_torch_do_not_spin_unless_asked(
    given: str | None, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise ArgumentError(f"policy {os.environ['OMP_WAIT_POLICY']}")

    monkeypatch.setattr("sonde.serve.open_service", stop)
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")  # what the command sets is undone after the test
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert f"policy {given or 'passive'}" in run("serve", folder).err


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_exits_with_0(folder: Path) -> None:
    patient = ("--answer-seconds", 600, "--stop-seconds", 600, "--body-seconds", 600)
    with process(folder, *patient) as (service, said):
        assert said["models"] == ["words"] and said["warnings"] == {}
        results: list[Any] = []
        body = {"texts": ["the cold wind " * 250] * 1000}  # a second or so of work
        threads = [threading.Thread(target=post, args=(said["url"], body, results)) for _ in range(3)]
        for thread in threads:
            thread.start()
        _until_busy(said["url"])
        service.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        _, log = service.communicate(timeout=600)
        assert service.returncode == 0
    assert [len(one["results"]) for one in results] == [1000] * 3
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines if line["logger"] == "sonde.serve.service"] == ["listening", "stopped"]
    assert sum(line["event"] == "request" and line.get("texts") == 1000 for line in lines) == 3
    assert "wind" not in log


def _until_busy(url: str) -> None:
    """Until all three requests wait or are read."""
    for _ in range(2000):
        with urllib.request.urlopen(f"{url}/metrics", timeout=600) as reply:
            if b"\nsonde_queue_texts 3000.0\n" in reply.read():
                return
        time.sleep(0.1)
    raise AssertionError("the requests never waited together")


@pytest.mark.slow
def test_sighup_reloads_and_a_damaged_model_stays(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    make("lexical").fit(TEXTS, LABELS).save(folder)
    with process(folder) as (service, said):
        make("lexical").fit(TEXTS, [label.upper() for label in LABELS]).save(folder)
        service.send_signal(signal.SIGHUP)
        assert _next_reload(service)["outcome"] == "done"
        results: list[Any] = []
        post(said["url"], {"text": "the cold wind"}, results)
        (folder / "arrays.safetensors").write_bytes(b"not any more")
        service.send_signal(signal.SIGHUP)
        failed = _next_reload(service)
        assert failed["outcome"] == "failed" and failed["level"] == "error" and str(folder) in failed["error"]
        post(said["url"], {"text": "the cold wind"}, results)
        assert [one["results"][0]["label"] for one in results] == ["WEATHER", "WEATHER"]
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=600)
        assert service.returncode == 0


def _next_reload(service: Any) -> dict[str, Any]:
    for line in service.stderr:
        content: dict[str, Any] = json.loads(line)
        if content["event"] == "reload":
            return content
    raise AssertionError("the log ended")


@pytest.mark.slow
def test_a_service_that_others_can_reach_without_a_token_warns(folder: Path) -> None:
    with process(folder, "--host", "0.0.0.0") as (service, said):
        assert said["warnings"] == {"open_service": 1}
        service.send_signal(signal.SIGTERM)
        _, log = service.communicate(timeout=600)
    assert log.startswith("warning: Other machines can reach this service at 0.0.0.0:")
    assert "Set SONDE_TOKEN, or listen at 127.0.0.1." in log
    with process(folder, "--host", "0.0.0.0", SONDE_TOKEN="a-token-of-sixteen-signs") as (_, said):
        assert said["warnings"] == {}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(said["url"].replace("0.0.0.0", "127.0.0.1"), {"text": "a"}, [])


def test_mistakes_end_with_a_sentence_and_exit_code_2(folder: Path, run: Run, tmp_path: Path) -> None:
    absent = run("serve", tmp_path / "absent")
    assert absent.code == 2 and "absent" in absent.err and absent.out == ""
    assert run("serve", folder, "--token", "short").code == 2
    twice = run("serve", folder, folder)
    assert twice.code == 2 and "Two models are called 'words'" in twice.err
    for done in (absent, twice):
        assert done.err.startswith("error: ") and done.err.count("\n") <= 3


def test_an_empty_token_is_refused_and_an_empty_variable_is_none(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object, settings: Settings, **__: object) -> None:
        raise ArgumentError(f"token {settings.token}")

    monkeypatch.setattr("sonde.serve.open_service", stop)
    monkeypatch.setenv("SONDE_TOKEN", "")
    assert "token None" in run("serve", folder).err
    done = run("serve", folder, "--token", "")
    assert done.code == 2 and "must have at least 16 ASCII characters" in done.err


def test_without_the_extra_a_sentence_says_what_to_install(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = run("serve", folder)
    assert done.code == 1
    assert done.err == "error: fastapi is not installed. It comes with the extra 'serve': pip install 'sonde[serve]'\n"
