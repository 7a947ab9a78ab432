"""What people can read about a user: the history, and the LLM's text with the history it was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from llm4msr.errors import nearest
from llm4msr.knowledge.summaries import parse_interests
from llm4msr.serving.bundle import Bundle
from llm4msr.serving.fields import raw_text
from llm4msr.serving.live import Live
from llm4msr.serving.requests import RequestError
from llm4msr.serving.states import Events
from llm4msr.times import iso


class Positive(BaseModel):
    """A line of a history; `since_export` is true if the bundle does not have it."""

    time: str
    item: str
    title: str
    behaviour: str
    since_export: bool


class ScenarioHistory(BaseModel):
    """A user's positives in one scenario: how many there are, and the latest ones, latest first."""

    scenario: str
    count: int
    latest: list[Positive]


class UserHistory(BaseModel):
    """A user's positives by scenario."""

    user: str
    scenarios: list[ScenarioHistory]


class UserKnowledge(BaseModel):
    """What the LLM wrote of a user. `common` and `distinct` are the interests that the text lists, if it does.

    If there is no snapshot, `note` says why.
    """

    user: str
    snapshot: str | None = None
    text: str = ""
    finish_reason: str = ""
    common: list[str] = []
    distinct: dict[str, list[str]] = {}
    history: list[ScenarioHistory] = []
    note: str = ""


def history_of(bundle: Bundle, live: Live, user: str, most: int) -> UserHistory:
    """The latest positives of each scenario. Raises `RequestError` for a user that nothing is known of."""
    code = bundle.lookup.number("user", user)
    since = live.history(user)
    if code < 0 and not since:
        raise unknown_user(bundle, user)
    titles = dict(zip((e.item for e in since), titles_of_items(bundle, live, [e.item for e in since]), strict=True))
    found = []
    for old, declared in zip(_by_scenario(bundle, bundle.history(code), most), bundle.schema.scenarios, strict=True):
        new = [
            Positive(
                time=iso(event.time),
                item=event.item,
                title=titles[event.item],
                behaviour=event.behaviour,
                since_export=True,
            )
            for event in since
            if event.scenario == declared.value
        ]
        latest = sorted([*old.latest, *new], key=lambda line: line.time, reverse=True)[:most]
        found.append(ScenarioHistory(scenario=declared.value, count=old.count + len(new), latest=latest))
    return UserHistory(user=user, scenarios=found)


def knowledge_of(bundle: Bundle, live: Live, user: str) -> UserKnowledge:
    """The text of the latest snapshot and its history. Raises `RequestError` for a user that nothing is known of."""
    code = bundle.lookup.number("user", user)
    if code < 0:
        if not live.history(user, 1):
            raise unknown_user(bundle, user)
        return UserKnowledge(user=user, note="This user is known by events since the bundle was made alone.")
    raw = bundle.lookup.text("knowledge", code)
    if raw is None:
        return UserKnowledge(user=user, note=_why_nothing(bundle))
    record = json.loads(raw)
    events = bundle.history(code)
    before = events[events.time < record["time"]]
    interests = parse_interests(record["text"], [s.title for s in bundle.schema.scenarios])
    knowledge = bundle.manifest["knowledge"] or {}
    return UserKnowledge(
        user=user,
        snapshot=record["snapshot"],
        text=record["text"],
        finish_reason=record["finish_reason"],
        common=[] if interests is None else interests.common,
        distinct={} if interests is None else interests.distinct,
        history=_by_scenario(bundle, before, knowledge.get("history", 1)),
    )


def _why_nothing(bundle: Bundle) -> str:
    if bundle.manifest["knowledge"] is None:
        return "The model was trained without knowledge."
    if bundle.lookup.is_empty("knowledge"):
        return (
            "The LLM read no prompts of users: what the model knows of a user is composed of the items in the history."
        )
    return "No prompt was made of this user: there was no history at any snapshot."


def unknown_user(bundle: Bundle, user: str) -> RequestError:
    """The error for a user that nothing is known of, with ids that start alike."""
    close = next((found for n in (3, 2, 1, 0) if (found := bundle.lookup.starting_with("user", user[:n], 5))), [])
    return RequestError(404, "unknown_user", f"there is no user {user[:80]!r}; {nearest(user[:80], close)}")


def _by_scenario(bundle: Bundle, events: Events, most: int) -> list[ScenarioHistory]:
    found = []
    for d, declared in enumerate(bundle.schema.scenarios):
        there = np.flatnonzero(events.scenario == d)
        lines = [
            Positive(
                time=iso(int(events.time[place])),
                item=bundle.lookup.text("item id", int(events.item[place])) or "",
                title=_title(bundle, int(events.item[place])) or "",
                behaviour=bundle.schema.behaviours[int(events.behaviour[place])].name,
                since_export=False,
            )
            for place in there[::-1][:most].tolist()
        ]
        found.append(ScenarioHistory(scenario=declared.value, count=len(there), latest=lines))
    return found


def titles_of_items(bundle: Bundle, live: Live, items: Sequence[str]) -> list[str]:
    """The items' names for people: from the catalogue, from the columns of new items, or else the ids."""
    titles = bundle.lookup.texts("title", bundle.lookup.numbers("item", items).tolist())
    new = live.new_items([item for item, title in zip(items, titles, strict=True) if title is None])
    column = bundle.schema.item_text.title or bundle.schema.item_text.category or ""
    return [title or raw_text(new.get(item, {}).get(column)) or item for item, title in zip(items, titles, strict=True)]


def _title(bundle: Bundle, item: int) -> str | None:
    return bundle.lookup.text("title", item)
