"""What the server does when something fails that should not."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest

from llm4msr.errors import InputError
from llm4msr.folders import MANIFEST
from llm4msr.serving import current
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.current import Current
from llm4msr.serving.guard import Guard, Limits
from llm4msr.serving.metrics import Metrics
from llm4msr.serving.operation import handle_errors


def test_an_error_of_ours_is_counted() -> None:
    app, metrics = FastAPI(), Metrics()

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    transport = httpx.ASGITransport(Guard(app, metrics, None, Limits()), raise_app_exceptions=False)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/broken")).status_code

    assert asyncio.run(ask()) == 500
    assert 'llm4msr_requests_total{route="/broken",status="500"} 1' in generate_latest(metrics.registry).decode()


def test_the_watch_goes_on_after_any_error(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(current, "_PAUSE", 0.01)
    watched = Current(bundle_path, tmp_path)
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        raise RuntimeError(f"odd {min(len(looks), 2)}")

    monkeypatch.setattr(watched, "_reload_if_changed", look)

    async def watch() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.watch(), 0.5)

    asyncio.run(watch())
    assert len(looks) > 2
    assert [record.message for record in caplog.records] == [
        f"the bundle before is served on: RuntimeError('odd {n}')"
        for n in (1, 2)  # the same failure is told once
    ]


def test_a_bundle_that_was_still_being_copied_is_opened_later(
    bundle_path: Path, other_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle_path)
    watched = Current(link, tmp_path / "state")
    first = watched.now.bundle.fingerprint
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / MANIFEST).write_bytes((other_bundle_path / MANIFEST).read_bytes())
    (tmp_path / "next").symlink_to(copied)
    os.replace(tmp_path / "next", link)
    watched._poll()
    assert watched.now.bundle.fingerprint == first
    shutil.copytree(other_bundle_path, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    monkeypatch.setattr(watched, "_next_try", float("inf"))
    watched._poll()
    assert watched.now.bundle.fingerprint == first
    monkeypatch.setattr(watched, "_next_try", 0.0)
    watched._poll()
    assert watched.now.bundle.fingerprint == Bundle.open(other_bundle_path).fingerprint


def test_a_process_that_starts_while_the_link_leads_to_a_broken_bundle_serves_the_one_before(
    bundle_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link, state = tmp_path / "current", tmp_path / "state"
    link.symlink_to(bundle_path)
    with pytest.raises(InputError):
        Current(tmp_path / "nowhere", state)
    first = Current(link, state).now.bundle.fingerprint
    broken = tmp_path / "broken"
    broken.mkdir()
    (tmp_path / "next").symlink_to(broken)
    os.replace(tmp_path / "next", link)
    started = Current(link, state)
    assert started.now.bundle.fingerprint == first
    assert "the bundle before is served on" in caplog.text
    broken.rmdir()
    shutil.copytree(bundle_path, broken)
    with caplog.at_level("INFO"):
        started._poll()
    assert started._failures == {}
    assert "leads to the served bundle again" in caplog.text
    assert (state / "served").read_text() == str(broken)


def test_the_folder_that_is_remembered_is_the_one_that_was_opened(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, state, broken = tmp_path / "current", tmp_path / "state", tmp_path / "broken"
    broken.mkdir()
    link.symlink_to(bundle_path)
    warm = current._warm

    def swapped_meanwhile(serving: current.Serving) -> None:
        (tmp_path / "next").symlink_to(broken)
        os.replace(tmp_path / "next", link)
        warm(serving)

    monkeypatch.setattr(current, "_warm", swapped_meanwhile)
    Current(link, state)
    assert (state / "served").read_text() == str(bundle_path.resolve())


def test_metrics_are_answered_however_many_requests_there_are() -> None:
    app, metrics = FastAPI(), Metrics()

    @app.get("/metrics")
    async def text() -> str:
        return "counts"

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(0.2)
        return "late"

    guarded = Guard(app, metrics, None, Limits(concurrency=1, seconds=0.1))

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [client.get(path) for path in ("/slow", "/metrics", "/slow")]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [503, 200, 429]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(OSError("gone"), 503, "storage_unavailable"), (RuntimeError("odd"), 500, "internal_error")],
)
def test_whatever_fails_is_answered_in_the_promised_form(error: Exception, status: int, code: str) -> None:
    app = FastAPI()
    handle_errors(app)

    @app.get("/broken")
    async def broken() -> None:
        raise error

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/broken")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::2]", 403),
    ],
)
def test_without_a_token_a_request_must_name_this_machine(host: str, status: int) -> None:
    assert _answers(None, {"host": host}).status_code == status
    assert _answers("secret", {"host": host, "authorization": "Bearer secret"}).status_code == 200


def _answers(token: str | None, headers: dict[str, str]) -> httpx.Response:
    app = FastAPI()

    @app.get("/known")
    async def known() -> str:
        return "here"

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(app, Metrics(), token, Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/known", headers=headers)

    return asyncio.run(ask())
