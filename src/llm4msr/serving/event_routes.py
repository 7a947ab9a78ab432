"""A server's routes for what happens while it serves: events, and new items."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response

from llm4msr.errors import InputError, nearest
from llm4msr.serving.current import Current, Serving
from llm4msr.serving.fields import item_columns
from llm4msr.serving.log import LOG, EventRecord, ItemRecord, Record
from llm4msr.serving.metrics import Metrics
from llm4msr.serving.operation import as_json
from llm4msr.serving.requests import (
    Event,
    EventsAnswer,
    EventsRequest,
    ItemsAnswer,
    ItemsRequest,
    RequestError,
    naming,
)
from llm4msr.times import microseconds

_AHEAD = timedelta(days=1)
"""How far the time of an event may be ahead of the server's clock."""


def add_events(app: FastAPI, current: Current, metrics: Metrics) -> None:
    """Add the routes."""

    @app.post("/v1/events", response_model=EventsAnswer, tags=["events"])
    async def events(body: EventsRequest) -> Response:
        """Positive interactions. They are durable, and part of their users' states, before the answer is sent."""
        serving, now = current.now, datetime.now(UTC)
        found = []
        for place, event in enumerate(body.events):
            with naming(f"events.{place}"):
                found.append(_event(serving, event, now))
        queued = _queued(serving, [event.item for event in found])
        records: list[Record] = [*found, *(ItemRecord(item, {}) for item in queued)]
        new = (await _written(current, records))[: len(found)]
        metrics.happened(sum(new), len(new) - sum(new))
        return as_json({"accepted": sum(new), "duplicates": len(new) - sum(new), "queued_items": queued})

    @app.post("/v1/items", response_model=ItemsAnswer, tags=["events"])
    async def items(body: ItemsRequest) -> Response:
        """New items by their raw columns: scored by their fields from now on, and queued for the next `reason`.

        An item that is sent again has only the columns of the last time.
        One that only events had named when the bundle was made is scored by them from the next bundle on.
        Items that the catalogue has stay as they are until the next bundle.
        """
        serving = current.now
        blank = serving.bundle.fields.rows(-1, np.array([-1], np.int32), 0)
        for place, item in enumerate(body.items):
            with naming(f"items.{place}"):
                serving.bundle.fields.give_item(blank, item.columns, 0)
        names = list(dict.fromkeys(item.item for item in body.items))
        queued = _queued(serving, names, with_blank=True)
        waiting = set(queued)
        await _written(current, [ItemRecord(i.item, i.columns) for i in body.items if i.item in waiting])
        known = [name for name in names if name not in waiting]
        unread = sorted({c for item in body.items for c in item.columns} - item_columns(serving.bundle.schema))
        return as_json({"queued_items": queued, "known_items": known, "unread_columns": unread})


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
    return EventRecord(event.user, event.item, scenario, microseconds(moment), behaviour)


def _queued(serving: Serving, items: Sequence[str], *, with_blank: bool = False) -> list[str]:
    """The distinct items that the bundle does not have and, `with_blank`, those that it has without any column.

    The columns of these are not known yet: the item was in an event, and in no table.
    """
    distinct = list(dict.fromkeys(items))
    codes = serving.bundle.lookup.numbers("item", distinct)
    blank = serving.bundle.is_blank_item if with_blank else lambda code: False
    return [item for item, code in zip(distinct, codes.tolist(), strict=True) if code < 0 or blank(code)]


async def _written(current: Current, records: list[Record]) -> list[bool]:
    try:
        return await current.events.write(records)
    except (OSError, InputError) as error:
        LOG.error("events cannot be written: %s", error)
        raise RequestError(503, "log_unavailable", "events cannot be made durable now; send them again") from None
