"""What the server does when something fails that should not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest

from llm4msr.serving import current
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
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
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
        raise RuntimeError("odd")

    monkeypatch.setattr(watched, "_look", look)

    async def watch() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watched.watch(), 0.5)

    asyncio.run(watch())
    assert len(looks) > 2
    assert "odd" in caplog.text
