"""Parses a user's summary: the interests that scenarios share, and those of each scenario, if the text lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_COMMON = re.compile(r"\bcommon|\bshared\b|共同")
_DISTINCT = re.compile(r"\bdistinct|\bunique\b|\bspecific\b|独特")
_END = re.compile(r"^(in )?(summary|conclusion|overall)\b|^总结")
_BULLET = re.compile(r"^\s*(?:[-*•·]|\(?\d{1,2}[.)、])\s+")
_LONGEST_HEADING = 90


@dataclass(frozen=True)
class Interests:
    """Interests in the words of the text: common ones, and distinct ones for each scenario title."""

    common: list[str] = field(default_factory=list)
    distinct: dict[str, list[str]] = field(default_factory=dict)


def parse_interests(text: str, scenarios: Sequence[str]) -> Interests | None:
    """The interests that a summary lists under headings, or None if it has no such headings.

    A heading is a short line that names common interests, or the distinct interests of a scenario. The lines up to the
    next heading are its list. After the first heading with "distinct", a scenario's title alone is a heading too.

    >>> parse_interests("Common interests:\\n1. **Tea**: often\\nDistinct interests in Search:\\n- maps", ["Search"])
    Interests(common=['Tea: often'], distinct={'Search': ['maps']})
    """
    common: list[str] = []
    distinct: dict[str, list[str]] = {}
    place: list[str] | None = None
    seen_distinct = False
    for raw in text.splitlines():
        line = _plain(raw)
        if not line:
            continue
        heading, rest = _heading(raw, line)
        scenario = _named(heading, scenarios)
        if heading and _END.search(heading.lower()):
            place = None
        elif heading and _COMMON.search(heading.lower()) and not _DISTINCT.search(heading.lower()):
            place = common
        elif heading and _DISTINCT.search(heading.lower()):
            seen_distinct = True
            place = None if scenario is None else distinct.setdefault(scenario, [])
        elif heading and scenario is not None and seen_distinct:
            place = distinct.setdefault(scenario, [])
        elif place is not None:
            place.append(line)
            continue
        if rest and place is not None:
            place.append(rest)
    if not common and not any(distinct.values()):
        return None
    return Interests(common, {title: found for title, found in distinct.items() if found})


def _plain(line: str) -> str:
    """The line without bullet, number and emphasis."""
    return re.sub(r"\*\*|__|^#+\s*", "", _BULLET.sub("", line.strip())).strip()


def _heading(raw: str, line: str) -> tuple[str, str]:
    """The heading at the start of a line and the text after it on the same line; empty if there is no heading."""
    before, colon, after = line.replace("\uff1a", ":").partition(":")
    marked = raw.strip().startswith("#") or (raw.strip().startswith("**") and raw.strip().rstrip(":").endswith("**"))
    if (colon or marked) and len(before) <= _LONGEST_HEADING:
        return before.strip(), after.strip()
    return "", ""


def _named(heading: str, scenarios: Sequence[str]) -> str | None:
    """The scenario that a heading names; if several titles fit, the longest."""
    found = [title for title in scenarios if title.lower() in heading.lower()]
    return max(found, key=len, default=None)
