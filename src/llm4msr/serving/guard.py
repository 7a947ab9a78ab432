"""The layer around every request: it checks token and limits, adds headers, and counts answers."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm4msr.serving.metrics import Metrics

_OPEN = ("/healthz", "/readyz")
_OF_OPERATION = ("/metrics", "/v1/admin/reload")
"""Answered without limits on the number and the time of requests."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


@dataclass(frozen=True)
class Limits:
    """The most bytes of a body, the most concurrent requests, and the most seconds of a request."""

    body: int = 1 << 20
    concurrency: int = 64
    seconds: float = 5.0


class _TooLargeError(Exception):
    pass


class Guard:
    """ASGI middleware. It answers 429 immediately beyond `limits.concurrency` requests, so that none wait in a queue.

    Args:
        app: the application to guard.
        metrics: counts the answers.
        token: the bearer token that every route requires except health and the page's files, or None. Without a token
            the header `Host` must name this machine. This stops DNS rebinding: a foreign web page whose host name
            resolves to this machine still sends its own name.
        limits: see `Limits`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None, limits: Limits) -> None:
        self.inner = app
        self._metrics, self._limits = metrics, limits
        self._token = None if token is None else token.encode()
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse to."""
        if scope["type"] == "lifespan":
            await self.inner(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        began = time.perf_counter()
        answer = _Answer(send)
        try:
            await self._answer(scope, receive, answer)
        except Exception:
            answer.status = answer.status or 500  # the status that the server around this application answers
            raise
        finally:
            if answer.status:  # 0 if the client left before an answer
                route = getattr(scope.get("route"), "path", None) or "none"
                self._metrics.answered(route, answer.status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path, headers = scope["path"], dict(scope["headers"])
        if path in _OPEN or path == "/" or path.startswith("/page/"):
            await self.inner(scope, receive, answer)
        elif self._token is None and not _names_this_machine(headers.get(b"host", b"").decode("latin-1")):
            text = "no token is set, so only requests to localhost or 127.0.0.1 are answered"
            await answer.refuse(403, "wrong_host", text)
        elif not self._allowed(headers):
            await answer.refuse(401, "unauthorized", "a bearer token is needed", {"www-authenticate": "Bearer"})
        elif path in _OF_OPERATION:
            await self.inner(scope, receive, answer)
        elif self._running >= self._limits.concurrency:
            await answer.refuse(429, "too_many_requests", "too many requests at once; try again", {"retry-after": "1"})
        elif _length(headers) > self._limits.body:
            await self._refuse_size(answer)
        else:
            self._running += 1
            try:
                await asyncio.sleep(0)  # requests that came together are all counted before work on any begins
                await self._within_limits(scope, receive, answer)
            finally:
                self._running -= 1

    def _allowed(self, headers: Mapping[bytes, bytes]) -> bool:
        if self._token is None:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self._token) and kind.lower() == b"bearer"

    async def _within_limits(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limits.body:
                await self._refuse_size(answer)
                raise _TooLargeError
            return message

        try:
            async with asyncio.timeout(self._limits.seconds):
                await self.inner(scope, counted, answer)
        except TimeoutError:
            await answer.refuse(503, "timeout", f"the request took longer than {self._limits.seconds:g} s")
        except _TooLargeError:
            pass

    async def _refuse_size(self, answer: _Answer) -> None:
        await answer.refuse(413, "too_large", f"the body is larger than {self._limits.body} bytes")


class _Answer:
    """Sends an answer with our headers, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refused = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if self._refused:  # the refusal is the answer: drop what the application sends later
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await self._send(message)

    async def refuse(self, status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        body = error_body(code, text)
        more = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        start: dict[str, Any] = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more],
        }
        await self(start)
        await self({"type": "http.response.body", "body": body})
        self._refused = True


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is a loopback one, reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _names_this_machine(host: str) -> bool:
    """Whether the header `Host`, with or without a port, names this machine; an absent header is accepted, too."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return not host or is_loopback(name)


def error_body(code: str, message: str) -> bytes:
    """The body of every answer that is not a success."""
    return orjson.dumps({"error": {"code": code, "message": message}})


def _length(headers: Mapping[bytes, bytes]) -> int:
    given = headers.get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0
