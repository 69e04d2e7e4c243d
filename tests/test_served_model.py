"""A local model behind transformers' own server, asked through HTTP: the whole way, with nothing scripted.

Runs where the extra `transformers[serving]` is installed; sonde does not need it.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from test_local_model import TEMPLATE, writer

from sonde.baselines import Endpoint, IOPrompt, LocalModel
from sonde.errors import EndpointError

MISSING = [name for name in ("fastapi", "uvicorn", "openai", "accelerate") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"transformers[serving] is not installed: {', '.join(MISSING)} missing"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(base URL, folder of the model) of a running server."""
    folder = tmp_path_factory.mktemp("served") / "llama"
    shutil.copytree(writer("llama", TEMPLATE), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    script = Path(sys.executable).parent / "transformers"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub")}
    (folder.parent / "hub" / "hub").mkdir(parents=True)
    log = (folder.parent / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, str(script), *command], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 180
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (folder.parent / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def test_the_server_writes_what_the_model_writes(served: tuple[str, Path]) -> None:
    url, folder = served
    prompts = ["a cold wind came over the hills", "good", "why is the refund late"]
    settings = {"max_new_tokens": 6, "temperature": 0.0, "seeds": [0] * 3}
    over_http = Endpoint(url, str(folder), concurrency=1).generate(prompts, **settings)  # type: ignore[arg-type]
    here = LocalModel(str(folder), dtype="float32", device="cpu").generate(prompts, **settings)  # type: ignore[arg-type]
    assert [one.text for one in over_http] == [one.text for one in here]
    assert [one.prompt_tokens for one in over_http] == [one.prompt_tokens for one in here]


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
def test_a_classifier_over_http(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    (tmp_path / "io.txt").write_text("{task} {labels} {demonstrations} {text} :", encoding="utf-8")
    texts, labels = ["cold wind", "late refund", "cold hills", "late parcel"], ["cold", "late", "cold", "late"]
    classifier = IOPrompt(Endpoint(url, str(folder)), prompts=tmp_path, task="the", answers=tmp_path / "answers")
    classifier.fit(texts, labels)
    first = classifier.predict(texts).tolist()
    assert set(first) <= {"cold", "late", ""} and classifier.summary_["usage"]["inference"]["asked"] == 4
    assert classifier.predict(texts).tolist() == first and classifier.summary_["usage"]["inference"]["asked"] == 0


def test_a_model_that_is_not_there(served: tuple[str, Path]) -> None:
    with pytest.raises(EndpointError, match="refused a request of model 'no/such-model' with status"):
        Endpoint(served[0], "no/such-model", retries=0).generate(["x"], max_new_tokens=2, temperature=0.0, seeds=[0])
