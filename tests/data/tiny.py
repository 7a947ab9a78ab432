"""A log of ten rows that the tests of the data room change one thing in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.schema import Schema


def schema(fields: list[dict[str, Any]] | None = None, *, columns: dict[str, Any] | None = None, **more: Any) -> Schema:
    """Scenarios a and b, one categorical field `hour`; a column role that is given as None is left out."""
    roles = {"user": "user", "item": "item", "scenario": "place", "time": "time", "time_unit": "s", "label": "click"}
    raw: dict[str, Any] = {
        "name": "tiny",
        "columns": {role: name for role, name in {**roles, **(columns or {})}.items() if name is not None},
        "scenarios": [{"value": "a"}, {"value": "b"}],
        "fields": fields if fields is not None else [{"name": "hour", "side": "context", "min_count": 1}],
        **more,
    }
    return Schema.checked(raw, "tiny.toml")


def log(**changed: Any) -> pl.DataFrame:
    """Ten impressions, one a second, of users u0, u1, u2 and items i0, i1; every third is a click."""
    columns: dict[str, Any] = {
        "user": ["u0", "u1", "u2", "u0", "u1", "u2", "u0", "u1", "u2", "u0"],
        "item": ["i0", "i1"] * 5,
        "place": ["a", "a", "b", "b", "a", "a", "b", "b", "a", "b"],
        "time": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        "click": [1, 0, 0, 1, 0, 0, 1, 0, 0, 1],
        "hour": ["9", "9", "8", "8", "9", "7", "8", "9", "6", "9"],
    }
    return pl.DataFrame({**columns, **changed}, strict=False)


def prepared(
    folder: Path,
    interactions: Any = None,
    of: Schema | None = None,
    *,
    max_rejected: float = 0.05,
    history_share: float = 0.0,
    **tables: Any,
) -> PreparedData:
    """`prepare` of the tiny log, or of what replaces it, into `folder`."""
    source = log() if interactions is None else interactions
    read = from_frames(of or schema(), source, **tables)
    return prepare(read, folder, max_rejected=max_rejected, history_share=history_share)
