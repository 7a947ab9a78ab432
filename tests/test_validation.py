from __future__ import annotations

import pytest

from llm4msr.errors import InputError
from llm4msr.experiments.config import MatrixConfig
from llm4msr.validation import parse_assignment


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train.epochs=2", ("train.epochs", 2)),
        ("a.b = [1, 2]", ("a.b", [1, 2])),
        ("a=true", ("a", True)),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_an_assignment_is_json_or_text(text: str, found: tuple[str, object]) -> None:
    assert parse_assignment(text) == found


def test_what_is_no_assignment_is_refused() -> None:
    with pytest.raises(InputError, match=r"'seed' is not a setting; write path=value"):
        parse_assignment("seed")


def test_a_key_that_is_near_one_and_equals_another_one_below_gets_both_suggested() -> None:
    with pytest.raises(InputError, match=r"did you mean 'seeds' or 'train\.seed'"):
        MatrixConfig.checked({"seed": 3, "data": {}})
