"""The HTTP interface: thin, over scorer, live states and explainer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from llm4msr import __version__
from llm4msr.errors import InputError, nearest
from llm4msr.serving.current import LOG, Current, Serving
from llm4msr.serving.explain import ExplainAnswer
from llm4msr.serving.guard import Guard, Limits, error_body
from llm4msr.serving.log import EventRecord, ItemRecord, Record
from llm4msr.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from llm4msr.serving.people import UserHistory, UserKnowledge, history_of, knowledge_of
from llm4msr.serving.requests import (
    MOST_ITEMS,
    BatchAnswer,
    BatchRequest,
    ErrorAnswer,
    Event,
    EventsAnswer,
    EventsRequest,
    ExplainRequest,
    ItemsAnswer,
    ItemsRequest,
    RankAnswer,
    RankRequest,
    RequestError,
    ScenariosAnswer,
    ScoreAnswer,
    ScoreRequest,
    UsersAnswer,
)
from llm4msr.serving.scorer import Scored

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "The body is no JSON"),
        (401, "A bearer token is needed"),
        (404, "Unknown scenario, user or address"),
        (405, "The address has no such method"),
        (413, "The body is too large"),
        (415, "The body is not said to be JSON"),
        (422, "A value is not as expected"),
        (429, "Too many requests at once"),
        (503, "Timed out, or the log cannot be written"),
    )
}
_PAGE = files("llm4msr.serving") / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_AHEAD = timedelta(days=1)


def make_app(current: Current, *, token: str | None = None, limits: Limits | None = None) -> Guard:
    """The server of what `current` holds.

    Args:
        current: the bundle and the log.
        token: the bearer token that is asked for, or none; without one there are no admin calls.
        limits: on size, number and time of requests.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        watching = asyncio.create_task(current.watch())
        yield
        watching.cancel()

    app = FastAPI(
        title="llm4msr",
        version=__version__,
        summary="Click probabilities in many scenarios, with what an LLM knows of users, items and scenarios.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
        redirect_slashes=False,
        license_info={"name": "Apache-2.0"},
    )
    _handle_errors(app)
    _add_scores(app, current, metrics)
    _add_people(app, current)
    _add_events(app, current, metrics)
    _add_operation(app, current, metrics, admin=token is not None)
    _add_page(app)
    return Guard(app, metrics, token, limits or Limits())


def _add_scores(app: FastAPI, current: Current, metrics: Metrics) -> None:
    explaining = ThreadPoolExecutor(1, "llm4msr-explain")

    @app.post("/v1/score", response_model=ScoreAnswer, tags=["scores"])
    async def score(body: ScoreRequest) -> Response:
        """The click probability of each item, in order."""
        serving = current.now
        (scored,) = serving.scorer.score([body])
        _count(metrics, serving, [body], [scored])
        return _json(_score_answer(serving, scored))

    @app.post("/v1/score/batch", response_model=BatchAnswer, tags=["scores"])
    async def score_batch(body: BatchRequest) -> Response:
        """Several requests, by one pass through the model."""
        serving = current.now
        if (items := sum(len(r.items) for r in body.requests)) > MOST_ITEMS:
            raise RequestError(422, "too_many_items", f"{items} items together; at the most {MOST_ITEMS}")
        scored = serving.scorer.score(body.requests)
        _count(metrics, serving, body.requests, scored)
        return _json({"answers": [_score_answer(serving, s) for s in scored]})

    @app.post("/v1/rank", response_model=RankAnswer, tags=["scores"])
    async def rank(body: RankRequest) -> Response:
        """The items with the highest probabilities, best first."""
        serving = current.now
        lookup = serving.bundle.lookup
        if body.items is None:
            popular = serving.bundle.arrays[f"items/popular_{serving.scorer.scenario(body.scenario)}"]
            items = [item for item in lookup.texts("item id", popular.tolist()) if item is not None]
            if not items:
                raise RequestError(422, "no_items", "no item was shown in this scenario while training; name some")
            body = body.model_copy(update={"items": items})
        (scored,) = serving.scorer.score([body])
        _count(metrics, serving, [body], [scored])
        best = (-scored.scores).argsort(kind="stable")[: body.top].tolist()
        ids = [body.items[place] for place in best]  # type: ignore[index]
        titles = lookup.texts("title", lookup.numbers("item", ids).tolist())
        ranked = [
            {"item": item, "score": float(scored.scores[place]), "title": title or item}
            for place, item, title in zip(best, ids, titles, strict=True)
        ]
        answer = _score_answer(serving, scored)
        del answer["scores"]
        return _json({**answer, "items": ranked})

    @app.post("/v1/explain", response_model=ExplainAnswer, tags=["scores"])
    async def explain(body: ExplainRequest) -> Response:
        """A score taken apart: what knowledge changes and what each field contributes, in numbers that add up."""
        serving = current.now
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(explaining, serving.explainer.explain, body)
        return _json(answer.model_dump())


def _add_people(app: FastAPI, current: Current) -> None:
    @app.get("/v1/scenarios", response_model=ScenariosAnswer, tags=["people"])
    async def scenarios() -> Response:
        """The scenarios: what people and the LLM say of them, and how alike their vectors are."""
        bundle = current.now.bundle
        cards = [asdict(card) for card in bundle.scenarios]
        return _json({"bundle": bundle.fingerprint, "name": bundle.schema.name, "scenarios": cards})

    @app.get("/v1/users", response_model=UsersAnswer, tags=["people"])
    async def users(
        prefix: Annotated[str, Query(max_length=256)] = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Response:
        """Users of the bundle whose ids start so."""
        return _json({"users": current.now.bundle.lookup.starting_with("user", prefix, limit)})

    @app.get("/v1/users/{user:path}/knowledge", response_model=UserKnowledge, tags=["people"])
    async def knowledge(user: str) -> Response:
        """What the LLM wrote of a user at the latest snapshot, and the history that it was made from."""
        return _json(knowledge_of(current.now.bundle, user[:256]).model_dump())

    @app.get("/v1/users/{user:path}/history", response_model=UserHistory, tags=["people"])
    async def history(user: str, limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Response:
        """A user's latest positives in each scenario, those since the export included."""
        serving = current.now
        return _json(history_of(serving.bundle, serving.live, user[:256], limit).model_dump())


def _add_events(app: FastAPI, current: Current, metrics: Metrics) -> None:
    @app.post("/v1/events", response_model=EventsAnswer, tags=["events"])
    async def events(body: EventsRequest) -> Response:
        """Positive interactions; durable, and part of their users' states, before the answer."""
        serving, now = current.now, datetime.now(UTC)
        found = [_event(serving, event, now) for event in body.events]
        queued = _queued(serving, [event.item for event in found])
        records: list[Record] = [*found, *(ItemRecord(item, {}) for item in queued)]
        new = (await _written(current, records))[: len(found)]
        metrics.happened(sum(new), len(new) - sum(new))
        return _json({"accepted": sum(new), "duplicates": len(new) - sum(new), "queued_items": queued})

    @app.post("/v1/items", response_model=ItemsAnswer, tags=["events"])
    async def items(body: ItemsRequest) -> Response:
        """New items by their raw columns: scored by their fields from now on, and queued for the next `reason`."""
        serving = current.now
        blank = serving.bundle.fields.rows(-1, serving.bundle.lookup.numbers("item", [""]), 0)
        for item in body.items:
            serving.bundle.fields.give_known(blank, item.columns, 0)
        queued = _queued(serving, [item.item for item in body.items])
        await _written(current, [ItemRecord(i.item, i.columns) for i in body.items if i.item in set(queued)])
        return _json({"queued_items": queued})


def _add_operation(app: FastAPI, current: Current, metrics: Metrics, *, admin: bool) -> None:
    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """The process is alive."""
        return _json({"status": "ok"})

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Response:
        """A bundle is loaded and answers."""
        return _json({"status": "ok", "bundle": current.now.bundle.fingerprint})

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
        except InputError as error:
            LOG.error("the bundle before is served on: %s", error)
            raise RequestError(409, "broken_bundle", "the bundle is broken; the server's log says how") from None
        return _json({"bundle": serving.bundle.fingerprint})


def _add_page(app: FastAPI) -> None:
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


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        del request
        return _error(error.status, error.code, error.message)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        del request
        found = error.errors()
        if any(e["type"] == "json_invalid" for e in found):
            return _error(400, "invalid_json", "the body is no JSON")
        shown = [f"{'.'.join(str(p)[:80] for p in e['loc'][1:]) or 'the body'}: {e['msg'][:200]}" for e in found[:5]]
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        return _error(422, "invalid_request", "; ".join(shown) + more)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        del request
        known = {400: ("invalid_json", "the body is no JSON"), 404: ("not_found", "there is nothing at this address")}
        code, message = known.get(error.status_code, ("http_error", str(error.detail)))
        return _error(error.status_code, code, message, dict(error.headers or {}))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(code, message), status, headers, "application/json")


def _score_answer(serving: Serving, scored: Scored) -> dict[str, Any]:
    return {
        "bundle": serving.bundle.fingerprint,
        "scores": scored.scores,
        "unknown_items": scored.unknown_items,
        "user_known": scored.user_known,
        "knowledge_known": scored.knowledge_known,
    }


def _count(metrics: Metrics, serving: Serving, asked: Sequence[ScoreRequest], scored: Sequence[Scored]) -> None:
    scenarios = serving.bundle.schema.scenarios
    for request, answer in zip(asked, scored, strict=True):
        metrics.scored(
            scenarios[serving.scorer.scenario(request.scenario)].value,
            answer.scores,
            len(answer.unknown_items),
            user_known=answer.user_known,
            knowledge=answer.knowledge_known,
        )


def _event(serving: Serving, event: Event, now: datetime) -> EventRecord:
    bundle = serving.bundle
    scenario = bundle.schema.scenarios[serving.scorer.scenario(event.scenario)].value
    behaviour = bundle.schema.behaviours[0].name if event.behaviour is None else event.behaviour
    if behaviour not in bundle.behaviours:
        hint = nearest(behaviour[:80], bundle.behaviours)
        raise RequestError(422, "unknown_behaviour", f"there is no behaviour {behaviour[:80]!r}; {hint}")
    moment = now if event.time is None else event.time
    if moment > now + _AHEAD:
        raise RequestError(422, "time_ahead", f"the time {moment.isoformat()} is more than a day ahead")
    microseconds = round((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    return EventRecord(event.user, event.item, scenario, microseconds, behaviour)


def _queued(serving: Serving, items: Sequence[str]) -> list[str]:
    """Those of the items that wait for `reason`: the catalogue does not have them."""
    distinct = list(dict.fromkeys(items))
    codes = serving.bundle.lookup.numbers("item", distinct)
    return [item for item, code in zip(distinct, codes, strict=True) if code < 0]


async def _written(current: Current, records: list[Record]) -> list[bool]:
    try:
        return await current.events.write(records)
    except OSError as error:
        LOG.error("events cannot be written: %s", error)
        raise RequestError(503, "log_unavailable", "events cannot be made durable now; send them again") from None


def openapi(app: Guard) -> str:
    """The OpenAPI description of a server, as JSON."""
    inner = app.inner
    assert isinstance(inner, FastAPI)
    return json.dumps(inner.openapi(), indent=1)
