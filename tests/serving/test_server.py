"""The server over a real socket: scores, rankings, explanations, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from llm4msr.serving.bundle import Bundle
from llm4msr.serving.live import Live
from llm4msr.serving.requests import ScoreRequest
from llm4msr.serving.scorer import Scorer
from tests.serving.conftest import TOKEN, Server, as_declared, eventually, serving

EVENT = {"user": "u1", "item": "i5", "scenario": "feed"}
ASK: dict[str, Any] = {"user": "u1", "scenario": "search", "items": ["i1", "i2", "i3"], "features": {"hour": 12}}


def test_scores_are_the_scorers(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    answer = server.client.post("/v1/score", json=ASK).json()
    (expected,) = Scorer(bundle, Live(bundle, tmp_path)).score([ScoreRequest(**ASK)])
    assert np.abs(np.array(answer["scores"]) - expected.scores).max() < 1e-6
    assert answer["bundle"] == bundle.fingerprint
    assert answer["unknown_items"] == []
    assert answer["user_known"]
    assert answer["knowledge_known"]


def test_an_answer_that_is_not_as_declared_fails_every_test() -> None:
    asked = httpx.Request("GET", "http://127.0.0.1/v1/users")
    as_declared(httpx.Response(200, json={"users": ["u1"]}, request=asked))
    for wrong in ({"users": [1]}, {"users": ["u1"], "more": 1}, {}):
        with pytest.raises(ValidationError):
            as_declared(httpx.Response(200, json=wrong, request=asked))


def test_a_scenario_is_known_by_value_and_name_and_features_matter(server: Server) -> None:
    scores = [server.client.post("/v1/score", json={**ASK, "features": {"hour": h}}).json()["scores"] for h in (1, 12)]
    assert scores[0] != scores[1]


def test_unknown_ids_are_scored_and_said(server: Server) -> None:
    answer = server.client.post("/v1/score", json={**ASK, "user": "nobody", "items": ["i1", "new", "i1", "new"]}).json()
    assert answer["unknown_items"] == ["new"]
    assert not answer["user_known"]
    assert not answer["knowledge_known"]
    assert len(answer["scores"]) == 4
    assert answer["scores"][0] == pytest.approx(answer["scores"][2], abs=1e-6)
    assert answer["scores"][1] == pytest.approx(answer["scores"][3], abs=1e-6)


def test_a_batch_is_its_requests(server: Server) -> None:
    asked = [
        ASK,
        {**ASK, "scenario": "mail", "user": "u2"},
        {**ASK, "scenario": "search", "user": "u3", "items": ["i9"]},
    ]
    together = server.client.post("/v1/score/batch", json={"requests": asked}).json()["answers"]
    for one, answer in zip(asked, together, strict=True):
        alone = server.client.post("/v1/score", json=one).json()
        assert np.abs(np.array(alone["scores"]) - answer["scores"]).max() < 1e-6


def test_features_of_single_items(server: Server) -> None:
    plain = server.client.post("/v1/score", json=ASK).json()["scores"]
    given = [None, {"price": 9.0, "colour": "red"}, {"tags": ["new", "sale"]}]
    changed = server.client.post("/v1/score", json={**ASK, "item_features": given}).json()["scores"]
    assert changed[0] == pytest.approx(plain[0], abs=1e-7)
    assert changed[1] != plain[1]


def test_a_ranking_is_sorted_and_cut(server: Server) -> None:
    items = [f"i{n}" for n in range(40)]
    scores = server.client.post("/v1/score", json={**ASK, "items": items}).json()["scores"]
    ranked = server.client.post("/v1/rank", json={**ASK, "items": items, "top": 5}).json()["items"]
    order = np.argsort(-np.array(scores), kind="stable")[:5]
    assert [r["item"] for r in ranked] == [items[i] for i in order]
    assert all("thing" in r["title"] for r in ranked)
    popular = server.client.post("/v1/rank", json={k: v for k, v in ASK.items() if k != "items"}).json()["items"]
    assert len(popular) == 10


def test_mean_knowledge_takes_the_place_of_ones_own(server: Server) -> None:
    own, mean = (
        server.client.post("/v1/score", json={**ASK, "knowledge": k}).json()["scores"] for k in ("own", "mean")
    )
    assert own != mean


def test_an_explanation_adds_up(server: Server) -> None:
    asked = {"user": "u1", "scenario": "search", "item": "i2", "features": {"hour": 12}}
    why = server.client.post("/v1/explain", json=asked).json()
    score = server.client.post("/v1/score", json=ASK).json()["scores"][1]
    assert why["score"] == pytest.approx(score, abs=1e-6)
    added = sum(c["contribution"] for c in why["contributions"])
    assert why["mean_logit"] + added + why["remainder"] == pytest.approx(why["logit"], abs=1e-5)
    assert abs(why["remainder"]) < 0.01
    assert 1 / (1 + np.exp(-why["logit"])) == pytest.approx(why["score"], abs=1e-6)
    assert why["branches"]["beside"] + why["branches"]["backbone"] == pytest.approx(why["logit"], abs=1e-5)
    assert why["score_with_mean_user"] != why["score"]
    assert why["score_with_mean_scenario"] != why["score"]
    kinds = {c["kind"] for c in why["contributions"]}
    assert kinds == {"field", "user knowledge", "item knowledge"}


def test_what_is_known_of_people_and_scenarios(server: Server) -> None:
    scenarios = server.client.get("/v1/scenarios").json()["scenarios"]
    assert [s["value"] for s in scenarios] == ["search", "feed", "mail"]
    assert all(s["text"] and len(s["similarity"]) == 3 for s in scenarios)
    assert scenarios[0]["similarity"][0] == pytest.approx(1, abs=1e-3)
    users = server.client.get("/v1/users", params={"prefix": "u2", "limit": 4}).json()["users"]
    assert users == ["u2", "u20", "u21", "u22"]
    knowledge = server.client.get("/v1/users/u1/knowledge").json()
    assert knowledge["snapshot"]
    assert all(len(part["latest"]) <= 3 for part in knowledge["history"])
    assert all(line["time"] < knowledge["snapshot"] for part in knowledge["history"] for line in part["latest"])
    history = server.client.get("/v1/users/u1/history").json()
    assert sum(part["count"] for part in history["scenarios"]) > 0


BAD: list[tuple[str, Any, int, str]] = [
    ("/v1/score", {**ASK, "scenario": "sofa"}, 404, "unknown_scenario"),
    ("/v1/score", {**ASK, "items": []}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "items": ["i"] * 2001}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "items": "i1"}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "items": [None]}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "user": ""}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "user": "x" * 300}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "usr": "u1"}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "features": {"hours": 1}}, 422, "unknown_field"),
    ("/v1/score", {**ASK, "features": {"user": "u2"}}, 422, "id_field"),
    ("/v1/score", {**ASK, "features": {"hour": {"of": 1}}}, 422, "invalid_request"),
    ("/v1/score", {**ASK, "features": {"price": "dear"}}, 422, "wrong_value"),
    ("/v1/score", {**ASK, "features": {"colour": ["red"]}}, 422, "wrong_value"),
    ("/v1/score", {**ASK, "item_features": [{}]}, 422, "wrong_length"),
    ("/v1/score/batch", {"requests": [{**ASK, "items": ["i"] * 1500}] * 2}, 422, "too_many_items"),
    ("/v1/rank", {**ASK, "top": 0}, 422, "invalid_request"),
    ("/v1/explain", {"user": "u1", "scenario": "sofa", "item": "i1"}, 404, "unknown_scenario"),
    ("/v1/events", {"events": []}, 422, "invalid_request"),
    ("/v1/events", {"events": [{"user": "u", "item": "i", "scenario": "sofa"}]}, 404, "unknown_scenario"),
    (
        "/v1/events",
        {"events": [{"user": "u", "item": "i", "scenario": "mail", "behaviour": "slept"}]},
        422,
        "unknown_behaviour",
    ),
    (
        "/v1/events",
        {"events": [{"user": "u", "item": "i", "scenario": "mail", "time": "2199-01-01T00:00:00Z"}]},
        422,
        "time_ahead",
    ),
    ("/v1/nothing", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("path", "body", "status", "code"), BAD)
def test_what_cannot_be_answered_is_refused_in_words(
    server: Server, path: str, body: Any, status: int, code: str
) -> None:
    answer = server.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "Traceback" not in answer.text
    assert "/" not in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"user": NaN, "scenario": "mail", "items": ["i1"]}', "application/json", 422),
        (b'{"user": "u1", "scenario": "mail", "items": ["i1"], "features": {"price": NaN}}', "application/json", 422),
        (b'{"user": "u1", "scenario": "mail", "items": ["i1"], "features": {"price": 1e999}}', "application/json", 422),
        (b'{"user": "\\ud800", "scenario": "mail", "items": ["i1"]}', "application/json", 422),
        (b'{"user": "u1", "scenario": "mail", "items": ["../../etc/passwd", "\\u0000"]}', "application/json", 200),
        (b'{"user": "u1", "scenario": "mail", "items": [' + b"9" * 5000 + b"]}", "application/json", 400),
        (b"user=u1", "application/x-www-form-urlencoded", 415),
        (b'{"user": "u1", "scenario": "mail", "items": ["i1"]}', "text/plain", 415),  # what any web page may send
        (b'{"user": "u1", "scenario": "mail", "items": ["i1"]}', "", 415),
        (b"\xff\xfe", "application/json", 400),
        (b" " * (2 << 20), "application/json", 413),
    ],
)
def test_odd_bodies(server: Server, content: bytes, kind: str, status: int) -> None:
    answer = server.client.post("/v1/score", content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text


def test_a_body_in_pieces_is_limited_too(server: Server) -> None:
    answer = server.client.post("/v1/score", content=iter([b" " * (1 << 19)] * 4))
    assert answer.status_code == 413


def test_scenarios_are_listed_in_the_refusal(server: Server) -> None:
    message = server.client.post("/v1/score", json={**ASK, "scenario": "?"}).json()["error"]["message"]
    assert all(name in message for name in ("search", "feed", "mail"))


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/scenarios", "/v1/nothing", "/metrics", "/openapi.json"])
def test_without_the_token_nothing_is_told(server: Server, given: str | None, path: str) -> None:
    headers = {} if given is None else {"authorization": given}
    answer = httpx.request("POST", f"http://127.0.0.1:{server.port}{path}", headers=headers, json=ASK)
    assert answer.status_code == 401
    assert answer.json() == {"error": {"code": "unauthorized", "message": "a bearer token is needed"}}


def test_health_and_page_need_no_token(server: Server) -> None:
    for path in ("/healthz", "/readyz", "/", "/page/app.js", "/page/style.css"):
        answer = httpx.get(f"http://127.0.0.1:{server.port}{path}")
        assert answer.status_code == 200
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert httpx.get(f"http://127.0.0.1:{server.port}/page/..%2F__init__.py").status_code == 404


def test_metrics_count(server: Server) -> None:
    server.client.post("/v1/score", json={**ASK, "user": "nobody at all", "items": ["no such item"]})
    text = server.client.get("/metrics").text
    assert 'llm4msr_unknown_ids_total{kind="item",scenario="search"}' in text
    assert 'llm4msr_scored_users_total{knowledge="none",scenario="search"}' in text
    assert 'llm4msr_requests_total{route="/v1/score",status="200"}' in text
    assert "llm4msr_request_seconds_bucket" in text
    assert 'llm4msr_scores_total{scenario="search",up_to=' in text


def test_without_a_token_there_are_no_admin_calls_and_too_many_requests_are_refused(
    bundle_path: Path, tmp_path: Path
) -> None:
    with serving(bundle_path, tmp_path, "--concurrency", "1") as running:
        assert running.client.post("/v1/admin/reload").status_code == 404
        statuses = _at_once(running, 40)
        assert set(statuses) == {200, 429}
        eventually(lambda: running.client.post("/v1/score", json=ASK).status_code == 200)


def _at_once(running: Server, count: int) -> list[int]:
    """Statuses of explanations, which take a while, asked for at once."""
    import asyncio

    async def ask() -> list[int]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=str(running.client.base_url), limits=limits, timeout=30) as client:
            body = {"user": "u1", "scenario": "search", "item": "i2"}
            answers = await asyncio.gather(*(client.post("/v1/explain", json=body) for _ in range(count)))
        assert all(a.status_code == 200 or a.headers["retry-after"] == "1" for a in answers)
        return [a.status_code for a in answers]

    return asyncio.run(ask())


@pytest.mark.slow
def test_processes_whose_parent_was_killed_leave_the_port(bundle_path: Path, tmp_path: Path) -> None:
    with serving(bundle_path, tmp_path, "--workers", "2") as running:
        assert running.client.get("/readyz").status_code == 200
        running.process.kill()
        running.process.wait()

        def refused() -> bool:
            try:
                httpx.get(f"http://127.0.0.1:{running.port}/readyz", timeout=5)
            except httpx.TransportError:
                return True
            return False

        eventually(refused)


def test_a_title_may_be_long_and_not_endless(server: Server) -> None:
    found = [
        server.client.post("/v1/items", json={"items": [{"item": "long", "columns": {"title": "x" * size}}]})
        for size in (10_000, 10_001)
    ]
    assert [answer.status_code for answer in found] == [200, 422]
    assert "a text of at most 10,000 characters" in found[1].json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("/v1/events", {"events": [EVENT, {**EVENT, "scenario": "sofa"}]}, "events.1"),
        (
            "/v1/items",
            {"items": [{"item": "a", "columns": {"price": 1}}, {"item": "b", "columns": {"price": "x"}}]},
            "items.1",
        ),
        ("/v1/score/batch", {"requests": [ASK, ASK, {**ASK, "scenario": "sofa"}]}, "requests.2"),
        ("/v1/score/batch", {"requests": [ASK, {**ASK, "features": {"hours": 3}}]}, "requests.1"),
    ],
)
def test_the_part_of_a_call_that_is_wrong_is_named(server: Server, path: str, body: Any, part: str) -> None:
    answer = server.client.post(path, json=body)
    assert answer.status_code in (404, 422)
    assert answer.json()["error"]["message"].startswith(f"{part}: ")
