"""An explanation of a user's knowledge: the LLM's prompt, its text, and how the vector was computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.knowledge.engines.base import EngineFor
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.stores import Stores
from llm4msr.knowledge.written import text_on_request
from llm4msr.times import as_datetime

_HOW = {
    "last_generated": "the hidden state of the last token that the LLM generated",
    "mean_generated": "the mean hidden state of the tokens that the LLM generated",
    "closing": "the hidden state of the last token of a closing question after the text",
    "last_prompt": "the hidden state of the prompt's last token; the model needs no text",
    "mean_prompt": "the mean hidden state of the prompt's tokens; the model needs no text",
}

_FEW = 20_000
"""With more users than this, the nearest ids are not looked for."""


@dataclass(frozen=True)
class Positive:
    """One line of a history."""

    time: datetime
    scenario: str
    behaviour: str
    item: str


@dataclass(frozen=True)
class Explanation:
    """Everything about one user's knowledge at its latest snapshot.

    `history` has the latest positives of each scenario: those that the prompt names or, without a prompt, those of all
    time. `prompt` and `text` are None if no positive is before any snapshot, or if the LLM was not asked about users.
    `how` says how the vector was computed, or why there is none. `on_request` says that the text was written for people
    only, not for the vector. `counts` are the positives by scenario over all time, which composed states are made of.
    """

    user: str
    snapshot: datetime | None
    history: list[Positive]
    prompt: str | None
    text: str | None
    finish_reason: str
    on_request: bool
    how: str
    counts: dict[str, int]


def code_of_user(data: PreparedData, user: str) -> int:
    """The code of a user's id. Raises `InputError` for an unknown id, with the nearest ids if there are few users."""
    ids = data.users["user"]
    found = ids.index_of(user)
    if found is None:
        close = nearest(user, ids) if len(ids) <= _FEW else f"there are {len(ids)} users"
        raise InputError(f"{data.path}: there is no user {user!r}; {close}")
    return found


def explain_user(data: PreparedData, folder: KnowledgeFolder, user: str, engine: EngineFor) -> Explanation:
    """Explain one user. `engine` is called only if a text has to be written; the text is then kept in the store.

    Raises `InputError` for a user that the data does not have, and for an engine that the knowledge was not made with.
    """
    found = code_of_user(data, user)
    config = folder.config
    events = data.positives.filter(pl.col("user") == found)
    names = [s.title for s in data.schema.scenarios]
    by_scenario = dict(events["scenario"].value_counts().iter_rows())
    counts = {name: int(by_scenario.get(d, 0)) for d, name in enumerate(names)}
    snapshots = folder.index.filter((pl.col("level") == "user") & (pl.col("subject") == found)).sort("time")
    how = _HOW[config.user.pooling]
    if snapshots.is_empty():
        asked = "user" in config.levels
        how = "no positive is before any snapshot" if asked else "the language model was not asked about users"
        history = _history(data, events, names, folder.writer(data).title, config.history)
        return Explanation(user, None, history, None, None, "", on_request=False, how=how, counts=counts)
    latest = snapshots.row(-1, named=True)
    with Stores(folder.path, read_only=True) as stores:
        answer = stores.read(latest["key"])
    if answer is None:
        raise InputError(f"{folder.path}: the answer for user {user!r} is missing; run `llm4msr reason` again")
    writer = folder.writer(data)
    prompt = writer.user(found, latest["time"])
    shown = events.filter(pl.col("time") < latest["time"])
    history = _history(data, shown, names, writer.title, config.history)
    on_request = not config.user.generates
    if on_request and prompt is not None:
        answer = text_on_request(folder, prompt, engine)
    return Explanation(
        user,
        as_datetime(latest["time"]),
        history,
        prompt,
        answer.text,
        answer.finish_reason,
        on_request,
        how,
        counts,
    )


def _history(
    data: PreparedData, events: pl.DataFrame, names: list[str], title: Callable[[int], str], most: int
) -> list[Positive]:
    """The most recent positives of each scenario, oldest first."""
    shown = events.group_by("scenario", maintain_order=True).tail(most).sort("time", "scenario", "item")
    return [
        Positive(as_datetime(time), names[scenario], data.schema.behaviours[kind].name, title(item))
        for time, scenario, kind, item in shown.select("time", "scenario", "behaviour", "item").iter_rows()
    ]
