"""The types of a server's requests and answers; they are also its OpenAPI schemas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from llm4msr.times import as_utc
from llm4msr.validation import Settings

MOST_ITEMS = 2000
MOST_REQUESTS = 64
MOST_EVENTS = 1000
_LONGEST, LONGEST_VALUE = 256, 10_000
"""Characters of ids and names, and of values such as titles."""
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


class RequestError(Exception):
    """A request that cannot be answered: the HTTP status, a code for programs, and a message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Say in the message of a `RequestError` which part of the request's body it is about."""
    try:
        yield
    except RequestError as error:
        raise RequestError(error.status, error.code, f"{part}: {error.message}") from None


def _whole_number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _whole_numbers_as_texts(values: Any) -> Any:
    return [str(v) if type(v) is int else v for v in values] if isinstance(values, list) else values


def _unicode(value: str) -> str:
    value.encode()  # raises UnicodeEncodeError, which is a ValueError, for a lone surrogate
    return value


def _all_unicode(values: list[str]) -> list[str]:
    _unicode("".join(values))
    return values


def _inside(value: datetime) -> datetime:
    moment = as_utc(value)
    if not _EARLIEST <= moment <= _LATEST:
        raise ValueError("expected a time from 1970 to 2200")
    return moment


Text = Annotated[str, StringConstraints(max_length=_LONGEST), AfterValidator(_unicode)]
Id = Annotated[
    str,
    BeforeValidator(_whole_number_as_text),
    StringConstraints(min_length=1, max_length=_LONGEST),
    AfterValidator(_unicode),
    Field(description="The id as the data has it; whole numbers may be given as such.", examples=["1004"]),
]
Value = Annotated[str, StringConstraints(max_length=LONGEST_VALUE), AfterValidator(_unicode)]
Scalar = Value | int | float | bool | None
Ids = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST)]],
    BeforeValidator(_whole_numbers_as_texts),
    AfterValidator(_all_unicode),
    Field(min_length=1, max_length=MOST_ITEMS, description="Items' ids as the data has them; whole numbers as such."),
]
Features = Annotated[
    dict[Text, Scalar | Annotated[list[Scalar], Field(max_length=256)]],
    Field(max_length=200, description="Raw values by the field's name, as the logs have them."),
]
Moment = Annotated[datetime, AfterValidator(_inside)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ScoreRequest(_Message):
    """A user, a scenario and the items whose probabilities are asked for."""

    user: Id
    scenario: Text = Field(description="The scenario's value, or its name.")
    items: Ids
    features: Features = Field(
        default_factory=dict, description="Context, and values that take the place of the stored ones, for all rows."
    )
    item_features: list[Features | None] | None = Field(
        default=None, max_length=MOST_ITEMS, description="The same for each item, in the order of `items`."
    )
    knowledge: Literal["own", "mean"] = Field(
        default="own", description="The user's own knowledge, or the population's mean in its place."
    )


class RankRequest(ScoreRequest):
    """As for scores; without `items`, the scenario's most shown ones are ranked."""

    items: Ids | None = None  # type: ignore[assignment]
    top: int = Field(default=10, ge=1, le=MOST_ITEMS)


class BatchRequest(_Message):
    """Several requests, answered by one pass through the model; 2,000 items together at the most."""

    requests: list[ScoreRequest] = Field(min_length=1, max_length=MOST_REQUESTS)


class ExplainRequest(_Message):
    """One row to take apart."""

    user: Id
    scenario: Text
    item: Id
    features: Features = Field(default_factory=dict)


class Event(_Message):
    """A positive interaction. By default, `time` is now and `behaviour` is the strongest of the schema."""

    user: Id
    item: Id
    scenario: Text
    time: Moment | None = None
    behaviour: Text | None = None


class EventsRequest(_Message):
    """Events, all of which are durable before the answer."""

    events: list[Event] = Field(min_length=1, max_length=MOST_EVENTS)


class NewItem(_Message):
    """An item that the catalogue does not have yet: its raw columns, fields and texts, by name."""

    item: Id
    columns: Features = Field(default_factory=dict)


class ItemsRequest(_Message):
    """New items; they are scored by their fields, and queued for the next `reason`."""

    items: list[NewItem] = Field(min_length=1, max_length=MOST_EVENTS)


class _Scored(BaseModel):
    """The bundle that scored, and what it did not know."""

    bundle: str
    unknown_items: list[str]
    user_known: bool
    knowledge_known: bool


class ScoreAnswer(_Scored):
    """Click probabilities in the order of the items, and what was not known."""

    scores: list[float]


class Ranked(BaseModel):
    """An item of a ranking."""

    item: str
    score: float
    title: str


class RankAnswer(_Scored):
    """The best items, best first, and what was not known."""

    items: list[Ranked]


class BatchAnswer(BaseModel):
    """An answer for each request."""

    answers: list[ScoreAnswer]


class EventsAnswer(BaseModel):
    """How many events are new and durable now, how many were known, and which items wait for `reason`."""

    accepted: int
    duplicates: int
    queued_items: list[str]


class ItemsAnswer(BaseModel):
    """Items that wait for `reason`, items that the catalogue has already (they stay unchanged), and unread columns."""

    queued_items: list[str]
    known_items: list[str]
    unread_columns: list[str]


class UsersAnswer(BaseModel):
    """Users' ids."""

    users: list[str]


class ScenarioCard(Settings):
    """A scenario's description, statistics and texts.

    `similarity` has the cosines of its vector and every scenario's; it is None unless every scenario has a vector.
    `context` has usual values of its context fields, to be sent as features: from its training rows, the most frequent
    raw value of each categorical field and the mean of each numeric one.
    """

    value: str
    title: str
    description: str
    notes: str
    text: str
    rows: int
    click_rate: float | None
    auc: float | None
    similarity: list[float] | None
    context: dict[str, Any]


class ScenariosAnswer(BaseModel):
    """All scenarios of the data set `name`."""

    bundle: str
    name: str
    scenarios: list[ScenarioCard]


class ErrorBody(BaseModel):
    """What went wrong: a code for programs and a message for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorBody
