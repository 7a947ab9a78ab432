"""The HTTP interface, a thin layer over scorer, live states and explainer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi.responses import Response

from llm4msr import __version__
from llm4msr.serving.current import Current, Serving
from llm4msr.serving.event_routes import add_events
from llm4msr.serving.explain import ExplainAnswer
from llm4msr.serving.guard import Guard, Limits
from llm4msr.serving.metrics import Metrics
from llm4msr.serving.operation import add_operation, add_page, as_json, handle_errors
from llm4msr.serving.people import UserHistory, UserKnowledge, history_of, knowledge_of, titles_of_items
from llm4msr.serving.requests import (
    MOST_ITEMS,
    BatchAnswer,
    BatchRequest,
    ErrorAnswer,
    ExplainRequest,
    RankAnswer,
    RankRequest,
    RequestError,
    ScenariosAnswer,
    ScoreAnswer,
    ScoreRequest,
    UsersAnswer,
    naming,
)
from llm4msr.serving.scorer import Scored

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (
        (400, "The body is not valid JSON"),
        (401, "A bearer token is needed"),
        (403, "No token is set, and the request names another machine than this one"),
        (404, "Unknown scenario, user or address"),
        (405, "The address has no such method"),
        (409, "The bundle to be served is broken"),
        (413, "The body is too large"),
        (415, "The header content-type must be application/json"),
        (422, "A value is not as expected"),
        (429, "Too many requests at once"),
        (500, "The server failed"),
        (503, "Timed out, or the log cannot be written or read"),
    )
}
UserId = Annotated[str, Path(max_length=256)]


def make_app(current: Current, *, token: str | None = None, limits: Limits | None = None) -> Guard:
    """The application that serves the bundle of `current`.

    Args:
        current: the bundle and the log.
        token: the bearer token that requests must have, or None; without one there are no admin routes.
        limits: on size, number and time of requests.
    """
    metrics = current.metrics

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
        strict_content_type=True,  # a foreign web page's JSON then needs a CORS preflight, which fails
        license_info={"name": "Apache-2.0"},
    )
    handle_errors(app)
    _add_scores(app, current, metrics)
    _add_people(app, current)
    add_events(app, current, metrics)
    add_operation(app, current, metrics, admin=token is not None)
    add_page(app)
    return Guard(app, metrics, token, limits or Limits())


def _add_scores(app: FastAPI, current: Current, metrics: Metrics) -> None:
    explaining = ThreadPoolExecutor(1, "llm4msr-explain")

    @app.post("/v1/score", response_model=ScoreAnswer, tags=["scores"])
    async def score(body: ScoreRequest) -> Response:
        """The click probability of each item, in order."""
        serving = current.now
        (scored,) = serving.scorer.score([body])
        _count(metrics, serving, [body], [scored])
        return as_json(_score_answer(serving, scored))

    @app.post("/v1/score/batch", response_model=BatchAnswer, tags=["scores"])
    async def score_batch(body: BatchRequest) -> Response:
        """Several requests, by one pass through the model."""
        serving = current.now
        if (items := sum(len(r.items) for r in body.requests)) > MOST_ITEMS:
            raise RequestError(422, "too_many_items", f"{items} items together; at the most {MOST_ITEMS}")
        rows = []
        for place, request in enumerate(body.requests):
            with naming(f"requests.{place}"):
                rows.append(serving.scorer.rows(request))
        scored = serving.scorer.scored(body.requests, rows)
        _count(metrics, serving, body.requests, scored)
        return as_json({"answers": [_score_answer(serving, s) for s in scored]})

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
        titles = titles_of_items(serving.bundle, serving.live, ids)
        ranked = [
            {"item": item, "score": float(scored.scores[place]), "title": title}
            for place, item, title in zip(best, ids, titles, strict=True)
        ]
        answer = _score_answer(serving, scored)
        del answer["scores"]
        return as_json({**answer, "items": ranked})

    @app.post("/v1/explain", response_model=ExplainAnswer, tags=["scores"])
    async def explain(body: ExplainRequest) -> Response:
        """A score taken apart: what knowledge changes and what each field contributes, in numbers that add up."""
        serving = current.now
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(explaining, serving.explainer.explain, body)
        return as_json(answer.model_dump())


def _add_people(app: FastAPI, current: Current) -> None:
    @app.get("/v1/scenarios", response_model=ScenariosAnswer, tags=["people"])
    async def scenarios() -> Response:
        """The scenarios: what people and the LLM say of them, and how alike their vectors are."""
        bundle = current.now.bundle
        cards = [card.model_dump() for card in bundle.scenarios]
        return as_json({"bundle": bundle.fingerprint, "name": bundle.schema.name, "scenarios": cards})

    @app.get("/v1/users", response_model=UsersAnswer, tags=["people"])
    async def users(
        prefix: Annotated[str, Query(max_length=256)] = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Response:
        """Users of the bundle whose ids start with `prefix`."""
        return as_json({"users": current.now.bundle.lookup.starting_with("user", prefix, limit)})

    @app.get("/v1/users/{user:path}/knowledge", response_model=UserKnowledge, tags=["people"])
    async def knowledge(user: UserId) -> Response:
        """What the LLM wrote of a user at the latest snapshot, and the history that it was made from."""
        serving = current.now
        return as_json(knowledge_of(serving.bundle, serving.live, user).model_dump())

    @app.get("/v1/users/{user:path}/history", response_model=UserHistory, tags=["people"])
    def history(user: UserId, limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Response:
        """A user's latest positives in each scenario, those since the export included."""
        serving = current.now
        return as_json(history_of(serving.bundle, serving.live, user, limit).model_dump())


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
