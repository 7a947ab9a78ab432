"""A server's routes for health, metrics, reloading and the page, and its answers to errors."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from llm4msr.errors import InputError
from llm4msr.serving.current import Current
from llm4msr.serving.guard import error_body
from llm4msr.serving.log import LOG
from llm4msr.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from llm4msr.serving.requests import LONGEST_VALUE, RequestError

_ONE_OF_THESE = (
    f"expected a text of at most {LONGEST_VALUE:,} characters, a finite number, true, false or null, or a list of these"
)
_TYPES_OF_A_VALUE = ("str", "int", "float", "bool", "none")
_PAGE = files("llm4msr.serving") / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


def add_operation(app: FastAPI, current: Current, metrics: Metrics, *, admin: bool) -> None:
    """Add the routes for health and metrics and, if `admin`, for reloading."""

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """The process is alive."""
        return as_json({"status": "ok"})

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Response:
        """A bundle is loaded and answers."""
        return as_json({"status": "ok", "bundle": current.now.bundle.fingerprint})

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics_text() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    if not admin:
        return

    @app.post("/v1/admin/reload", tags=["operation"])
    async def reload() -> Response:
        """Serve what the bundle's path leads to now. A broken bundle is refused, and the old one goes on."""
        try:
            serving = await asyncio.to_thread(current.reload)
        except (InputError, OSError) as error:
            LOG.error("the bundle before is served on: %s", error)
            raise RequestError(409, "broken_bundle", "the bundle is broken; the server's log says how") from None
        return as_json({"bundle": serving.bundle.fingerprint})


def add_page(app: FastAPI) -> None:
    """Add the routes of the page and its files, which are read once."""
    content = {file.name: file.read_bytes() for file in _PAGE.iterdir() if file.name.endswith(tuple(_TYPES))}

    def answer(name: str) -> Response:
        return Response(content[name], media_type=_TYPES[name[name.rindex(".") :]])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return answer("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in content:
            raise HTTPException(404)
        return answer(name)


def handle_errors(app: FastAPI) -> None:
    """Answer every error with a code and a message, never with the body that was sent."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        del request
        return as_error(error.status, error.code, error.message)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if any(e["type"] == "json_invalid" for e in found):
            return as_error(400, "invalid_json", "the body is not valid JSON")
        if any(e["loc"] == ("body",) for e in found) and not _says_json(request):
            return as_error(415, "not_json", "the header content-type must be application/json")
        told = dict(map(_place_and_message, found))  # one error per place, not one per allowed type
        shown = [f"{where or 'the body'}: {what}" for where, what in list(told.items())[:5]]
        more = f"; and {len(told) - 5} more" if len(told) > 5 else ""
        return as_error(422, "invalid_request", "; ".join(shown) + more)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        del request
        known = {
            400: ("invalid_json", "the body is not valid JSON"),
            404: ("not_found", "there is nothing at this address"),
        }
        code, message = known.get(error.status_code, ("http_error", str(error.detail)))
        return as_error(error.status_code, code, message, dict(error.headers or {}))

    @app.exception_handler(OSError)
    async def unreadable(request: Request, error: OSError) -> Response:
        del request
        LOG.error("a file cannot be read or written: %s", error)
        return as_error(503, "storage_unavailable", "the server cannot reach its files now; try again")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        del request, error  # the server that runs the application logs it
        return as_error(500, "internal_error", "the server failed; its log says how")


def _place_and_message(error: Any) -> tuple[str, str]:
    """The path of an invalid value in the request, and the error's message.

    A value that may have one of several types has an error for each type; all of them get the same path and message.
    """
    path = [str(part)[:80] for part in error["loc"][1:]]
    inside = next((place for place, part in enumerate(path) if part in _TYPES_OF_A_VALUE or "[" in part), None)
    if inside is None:
        return ".".join(path), error["msg"][:200]
    return ".".join(path[:inside]), _ONE_OF_THESE


def _says_json(request: Request) -> bool:
    return "json" in request.headers.get("content-type", "")


def as_json(content: Any) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def as_error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer for an error."""
    return Response(error_body(code, message), status, headers, "application/json")
