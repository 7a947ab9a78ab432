"""Times: microseconds since 1970 inside the program, UTC where no zone is given, ISO 8601 for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds in each unit of a time column."""
DAY = 86_400_000_000
"""Microseconds in a day."""
_START = datetime(1970, 1, 1, tzinfo=UTC)


def as_utc(moment: datetime) -> datetime:
    """The moment with a zone: a time without one is UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC.

    >>> microseconds(datetime(1970, 1, 2))
    86400000000
    """
    return (as_utc(moment) - _START) // timedelta(microseconds=1)


def as_datetime(time: int) -> datetime:
    """A time in microseconds as a `datetime` in UTC."""
    return _START + timedelta(microseconds=time)


def iso(time: int) -> str:
    """A time in microseconds as ISO 8601 in UTC.

    >>> iso(1_500_000)
    '1970-01-01T00:00:01.500000+00:00'
    """
    return as_datetime(time).isoformat()
