from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import command
from llm4msr.knowledge.engines.base import Answer, Generation, Outcome, Refusal
from llm4msr.knowledge.engines.command import CommandEngine

PROGRAM = Path(__file__).with_name("answering_program.py")
GENERATION = Generation(pooling="last_generated")
PROMPTS = ["tea", "deadly", "coffee and buns", "ö"]


def engine(mode: str, *rest: str, **settings: float) -> CommandEngine:
    return CommandEngine([sys.executable, str(PROGRAM), mode, *rest], **{"seconds": 20.0, **settings})  # type: ignore[arg-type]


def run(program: CommandEngine, prompts: Sequence[str]) -> list[Outcome]:
    found = dict(pair for batch in program.run(prompts, GENERATION) for pair in batch)
    program.close()
    assert sorted(found) == list(range(len(prompts)))
    return [found[place] for place in range(len(prompts))]


def texts(outcomes: Sequence[Outcome]) -> list[str | None]:
    return [outcome.text if isinstance(outcome, Answer) else None for outcome in outcomes]


@pytest.mark.parametrize("window", [1, 2, 64])
def test_every_prompt_gets_its_own_answer(window: int) -> None:
    program = engine("well", window=window)
    assert program.identity == {"engine": "command", "model": "echo"}
    assert program.model_name == "echo"
    assert program.special_tokens == ("<x>",)
    outcomes = run(program, PROMPTS)
    assert texts(outcomes) == ["TEA", "DEADLY", "COFFEE AND BUNS", "Ö"]
    first = outcomes[0]
    assert isinstance(first, Answer)
    assert (first.vector.tolist(), first.finish_reason, first.prompt_tokens) == ([3, 1.5], "stop", 3)


def test_answers_to_prompts_that_were_given_up_are_not_those_of_the_next() -> None:
    program = engine("well")
    next(program.run(PROMPTS, GENERATION))
    assert texts(run(program, ["one", "two", "three"])) == ["ONE", "TWO", "THREE"]


def test_answers_may_come_in_any_order() -> None:
    assert texts(run(engine("backwards"), PROMPTS[:3])) == ["TEA", "DEADLY", "COFFEE AND BUNS"]


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("dies", "failed 3 times: it ended with exit code 3"),
        ("hangs", "failed 3 times: it gave no answer within 1 s"),
        ("garbage", "failed 3 times: it wrote what is no reply"),
        ("latin-1", r"warning: caf\\xe9"),
        ("closes", "failed 3 times: it closed its output, but goes on running"),
    ],
)
def test_a_prompt_that_stops_the_program_is_set_aside_and_the_others_go_on(
    tmp_path: Path, mode: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_ENDING", 0.2)
    log = tmp_path / "asked"
    outcomes = run(engine(mode, str(log), seconds=1.0, window=2), PROMPTS)
    assert texts(outcomes) == ["TEA", None, "COFFEE AND BUNS", "Ö"]
    refused = outcomes[1]
    assert isinstance(refused, Refusal)
    assert why in refused.reason
    asked = log.read_text(encoding="utf-8").splitlines()
    assert (asked.count("tea"), asked.count("deadly"), asked.count("ö")) == (1, 3, 1)


@pytest.mark.parametrize(
    ("mode", "why"), [("refuses", "the program says: too deadly"), ("without-vector", "the program gave no vector")]
)
def test_a_prompt_that_the_program_refuses_is_set_aside_with_its_reason(mode: str, why: str) -> None:
    outcomes = run(engine(mode), PROMPTS)
    assert texts(outcomes) == ["TEA", None, "COFFEE AND BUNS", "Ö"]
    assert outcomes[1] == Refusal(why)


def test_a_program_that_cannot_be_started_again_ends_the_run(tmp_path: Path) -> None:
    program = engine("once", str(tmp_path / "asked"))
    with pytest.raises(InputError, match="could not be started again: it ended with exit code 4"):
        list(program.run(PROMPTS, GENERATION))


def test_a_program_that_stops_reading_is_given_up_in_time() -> None:
    long = "tea " * 100_000  # more than a pipe holds
    outcomes = run(engine("deaf", seconds=0.5, restarts=0), [long])
    assert outcomes == [Refusal(f"the engine {sys.executable!r} failed 1 times: it gave no answer within 0.5 s")]


def test_a_program_that_changes_its_model_when_started_again_is_refused() -> None:
    program = engine("changing")
    with pytest.raises(InputError, match="started again, it says that it is another model"):
        list(program.run(PROMPTS, GENERATION))


@pytest.mark.parametrize(
    ("mode", "message"),
    [("newer", "speaks protocol 2, expected 1"), ("silent", "it gave no answer within 1 s")],
)
def test_a_program_that_does_not_speak_the_protocol_is_refused(mode: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine(mode, seconds=1.0)


def test_a_program_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="the engine 'no-such-program': cannot be started: No such file"):
        CommandEngine(["no-such-program"])
