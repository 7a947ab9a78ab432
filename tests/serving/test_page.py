"""The page in a real browser: by mouse and by keyboard, wide and narrow, light and dark, with hostile texts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llm4msr.data.prepare import prepare
from llm4msr.data.sources.frames import from_frames
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import reason
from llm4msr.schema import Schema
from llm4msr.serving.export import export_bundle
from tests.conftest import FAST, SHOP, shop_frames
from tests.serving.bundles import train_shop
from tests.serving.conftest import TOKEN, Server, serving

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=\"document.title='broken into'\"><b>bold</b>"
SCREENSHOTS = Path(os.environ.get("LLM4MSR_SCREENSHOTS", "test-artifacts"))
Page = Any


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_engine: TransformersEngine) -> Iterator[Server]:
    """A server, with a token, of a shop whose names and texts are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    frames = shop_frames()
    frames["items"] = frames["items"].with_columns((pl.col("title") + HOSTILE).alias("title"))
    scenarios = Schema.checked(SHOP, "the shop").model_dump(mode="json")["scenarios"]
    hostile = [{**scenario, "description": HOSTILE, "notes": HOSTILE} for scenario in scenarios]
    schema = Schema.checked({**SHOP, "name": HOSTILE, "scenarios": hostile}, "the hostile shop")
    data = prepare(from_frames(schema, **frames), folder / "data")
    reason(data, tiny_engine, folder / "knowledge", FAST)
    knowledge = KnowledgeFolder.open(folder / "knowledge", data)
    settings = {"source": "both", "scenario": "parallel", "hidden": 8}
    run = train_shop(folder / "run", data, knowledge, "star", "llm4msr", settings)
    with serving(export_bundle(run, folder / "bundle"), folder / "server", token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "no Chromium is installed; on Debian: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


def _opened(browser: Any, server: Server, width: int, scheme: str, problems: list[str]) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    base = f"http://127.0.0.1:{server.port}/"
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((base, "data:")) else None)
    page.goto(base)
    page.get_by_label("This server asks for a token").fill(TOKEN)
    page.get_by_role("button", name="Use it").click()
    page.wait_for_selector("ol.ranked button")
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")])
def test_everything_is_shown_and_nothing_is_markup(browser: Any, hostile: Server, width: int, scheme: str) -> None:
    problems: list[str] = []
    page = _opened(browser, hostile, width, scheme, problems)
    page.locator("ol.ranked button").first.click()
    page.wait_for_selector("#why table")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"page-{width}-{scheme}.png", full_page=True)
    text = page.locator("body").inner_text()
    assert text.count(HOSTILE) > 20
    assert page.locator("main img, main b:not(.up), main script").count() == 0
    assert "broken into" not in page.title().replace(HOSTILE, "")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if scheme == "dark" else "rgb(251, 250, 247)"
    )
    assert problems == []
    page.close()


def test_by_the_keyboard_alone(browser: Any, hostile: Server) -> None:
    problems: list[str] = []
    page = _opened(browser, hostile, 1200, "light", problems)
    page.locator(".skip").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "user"
    page.keyboard.press("Control+A")
    page.keyboard.type("u2", delay=30)
    page.wait_for_selector("#found li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#found li[aria-selected=true]").inner_text()
    page.keyboard.press("Enter")
    page.locator("#person-title", has_text=f"User {chosen}").wait_for()
    assert chosen.startswith("u2")
    page.locator("[role=tab][aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#ranking-note", has_text="feed").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "feed"
    page.locator("ol.ranked button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#why table")
    assert problems == []
    page.close()


def test_an_unknown_user_is_said_in_words(browser: Any, hostile: Server) -> None:
    page = _opened(browser, hostile, 1200, "light", [])
    page.locator("#user").fill("<b>nobody</b>")
    page.get_by_role("button", name="Show").click()
    page.locator("#status", has_text="there is no user").wait_for()
    assert page.locator("#status b").count() == 0
    page.close()
