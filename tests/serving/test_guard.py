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

from llm4msr.folders import MANIFEST
from llm4msr.serving import current
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.current import Current
from llm4msr.serving.guard import Guard, Limits
from llm4msr.serving.metrics import Metrics


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

    monkeypatch.setattr(watched, "_follow", look)

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
    watched._look()
    assert watched.now.bundle.fingerprint == first
    shutil.copytree(other_bundle_path, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    monkeypatch.setattr(watched, "_next_try", float("inf"))
    watched._look()
    assert watched.now.bundle.fingerprint == first
    monkeypatch.setattr(watched, "_next_try", 0.0)
    watched._look()
    assert watched.now.bundle.fingerprint == Bundle.open(other_bundle_path).fingerprint


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
