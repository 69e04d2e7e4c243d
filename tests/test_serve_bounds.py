"""What a service does not take, over a real socket: each refusal has its status and a sentence, and nothing breaks."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from samples import make, saved, worded
from serving import Hold, Reply, answered, ask, classify, connected, everything, hold, running, until

from sonde.errors import ArgumentError
from sonde.serve import Settings, handles, models, named_folders
from sonde.serve import guard as guarding
from sonde.serve import protocol as clock
from sonde.serve import service as servicing
from sonde.serve.fields import ClassifyRequest
from sonde.serve.service import Service

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
TEXTS, LABELS = worded(90)
TOKEN = "a-token-of-sixteen-signs"


folder = pytest.fixture(scope="module")(saved("lexical"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running({"words": folder}, max_body_bytes=2**20, max_texts=100, body_seconds=120) as started:
        yield started


@pytest.fixture(autouse=True)
def _still_well(service: Service) -> Iterator[None]:
    """Whatever a test did, the next request is answered."""
    yield
    assert classify(service, "the cold wind")[0]["label"] == "weather"


def post(service: Service, body: Any, path: str = "/v1/classify", **headers: str) -> Reply:
    return ask(service, path, body, headers)


# -------------------------------------------------------------------- bad fields


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 422, "The body is missing: send a JSON object"),
        (b"{", 400, "The body is no JSON"),
        (b'{"text": "a"', 400, "The body is no JSON"),
        (b"\xff\xfe\x00", 400, "The body is no JSON"),
        (b"[" * 100_000, 400, "no JSON, or is nested too deeply"),
        (b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "no JSON, or is nested too deeply"),
        ([], 422, "The body must be a JSON object"),
        ("text", 422, "The body must be a JSON object"),
        (None, 422, "The body"),
        ({}, 422, "Give either 'text' or 'texts'"),
        ({"text": "a", "texts": ["a"]}, 422, "Give either 'text' or 'texts'"),
        ({"text": 3}, 422, "The field 'text' must be text."),
        ({"text": ["a"]}, 422, "The field 'text' must be text."),
        ({"texts": "a"}, 422, "The field 'texts' must be a list."),
        ({"texts": []}, 422, "The field 'texts' is empty"),
        ({"texts": ["a", None]}, 422, "The field 'texts[1]' must be text."),
        ({"texts": ["a", {"b": 1}]}, 422, "The field 'texts[1]' must be text."),
        ({"texts": ["a"] * 10_000}, 422, "The field 'texts' has 10,000 entries; one request may have 100."),
        ({"txet": "a"}, 422, "The field 'txet' is no field of this request; it may have: text, texts, model, alpha"),
        ({"text": "a", "alpha": 0}, 422, "The field 'alpha' is wrong: input should be greater than 0."),
        ({"text": "a", "alpha": "0.1"}, 422, "The field 'alpha' is wrong: input should be a valid number."),
        ({"text": "a", "alpha": True}, 422, "The field 'alpha' is wrong"),
        (b'{"text": "a", "alpha": NaN}', 422, "The field 'alpha' is wrong: input should be a finite number."),
        ({"text": "a", "abstain_below": 1.5}, 422, "The field 'abstain_below' is wrong"),
        ({"text": "a", "model": 1}, 422, "The field 'model' must be text."),
        ({"text": "a", "model": "wrods"}, 404, "There is no model 'wrods'; there are: words."),
        ({"text": "a", "model": "../words"}, 404, "There is no model '../words'"),
        ({"text": "a", "model": "/etc/passwd"}, 404, "There is no model '/etc/passwd'"),
        ({"text": "a", "model": "words\0"}, 404, "There is no model 'words\\x00'"),
        ({"text": "a", "model": "<b>" * 100}, 404, "There is no model '<b><b>"),
    ],
)  # fmt: skip
def test_bad_bodies_get_a_sentence(service: Service, body: Any, status: int, sentence: str) -> None:
    content = b"null" if body is None else body
    reply = post(service, content)
    assert (reply.status, sentence in reply.error) == (status, True), reply.body
    assert len(reply.error) < 400


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_kind_is_refused(service: Service, kind: str) -> None:
    """Pages of elsewhere can send these without asking the browser's leave; JSON they cannot."""
    reply = ask(service, "/v1/classify", b'{"text": "a"}', {"Content-Type": kind})
    assert reply.status == 422 and "Content-Type: application/json" in reply.error


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../pyproject.toml", "/static/..%2f..%2fservice.py", "/static/", "/static/__init__.py",
        "/v1/models/..%2Fwords", "/etc/passwd", "/%00", "/docs", "/redoc", "/v1/classify/",
    ],
)  # fmt: skip
def test_there_is_nothing_at_other_addresses(service: Service, path: str) -> None:
    reply = ask(service, path)
    assert reply.status == 404 and "There is nothing at this address" in reply.error


def test_other_methods_are_refused(service: Service) -> None:
    for method, path in (("GET", "/v1/classify"), ("DELETE", "/v1/models"), ("POST", "/healthz"), ("BREW", "/")):
        reply = ask(service, path, method=method)
        assert reply.status == 405 and "does not take this method" in reply.error


def test_texts_of_all_kinds_are_answered(service: Service) -> None:
    odd = [
        "",
        " ",
        "\0",
        "<script>alert(1)</script>",
        "\U0001f600" * 50,
        "e\u0301",
        "\u202ertl",
        "a" * 100_000,
        "\r\n\t",
    ]
    assert len(classify(service, *odd)) == len(odd)
    lone = b'{"text": "the cold wind \\ud800"}'  # read as U+FFFD, as the library does
    assert post(service, lone).json["results"][0]["label"] == "weather"
    assert post(service, lone, "/v1/explain").json["label"] == "weather"


def test_the_smallest_alpha_gives_every_label(service: Service) -> None:
    assert classify(service, "the cold wind", alpha=5e-324)[0]["label_set"] == ["post", "rail", "weather"]


def test_bodies_of_other_encodings_of_json_are_read(service: Service) -> None:
    body = json.dumps({"text": "the cold wind"})
    for encoding in ("utf-8", "utf-16", "utf-32"):
        assert post(service, body.encode(encoding)).json["results"][0]["label"] == "weather"


# ------------------------------------------------------------- size, time, cuts


def test_a_body_that_announces_too_much_is_refused_with_413(service: Service) -> None:
    reply = post(service, {"text": "a" * 10_000_000})
    assert reply.status == 413 and "The body is larger than 1,048,576 bytes" in reply.error
    assert reply.headers["connection"] == "close"


def test_a_body_that_grows_too_large_is_refused_while_it_comes(service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(200):
            yield b"a" * 65536

    connection = connected(service)
    connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    peak = 0
    for chunk in chunks():
        connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        peak = max(peak, service._server.config.app._bytes)
    connection.sendall(b"0\r\n\r\n")
    said = everything(connection)
    assert said.startswith(b"HTTP/1.1 413 ") and b"larger than 1,048,576 bytes" in said
    assert peak <= 2**20 + 65536, "it was kept"
    assert service._server.config.app._bytes == 0


def test_who_asks_before_sending_too_much_is_refused_before(service: Service) -> None:
    connection = connected(service)
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
    connection.sendall(head)
    assert everything(connection).startswith(b"HTTP/1.1 413 ")


def test_who_is_refused_before_a_large_body_is_not_listened_to(service: Service) -> None:
    for length, closes in ((100, False), (10**6, True)):
        with connected(service) as connection:
            head = f"POST /v1/classify HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode() + b"a" * 100)
            said = connection.recv(65536)
            assert said.startswith(b"HTTP/1.1 403 ") and (b"\r\nconnection: close\r\n" in said) == closes


def test_a_slow_body_gets_408(folder: Path) -> None:
    with running({"words": folder}, body_seconds=0.3) as service:
        connection = connected(service)
        started = time.monotonic()
        connection.sendall(b'POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"text"')
        said = everything(connection)
        assert said.startswith(b"HTTP/1.1 408 ") and b"longer than 0.3 s to arrive" in said
        assert 0.2 < time.monotonic() - started < 30


@pytest.mark.parametrize("sent", [b"", b"POST /v1/classify HT"])
def test_a_connection_that_never_asks_is_closed(service: Service, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(clock, "HEAD_SECONDS", 2.0)
    connection = connected(service)
    connection.sendall(sent)
    assert everything(connection) == b""


def test_a_connection_is_kept_between_requests_and_timed_while_a_head_comes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "HEAD_SECONDS", 2.0)
    connection = connected(service)
    for _ in range(2):
        assert answered(connection, "/healthz") == 200
        time.sleep(2.5)
    connection.sendall(b"GET /healthz HT")
    assert everything(connection) == b""


def test_who_is_refused_and_sends_on_drop_by_drop_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "HEAD_SECONDS", 0.5)
    with running({"words": folder}, token=TOKEN) as service:
        connection = connected(service)
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        until(lambda: _is_closed_after(connection, b"x"), 10)
        connection.close()
        until(lambda: not service._server.server_state.connections)


def _is_closed_after(connection: socket.socket, drop: bytes) -> bool:
    try:
        connection.sendall(drop)
        time.sleep(0.05)
        connection.settimeout(0.01)
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_who_does_not_take_the_answer_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "TAKEN_SECONDS", 0.5)
    with running({"words": folder}, max_texts=40_000, queue_texts=40_000) as service:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = service.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        body = json.dumps({"texts": ["cold"] * 40_000}).encode()
        head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: service._server.server_state.connections)
        until(lambda: not service._server.server_state.connections, 30)
        connection.close()


def test_too_many_connections_are_told_in_json_and_probes_are_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "MOST", 2)
    with running({"words": folder}) as service:
        idle = [connected(service) for _ in range(2)]
        until(lambda: len(service._server.server_state.connections) == 2)
        refused = post(service, {"text": "a"})
        assert refused.status == 503 and "Too many connections" in refused.error
        assert refused.headers["retry-after"] and refused.headers["connection"] == "close"
        assert [ask(service, path).status for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        for one in idle:
            one.close()
        until(lambda: post(service, {"text": "a"}).status == 200)


def test_a_crowd_of_silent_connections_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "MOST", 1)
    monkeypatch.setattr(servicing, "SPARE", 2)
    with running({"words": folder}) as service:
        silent = [connected(service) for _ in range(8)]
        closed = [one for one in silent[3:] if everything(one) == b""]
        assert len(closed) == 5 and len(service._server.server_state.connections) == 3
        for one in silent:
            one.close()
        until(lambda: not service._server.server_state.connections)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such bound")
def test_the_bound_of_files_is_raised_and_kept_to() -> None:
    code = (
        "import resource; from sonde.serve.handles import most_connections\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024)); print(most_connections())\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["768", "1024"]


@pytest.mark.parametrize("body", [b'{"texts":[' + b",".join([b"1"] * 400_000) + b"]}",
                                  b'{"text":"a",' + b",".join(b'"%x":1' % i for i in range(60_000)) + b"}"],
                         ids=["elements", "fields"])  # fmt: skip
def test_of_many_errors_one_is_made(body: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        ClassifyRequest.model_validate(json.loads(body))
    assert caught.value.error_count() == 1


def test_nonsense_instead_of_http_is_refused(service: Service) -> None:
    connection = connected(service)
    connection.sendall(b"\x16\x03\x01\x02\x00hello\r\n\r\n")
    assert everything(connection).startswith(b"HTTP/1.1 400 ")


def test_cut_connections_leave_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"words": folder}) as service:
        held = hold(service, monkeypatch)
        first = threading.Thread(target=ask, args=(service, "/v1/classify", {"text": "first"}))
        first.start()
        until(lambda: held.calls)
        body = b'{"text": "never read"}'
        head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        whole = head + str(len(body)).encode() + b"\r\n\r\n" + body
        for part in (whole, whole[:-5], whole[:40]):
            connection = connected(service)
            connection.sendall(part)
            if part == whole:
                until(lambda: service._worker.texts == 2)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not a farewell
            connection.close()
        until(lambda: service._server.config.app.in_flight == 1)
        held.gate.set()
        first.join()
        assert classify(service, "the cold wind")[0]["label"] == "weather"
        assert ["never read"] not in held.calls
        until(lambda: service._worker.texts == 0 and service._server.config.app._bytes == 0)  # after the answer
        assert 'status="499"' in ask(service, "/metrics").body.decode()


# ---------------------------------------------------------------------- overload


def together(service: Service, count: int, body: Any) -> tuple[list[threading.Thread], list[Reply]]:
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(post(service, body)), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, replies


def test_a_full_queue_says_when_to_come_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"words": folder}, max_texts=4, queue_texts=8) as service:
        held = hold(service, monkeypatch)
        threads, replies = together(service, 2, {"texts": ["the cold wind"] * 4})
        until(lambda: service._worker.texts == 8)
        refused = post(service, {"text": "one more"})
        assert refused.status == 503 and "Too much waits already" in refused.error
        assert int(refused.headers["retry-after"]) >= 1
        assert ask(service, "/healthz").status == 200
        assert "sonde_refused_requests_total 1.0" in ask(service, "/metrics").body.decode()
        held.gate.set()
        for thread in threads:
            thread.join()
        assert [reply.status for reply in replies] == [200, 200]
        assert post(service, {"text": "one more"}).status == 200


def test_too_many_requests_or_bodies_at_once_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"words": folder}) as service:
        held = hold(service, monkeypatch)
        threads, replies = together(service, 3, {"text": "the cold wind"})
        until(lambda: service._worker.texts == 3)
        monkeypatch.setattr(guarding, "MAX_REQUESTS", 3)
        refused = post(service, {"text": "a"})
        assert refused.status == 503 and "Too many requests" in refused.error and refused.headers["retry-after"]
        assert [ask(service, path).status for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        monkeypatch.setattr(guarding, "MAX_REQUESTS", 100)
        monkeypatch.setattr(guarding, "MAX_BODIES_BYTES", 1000)
        refused = post(service, {"text": "a" * 1000})
        assert refused.status == 503 and "Too much arrives at once" in refused.error and refused.headers["retry-after"]
        held.gate.set()
        for thread in threads:
            thread.join()
        assert [reply.status for reply in replies] == [200] * 3


def test_who_waits_too_long_gets_504_and_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"words": folder}, answer_seconds=1.5) as service:
        held = hold(service, monkeypatch)
        first, _ = together(service, 1, {"text": "first"})
        until(lambda: held.calls)
        late = post(service, {"text": "second"})
        assert late.status == 504 and "The answer took longer than 1.5 s" in late.error
        held.gate.set()
        first[0].join()
        until(lambda: service._worker.texts == 0)  # an idle worker takes the next one, however slow the first was
        assert post(service, {"text": "third"}).status == 200
        assert held.calls == [["first"], ["third"]]


# ------------------------------------------------------------------ who may ask


def test_a_token_protects_texts_models_and_metrics(folder: Path) -> None:
    with running({"words": folder}, token=TOKEN) as service:
        for path in ("/v1/classify", "/v1/explain", "/v1/models/words/reload"):
            refused = post(service, {"text": "a"}, path)
            assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer TOKEN" in refused.error
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            assert ask(service, path).status == 401
        for path in ("/", "/static/page.js", "/healthz", "/readyz", "/openapi.json"):
            assert ask(service, path).status == 200
        for wrong in (TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Bearer \xe9"):
            assert ask(service, "/v1/models", headers={"Authorization": wrong}).status == 401, wrong
        for right in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
            assert ask(service, "/v1/models", headers={"Authorization": right}).status == 200
        document = ask(service, "/openapi.json").json
        assert document["security"] == [{"token": []}]
        assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}


def test_tokens_are_compared_in_constant_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    seen = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or real(a, b))
    with running({"words": folder}, token=TOKEN) as service:
        assert ask(service, "/v1/models", headers={"Authorization": "Bearer guess"}).status == 401
    assert seen == [(b"guess", TOKEN.encode())]


def test_only_names_of_this_machine_are_answered_without_a_token(service: Service, folder: Path) -> None:
    """A name of elsewhere that was made to point here (DNS rebinding) reaches nothing."""
    for name in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        refused = ask(service, "/v1/models", headers={"Host": name})
        assert refused.status == 403 and "names of this machine alone" in refused.error
    for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"):
        assert ask(service, "/v1/models", headers={"Host": name}).status == 200
    with running({"words": folder}, token=TOKEN) as guarded:
        headers = {"Host": "proxy.example", "Authorization": f"Bearer {TOKEN}"}
        assert ask(guarded, "/v1/models", headers=headers).status == 200


def test_every_answer_has_headers_that_bind_browsers(service: Service) -> None:
    for reply in (ask(service, "/"), ask(service, "/nowhere"), ask(service, "/v1/models", headers={"Host": "x"})):
        assert reply.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in reply.headers if name.startswith("access-control")]


# ---------------------------------------------------------------- reload, stop


def test_models_reload_without_dropping_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "words"
    make("lexical").fit(TEXTS, LABELS).save(folder)
    with running({"words": folder}, token=TOKEN) as service:
        held = hold(service, monkeypatch)
        authorised = {"Authorization": f"Bearer {TOKEN}"}
        replies: list[Reply] = []
        body = {"text": "the cold wind"}
        waits = threading.Thread(target=lambda: replies.append(ask(service, "/v1/classify", body, authorised)))
        waits.start()
        until(lambda: held.calls)
        make("lexical").fit(TEXTS, [label.upper() for label in LABELS]).save(folder)
        reloaded = ask(service, "/v1/models/words/reload", b"", authorised)
        assert reloaded.status == 200 and reloaded.json["labels"] == ["POST", "RAIL", "WEATHER"]
        held.gate.set()
        waits.join()
        assert replies[0].json["results"][0]["label"] == "weather", "the model that the request came to"
        assert ask(service, "/v1/classify", body, authorised).json["results"][0]["label"] == "WEATHER"
        unknown = ask(service, "/v1/models/other/reload", b"", authorised)
        assert unknown.status == 404 and "there are: words" in unknown.error


def test_a_model_whose_reload_fails_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    make("lexical").fit(TEXTS, LABELS).save(folder)
    with running({"words": folder}, token=TOKEN) as service:
        authorised = {"Authorization": f"Bearer {TOKEN}"}
        (folder / "sonde.json").write_text("{}")
        failed = ask(service, "/v1/models/words/reload", b"", authorised)
        assert failed.status == 409 and failed.error.startswith("The model 'words' stays as it was: ")
        answer = ask(service, "/v1/classify", {"text": "the cold wind"}, authorised)
        assert answer.json["results"][0]["label"] == "weather"
        page = ask(service, "/metrics", headers=authorised).body.decode()
        assert 'sonde_reloads_total{model="words",outcome="failed"} 1.0' in page


def test_a_reload_for_which_memory_does_not_suffice_is_told_and_the_next_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running({"words": folder, "more": folder}, token=TOKEN) as service:
        authorised, tried = {"Authorization": f"Bearer {TOKEN}"}, list[str]()

        def crowded(name: str, *_: Any) -> Any:
            tried.append(name)
            raise MemoryError("no room\nat all")

        monkeypatch.setattr(models, "_open", crowded)
        failed = ask(service, "/v1/models/words/reload", b"", authorised)
        assert failed.status == 409 and failed.error == "The model 'words' stays as it was: MemoryError: no room"
        told: list[tuple[str, str]] = []
        service.models.reload_all(lambda name, error: told.append((name, type(error).__name__)))
        assert told == [("words", "MemoryError"), ("more", "MemoryError")] and tried == ["words", "words", "more"]
        assert ask(service, "/v1/classify", {"text": "the cold wind"}, authorised).status == 200


def test_reloads_over_http_need_a_token(service: Service) -> None:
    refused = post(service, b"", "/v1/models/words/reload")
    assert refused.status == 403 and "only where a token is asked for; send SIGHUP instead" in refused.error


def test_a_stop_answers_what_was_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({"words": folder}) as service:
        held: Hold = hold(service, monkeypatch)
        threads, replies = together(service, 12, {"texts": ["the cold wind", "my parcel"]})
        until(lambda: service._worker.texts == 24)
        idle = connected(service)
        assert answered(idle, "/readyz") == 200
        service.stop()
        assert everything(idle) == b"", "an idle connection is closed"
        with pytest.raises(ConnectionError):
            ask(service, "/healthz")
        held.gate.set()
        for thread in threads:
            thread.join()
    assert [reply.status for reply in replies] == [200] * 12
    assert {tuple(one["label"] for one in reply.json["results"]) for reply in replies} == {("weather", "post")}


def test_who_is_given_up_by_a_stop_is_told_and_no_reload_holds_it_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, opening = threading.Event(), threading.Event()
    with running({"words": folder}, stop_seconds=1, token=TOKEN) as service:
        held: Hold = hold(service, monkeypatch)
        monkeypatch.setattr(models, "_open", lambda *_: opening.set() or gate.wait(60))
        authorised, replies = {"Authorization": f"Bearer {TOKEN}"}, list[Reply]()
        threads = [
            threading.Thread(target=lambda path=path, body=body: replies.append(ask(service, path, body, authorised)))
            for path, body in (("/v1/classify", {"text": "a"}), ("/v1/models/words/reload", b""))
        ]
        for thread in threads:
            thread.start()
        until(lambda: held.calls and opening.is_set())
        began = time.monotonic()
        service.stop()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 15
        held.gate.set()
    gate.set()
    assert [(reply.status, reply.error) for reply in replies] == [(503, "The service is stopping.")] * 2


# --------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"port": 70000}, r"The port \(--port\) is 70000; it must lie between 0 and 65535"),
        ({"token": "short"}, "must have at least 16 ASCII characters"),
        ({"token": "with a blank in its middle"}, "and no blanks"),
        ({"max_texts": 0}, "--max-texts is 0; it must be at least 1"),
        ({"queue_texts": 10}, "--queue-texts is 10, less than the 1024 texts"),
        ({"queue_characters": 10}, "--queue-characters is 10, less than the 4194304 bytes"),
        ({"body_seconds": 0}, "--body-seconds is 0; it must be a number of seconds above 0"),
        ({"answer_seconds": float("nan")}, "--answer-seconds is nan"),
        ({"stop_seconds": float("inf")}, "--stop-seconds is inf; it must be a number of seconds"),
        ({"max_body_bytes": 2**27, "queue_characters": 2**27}, "--max-body-bytes is 134,217,728; it must be at most"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        Settings(**settings)


def test_models_have_plain_and_different_names(folder: Path, tmp_path: Path) -> None:
    assert named_folders([str(folder), f"b={folder}"]) == {"words": folder, "b": folder}
    with pytest.raises(ArgumentError, match="Two models are called 'words'"):
        named_folders([str(folder), str(folder)])
    for bad in ("a/b", "", "-a", "a" * 65):
        with pytest.raises(ArgumentError, match="names have up to 64 letters"):
            named_folders([f"{bad}={folder}"])
    (tmp_path / "x=y").mkdir()
    with pytest.raises(ArgumentError, match=r"cannot be called 'x=y'.* Give it one: NAME=FOLDER"):
        named_folders([str(tmp_path / "x=y")])


def test_a_port_that_is_taken_is_said_before_models_load(service: Service, tmp_path: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    with (
        pytest.raises(ArgumentError, match=rf"cannot listen at 127.0.0.1, port {port}: .*in use.* --port 0"),
        running({"none": tmp_path / "absent"}, port=port),
    ):
        pass
    with (
        pytest.raises(ArgumentError, match=r"cannot listen at no-such-host\.invalid"),
        running({}, host="no-such-host.invalid"),
    ):
        pass
    with pytest.raises(ArgumentError, match="No model was given"), running({}):
        pass
