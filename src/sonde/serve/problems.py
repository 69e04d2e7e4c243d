"""Errors as answers: a status, a sentence, and the id under which the log has the request.

Refused        what a request is refused with, raised anywhere
problem        the response
documented     statuses -> what OpenAPI says of them
add_handlers   FastAPI's own errors, in the same form
STATUSES, CLIENT_GONE, DEFECT   what they mean
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sonde.serve.fields import ClassifyRequest, ExplainRequest, Problem, sentence_of

STATUSES = {
    400: "The body is no JSON.",
    401: "A token is due and was not given.",
    403: "Not allowed.",
    404: "There is no such model.",
    408: "The body took too long to arrive.",
    409: "The folder of the model cannot be loaded; the old model is served on.",
    413: "The body is too large.",
    422: "A field is wrong.",
    500: "A defect of the service.",
    503: "Too much waits; the header Retry-After says for how many seconds.",
    504: "The answer took too long.",
}
"""For OpenAPI."""

CLIENT_GONE = 499
"""What logs and metrics say where nobody was left to answer; nginx writes it so."""

DEFECT = "Something went wrong in the service; its log knows more."


class Refused(Exception):
    """What a request is answered with instead of a result."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def problem(status: int, sentence: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response of an error."""
    body = json.dumps({"error": sentence, "request_id": request_id})
    return Response(body, status, dict(headers or {}), "application/json")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these statuses."""
    return {status: {"model": Problem, "description": STATUSES[status]} for status in statuses}


def add_handlers(app: FastAPI) -> None:
    """Answer every error of an application in the form of `problem`."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Exception, _defect)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem(error.status, error.sentence, request.scope["sonde_id"], error.headers)


async def _defect(request: Request, error: Exception) -> Response:
    """The guard logs it."""
    return problem(500, DEFECT, request.scope["sonde_id"])


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's verdict on a body."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        place = found[0]["loc"][-1]
        sentence = f"The body is no JSON: {found[0].get('ctx', {}).get('error', 'it ends early')} at character {place}."
        return problem(400, sentence, request.scope["sonde_id"])
    asked = ExplainRequest if request.url.path.endswith("explain") else ClassifyRequest
    if found[0]["loc"] == ("body",) and not _is_json(request):
        sentence = "The body must be a JSON object, sent with 'Content-Type: application/json'."
    else:
        sentence = sentence_of(found, list(asked.model_fields))
    return problem(422, sentence, request.scope["sonde_id"])


def _is_json(request: Request) -> bool:
    return "json" in request.headers.get("content-type", "")


async def _http(request: Request, error: Exception) -> Response:
    """Unknown addresses and methods, and bodies that FastAPI could not parse."""
    assert isinstance(error, HTTPException)
    sentences = {
        400: "The body is no JSON, or is nested too deeply.",
        404: "There is nothing at this address; GET /openapi.json lists what there is.",
        405: "This address does not take this method; GET /openapi.json lists those that it takes.",
    }
    sentence = sentences.get(error.status_code, str(error.detail))
    return problem(error.status_code, sentence, request.scope["sonde_id"], dict(error.headers or {}))
