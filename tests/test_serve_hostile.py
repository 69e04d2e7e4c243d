"""Requests from strangers that a schema does not think of: sizes, paths and markup, on a service as it comes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import saved
from serving import ask, classify, running

from sonde.serve.service import Service

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
TOKEN = "a-token-of-sixteen-signs"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"


folder = pytest.fixture(scope="module")(saved("lexical"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """With the limits that nobody has changed."""
    with running({"words": folder}, token=TOKEN) as started:
        yield started


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/explain"])
def test_ten_megabytes_and_ten_thousand_texts_are_refused_by_default(service: Service, path: str) -> None:
    reply = ask(service, path, {"text": "a" * 10_000_000}, AUTHORISED)
    assert reply.status == 413 and "larger than 4,194,304 bytes" in reply.error
    reply = ask(service, path, {"texts": ["a"] * 10_000}, AUTHORISED)
    assert reply.status == 422, reply.body


@pytest.mark.slow
def test_ten_megabytes_and_ten_thousand_texts_are_answered_where_they_are_allowed(folder: Path) -> None:
    limits = {"max_body_bytes": 12_000_000, "queue_characters": 12_000_000, "max_texts": 10_000, "queue_texts": 10_000}
    limits |= {"answer_seconds": 300, "body_seconds": 120}
    with running({"words": folder}, **limits) as service:
        assert classify(service, "the cold wind " * 700_000)[0]["label"] == "weather"
        assert len(classify(service, *["the cold wind"] * 10_000)) == 10_000


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/explain"])
@pytest.mark.parametrize("body", [b"[" * 10**6, b'{"text":' * 10**5, b'{"a":' * 10**5 + b"1" + b"}" * 10**5])
def test_deep_nesting_is_refused(service: Service, path: str, body: bytes) -> None:
    reply = ask(service, path, body, AUTHORISED)
    assert reply.status == 400 and "nested too deeply" in reply.error


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "words%00", "words%2f..", "~root", "C:%5cx"]
)
def test_path_tricks_in_names_name_no_model(service: Service, name: str) -> None:
    reply = ask(service, f"/v1/models/{name}/reload", b"", AUTHORISED, "POST")
    assert reply.status in (404, 405), reply.body
    assert "root:" not in reply.body.decode()


def test_markup_comes_back_as_data_and_never_as_a_page(service: Service) -> None:
    for path, body in (
        ("/v1/classify", {"text": MARKUP, "model": MARKUP}),
        ("/v1/explain", {"text": MARKUP}),
        (f"/{MARKUP.replace(' ', '%20')}", None),
        (f"/?{MARKUP.replace(' ', '%20')}", None),
    ):
        reply = ask(service, path, body, AUTHORISED)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("default-src 'self';")
        if reply.headers["content-type"].startswith("text/html"):
            assert MARKUP not in reply.body.decode()
        else:
            assert reply.headers["content-type"] == "application/json"
