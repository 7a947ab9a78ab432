"""The sources of raw tables: one module per data set, found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm4msr.data.sources.amazon2014 import Amazon2014Config, amazon2014
from llm4msr.data.sources.amazon2018 import Amazon2018Config, amazon2018
from llm4msr.data.sources.completejourney import NOTICE, CompleteJourneyConfig, complete_journey
from llm4msr.data.sources.kuaisar import KuaiSARConfig, kuaisar
from llm4msr.data.sources.movielens import MovieLensConfig, movielens
from llm4msr.data.tables import Tables
from llm4msr.errors import InputError, nearest
from llm4msr.validation import Settings


@dataclass(frozen=True)
class Source:
    """A known data set: the type of its settings, its reader, and a notice to show to the user."""

    config: type[Settings]
    read: Callable[[Any], Tables]
    notice: str = ""


SOURCES = {
    "amazon2014": Source(Amazon2014Config, amazon2014),
    "amazon2018": Source(Amazon2018Config, amazon2018),
    "completejourney": Source(CompleteJourneyConfig, complete_journey, NOTICE),
    "kuaisar": Source(KuaiSARConfig, kuaisar),
    "movielens": Source(MovieLensConfig, movielens),
}


def find_source(name: str) -> Source:
    """The source with this name; raises `InputError` for an unknown name."""
    if name not in SOURCES:
        raise InputError(f"there is no source {name!r}; {nearest(name, SOURCES)}")
    return SOURCES[name]


def read_source(name: str, settings: Mapping[str, Any]) -> Tables:
    """Read the tables of a known data set; raises `InputError` for an unknown name or a wrong setting."""
    source = find_source(name)
    return source.read(source.config.checked(dict(settings), f"source {name}"))
