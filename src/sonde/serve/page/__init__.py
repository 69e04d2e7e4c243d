"""The web page: three kinds of file, kept in memory, found by name in a dict.

routes   address -> what answers there
"""

from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/static/service.js": ("service.js", "text/javascript; charset=utf-8"),
    "/static/pictures.js": ("pictures.js", "text/javascript; charset=utf-8"),
    "/static/table.js": ("table.js", "text/javascript; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}

CACHE = {"cache-control": "no-cache"}
"""Browsers may keep the files and ask each time, so that a new version is seen at once."""

Answer = Callable[[Request], Awaitable[Response]]


def routes() -> Iterator[tuple[str, Answer]]:
    """Every file of the page under its address."""
    for path, (name, kind) in FILES.items():
        yield path, _answer(files(__name__).joinpath(name).read_bytes(), kind)


def _answer(content: bytes, kind: str) -> Answer:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers=CACHE)

    return answer
