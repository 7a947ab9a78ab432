from __future__ import annotations

import io
from datetime import UTC, datetime

from rich.console import Console

from llm4msr.knowledge.reason import Progress
from llm4msr.report.explain import Explanation, Positive
from llm4msr.report.terminal import Bars, print_explanation
from llm4msr.training.fit import TrainProgress


def _console() -> Console:
    return Console(file=io.StringIO(), width=100, record=True)


def test_without_a_terminal_progress_is_a_line_now_and_then_with_rate_and_time_left() -> None:
    console = _console()
    with Bars(console, seconds_between_lines=0.0) as bars:
        for done in (0, 5, 10):
            bars.reasoning(Progress("user", done, 10, done))
        bars.training("run", TrainProgress(1, 4, 1234.0, 0.75, 0.75))
        bars.training("run", TrainProgress(2, 4, 1234.0, None, 0.75))
    lines = console.export_text().splitlines()
    assert lines[0].startswith("  user: 5 of 10, ")
    assert lines[1].endswith("about 0 s left")
    assert lines[2].startswith("  run: 2 of 4, 1,234 rows/s, about ")
    assert len(lines) == 3


def test_an_interrupted_command_says_how_to_go_on() -> None:
    console = _console()
    try:
        with Bars(console):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert "give the same command again to go on" in console.export_text()


def test_an_explanation_shows_texts_as_they_are_and_says_when_they_were_cut_off() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    console = _console()
    print_explanation(
        console,
        Explanation(
            user="u[1]",
            snapshot=moment,
            history=[Positive(moment, "feed", "clicked", "a [red] thing")],
            prompt="the [bold]prompt[/]",
            text="likes red",
            finish_reason="length",
            on_request=True,
            how="the last state",
            counts={"feed": 3},
        ),
    )
    text = console.export_text()
    for shown in (
        "user u[1]",
        "positives: feed 3",
        "2024-05-06 07:08  feed: clicked a [red] thing",
        "the [bold]prompt[/]",
        "text, written on request (cut off by the token limit)",
        "the user's vector is the last state",
    ):
        assert shown in text


def test_a_user_without_a_snapshot_has_no_prompt() -> None:
    console = _console()
    counts = {"feed": 0}
    print_explanation(
        console, Explanation("u1", None, [], None, None, "", on_request=False, how="nobody asked", counts=counts)
    )
    assert "nobody asked, so there is no prompt" in console.export_text()
