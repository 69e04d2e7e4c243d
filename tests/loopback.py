"""A real HTTP server on loopback that speaks the protocol of OpenAI-compatible endpoints and answers by a script.

Reply      one scripted answer
Loopback   the server: `with Loopback(script) as server:`; remembers what it was asked
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Reply:
    """What the server does with one request."""

    text: str | None = "yes"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    """Sent as it is, instead of a completion or an error."""
    seconds: float = 0.0
    """Pause before the answer."""
    cut: bool = False
    """Whether the connection breaks in the middle of the answer."""
    usage: bool = True
    finish: str = "stop"
    logprobs: list[tuple[str, float]] | None = None


Script = Callable[[str, int], Reply]
"""Prompt and number of the request, from 0 -> what to do."""


class Loopback:
    """The server.

    Attributes
    ----------
    requests : list of dict
        Bodies, in the order in which they came, with `path` and `authorization`.
    answered : list of str
        Prompts that were answered with status 200 and whole: what a real endpoint would be paid for.
    """

    def __init__(self, script: Script = lambda prompt, number: Reply(), models: tuple[str, ...] = ("toy",)) -> None:
        self.script, self.models = script, models
        self.key: str | None = None
        self.requests: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                    return self._send(401, json.dumps({"error": {"message": "wrong key"}}), {})
                self._send(200, json.dumps({"data": [{"id": name} for name in server.models]}), {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
                with server._lock:
                    number = len(server.requests)
                    server.requests.append(
                        {**body, "path": self.path, "authorization": self.headers.get("Authorization")}
                    )
                reply = server.script(prompt, number)
                with server._counted():
                    time.sleep(reply.seconds)
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._answer(reply, prompt, "messages" in body)

            def _answer(self, reply: Reply, prompt: str, chat: bool) -> None:
                if reply.body is not None:
                    content = reply.body
                elif reply.status != 200:
                    content = json.dumps({"error": {"message": reply.text}})
                else:
                    content = json.dumps(completion(reply, prompt, chat))
                if reply.cut:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content.encode()[: len(content) // 2])
                    self.close_connection = True
                    return
                if reply.status == 200:  # counted before the last byte leaves: who is paid knows it first
                    with server._lock:
                        server.answered.append(prompt)
                self._send(reply.status, content, reply.headers)

            def _send(self, status: int, content: str, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content.encode())

        return Handler


def completion(reply: Reply, prompt: str, chat: bool) -> dict[str, Any]:
    """The body of an answer; a word is a token."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish}
    choice |= {"message": {"role": "assistant", "content": reply.text}} if chat else {"text": reply.text}
    if reply.logprobs is not None:
        choice["logprobs"] = {"content": [{"token": token, "logprob": value} for token, value in reply.logprobs]}
    body: dict[str, Any] = {"object": "chat.completion", "model": "toy", "choices": [choice]}
    if reply.usage:
        counted = (len(prompt.split()), len((reply.text or "").split()))
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), counted, strict=True))
    return body
