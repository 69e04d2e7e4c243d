"""The routes.

build   models and a worker -> the application, without its guard
PATHS   the routes, as metrics and logs name them
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.routing import Route

from sonde import __version__
from sonde.errors import InputError, SondeError
from sonde.explanation import explain
from sonde.serve import page
from sonde.serve.answers import check_abstention, classified, described, explained
from sonde.serve.fields import (
    CLASSIFY_EXAMPLES,
    ClassifyAnswer,
    ClassifyRequest,
    ExplainAnswer,
    ExplainRequest,
    ModelEntry,
    ModelList,
    Problem,
    State,
)
from sonde.serve.metrics import Metrics
from sonde.serve.models import Model, Models, said_of
from sonde.serve.problems import CLIENT_GONE, STATUSES, Refused, add_handlers, documented
from sonde.serve.settings import Settings
from sonde.serve.waiting import Full, Job, Worker

logger = logging.getLogger(__name__)

PATHS = {"/", "/v1/classify", "/v1/explain", "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json"}

MAX_EXPLAINED_CHARACTERS = 20_000
"""Of a text that is explained: the answer names each of its tokens, at a hundred bytes apiece."""

DESCRIPTION = (
    "Labels for texts, from the inside of frozen language models. Errors are JSON: `error`, a sentence, and "
    "`request_id`, which the header `X-Request-ID` sets and every answer carries."
)

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METRICS_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {_METRICS_TYPE: {"schema": {"type": "string"}}}, "description": "Prometheus' text format."},
    401: {"model": Problem, "description": STATUSES[401]},
}
_CLASSIFY = Body(
    openapi_examples={
        "one text": {"value": CLASSIFY_EXAMPLES[0]},
        "many texts, with options": {"value": CLASSIFY_EXAMPLES[1]},
    }
)


def build(
    models: Models, worker: Worker, settings: Settings, metrics: Metrics, stopping: Callable[[], bool]
) -> FastAPI:
    """The application.

    Parameters
    ----------
    models : Models
    worker : Worker
    settings : Settings
    metrics : Metrics
    stopping : callable
        Whether a stop was asked for.
    """
    app = FastAPI(
        title="sonde",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _Routes(models, worker, settings, metrics, stopping).add_to(app)
    for path, respond in page.routes():
        app.router.routes.append(Route(path, respond, methods=["GET"], include_in_schema=False))
    add_handlers(app)
    app.openapi = lambda: _documented(app, settings)  # type: ignore[method-assign]
    return app


class _Routes:
    """The routes, with what they need."""

    def __init__(
        self, models: Models, worker: Worker, settings: Settings, metrics: Metrics, stopping: Callable[[], bool]
    ) -> None:
        self.models, self.worker, self.settings, self.metrics = models, worker, settings, metrics
        self.stopping = stopping

    def add_to(self, app: FastAPI) -> None:
        """Register every route with its documentation."""
        asked = documented(400, 401, 404, 408, 413, 422, 500, 503, 504)
        app.post("/v1/classify", response_model=ClassifyAnswer, responses=asked)(self.classify)
        app.post("/v1/explain", response_model=ExplainAnswer, responses=asked)(self.explain)
        app.get("/v1/models", response_model=ModelList, responses=documented(401))(self.list_models)
        reloads = documented(401, 403, 404, 409, 422)
        app.post("/v1/models/{name}/reload", response_model=ModelEntry, responses=reloads)(self.reload)
        app.get("/healthz", response_model=State)(self.health)
        app.get("/readyz", response_model=State, responses=documented(503))(self.ready)
        app.get("/metrics", response_class=Response, responses=_METRICS_ANSWER)(self.show_metrics)

    async def classify(self, request: Request, body: Annotated[ClassifyRequest, _CLASSIFY]) -> Response:
        """Say which labels texts get, and how sure that is."""
        model = self._find(body.model)
        texts = self._texts(body)
        _refuse_bad(lambda: check_abstention(model, body.abstain_below))
        job = Job(model, texts)
        answer = await self._awaited(job, request, "classify")
        self.metrics.truncated.labels(model.name).inc(int(answer.truncated.sum()))
        return _json(classified(model, answer, body.alpha, body.abstain_below))

    async def explain(self, request: Request, body: ExplainRequest) -> Response:
        """Say which layers, neurons, tokens and n-grams spoke for a label."""
        model = self._find(body.model)
        if len(body.text) > MAX_EXPLAINED_CHARACTERS:
            raise Refused(
                422,
                f"The field 'text' has {len(body.text):,} characters; one of {MAX_EXPLAINED_CHARACTERS:,} can be "
                "explained.",
            )
        asked: dict[str, Any] = {"label": body.label, "against": body.against, "top": body.top}
        job = Job(model, [body.text], lambda: explain(model.classifier, [body.text], **asked))
        (found,) = await self._awaited(job, request, "explain")
        return _json(explained(model, found))

    async def list_models(self) -> Response:
        """List the models that are served."""
        return _json({"models": [described(model) for model in self.models], "max_texts": self.settings.max_texts})

    async def reload(self, name: str) -> Response:
        """Load a model anew from its folder; needs a service that was started with a token."""
        if self.settings.token is None:
            raise Refused(403, "Models are reloaded over HTTP only where a token is asked for; send SIGHUP instead.")
        if self.models.find(name) is None:
            raise Refused(404, self._unknown(name))
        try:
            model = await _in_thread(lambda: self.models.reload(name))
        except Exception as error:
            self.metrics.reloads.labels(name, "failed").inc()
            if not isinstance(error, SondeError):
                logger.exception("a reload failed")
            raise Refused(409, f"The model {name!r} stays as it was: {said_of(error)}") from error
        self.metrics.reloads.labels(name, "done").inc()
        return _json(described(model))

    async def health(self) -> Response:
        """Say that the process answers."""
        return _json({"status": "ok"})

    async def ready(self) -> Response:
        """Say whether requests should be sent here."""
        if self.stopping():
            raise Refused(503, "The service is stopping.")
        stuck = self.worker.stuck_seconds()
        if stuck > self.settings.answer_seconds:
            raise Refused(503, f"The model has not answered for {stuck:.0f} s.")
        return _json({"status": "ready"})

    async def show_metrics(self) -> Response:
        """Counters and gauges, in Prometheus' text format."""
        return Response(self.metrics.page(), media_type=_METRICS_TYPE)

    # ------------------------------------------------------------------ parts

    def _find(self, name: str | None) -> Model:
        model = self.models.find(name)
        if model is None:
            raise Refused(404, self._unknown(str(name)))
        return model

    def _unknown(self, name: str) -> str:
        return f"There is no model {name[:64]!r}; there are: {', '.join(self.models.names)}."

    def _texts(self, body: ClassifyRequest) -> list[str]:
        if (body.text is None) == (body.texts is None):
            raise Refused(422, "Give either 'text' or 'texts', and not both.")
        texts = [body.text] if body.text is not None else body.texts or []
        if len(texts) > self.settings.max_texts:
            raise Refused(
                422,
                f"The field 'texts' has {len(texts):,} entries; one request may have {self.settings.max_texts:,}.",
            )
        return texts

    async def _awaited(self, job: Job, request: Request, task: str) -> Any:
        """What a job gives; it is abandoned when it takes too long or nobody is left to hear it."""
        notes = request.scope["sonde"]
        notes |= {"model": job.model.name, "texts": len(job.texts), "characters": job.characters}
        try:
            self.worker.put(job)
        except Full as full:
            self.metrics.refused.inc()
            raise Refused(
                503, f"Too much waits already; come again in {full.seconds} s.", {"Retry-After": str(full.seconds)}
            ) from full
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            await asyncio.wait(
                {job.future, gone}, timeout=self.settings.answer_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            gone.cancel()
            job.abandoned = not job.future.done()
        notes["waited"] = round(job.waited, 4)
        self.metrics.waited.observe(job.waited)
        if job.abandoned:
            job.future.cancel()
            if gone.done() and not gone.cancelled():
                raise Refused(CLIENT_GONE, "Nobody waits for the answer any more.")
            raise Refused(504, f"The answer took longer than {self.settings.answer_seconds:g} s.")
        found = _refuse_bad(job.future.result)
        self.metrics.texts.labels(job.model.name, task).inc(len(job.texts))
        return found


async def _in_thread(call: Callable[[], Any]) -> Any:
    """What it gives, from a thread that no stop waits for; those of asyncio are joined, however long they take."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def work() -> None:
        try:
            told: tuple[Callable[[Any], None], Any] = (future.set_result, call())
        except Exception as error:
            told = (future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *told)

    threading.Thread(target=work, name="sonde-reload", daemon=True).start()
    return await future


def _refuse_bad(call: Callable[[], Any]) -> Any:
    """A sentence about the input is the client's to read."""
    try:
        return call()
    except InputError as error:
        raise Refused(422, str(error)) from error


async def _until_gone(request: Request) -> None:
    """Return when the connection is cut."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: Any) -> Response:
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def _documented(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The OpenAPI document, with the token where one is asked for."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        if settings.token is not None:
            document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"token": []}]
        app.openapi_schema = document
    return app.openapi_schema
