"""Output on the terminal: progress with rate and time left, and explanations."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from llm4msr.knowledge.summaries import parse_interests

if TYPE_CHECKING:  # the command line starts without loading torch
    from llm4msr.knowledge.plan import LevelPlan
    from llm4msr.knowledge.reason import Progress
    from llm4msr.report.explain import Explanation
    from llm4msr.training.fit import TrainProgress


class Bars:
    """Progress bars with rate and time left; if the output is not a terminal, lines at intervals instead.

    Args:
        console: where to show them.
        seconds_between_lines: the least interval between lines if there is no terminal. The first comes at once.
    """

    def __init__(self, console: Console, seconds_between_lines: float = 10.0) -> None:
        self._console = console
        self._pause = seconds_between_lines
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, tuple[TaskID, float, int, int]] = {}
        self._said = -math.inf

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bars.stop()
        if kind is KeyboardInterrupt:
            say(self._console, "give the same command again to go on from here")

    def reasoning(self, progress: Progress) -> None:
        """Show one step of `reason`."""
        self._update(progress.level, progress.done, progress.total, "", progress.asked)

    def training(self, name: str, progress: TrainProgress) -> None:
        """Show one validation of a training run."""
        auc = "" if progress.validation is None else f"AUC {progress.validation:.4f}, "
        self._update(name, progress.step, progress.steps, f"{auc}{progress.rows_per_second:,.0f} rows/s")

    def _update(self, name: str, done: int, total: int, rate: str, worked: int | None = None) -> None:
        """Show `done` of `total`. The rate counts only `worked`, what was not stored; by default, all of `done`."""
        now, worked = time.monotonic(), done if worked is None else worked
        if name not in self._tasks:
            for other, *_ in self._tasks.values():
                self._bars.update(other, visible=False)
            self._tasks[name] = self._bars.add_task(name, total=total, rate=""), now, worked, done
        task, began, before, first = self._tasks[name]
        since = worked - before
        rate = rate or (f"{60 * since / (now - began):,.0f} prompts/min" if since else "")
        self._bars.update(task, completed=done, total=total, rate=rate)
        if not self._console.is_terminal and since and now - self._said > self._pause:
            self._said = now
            left = (now - began) / max(1, done - first) * (total - done)
            say(self._console, f"  {name}: {done} of {total}, {rate}, about {left:.0f} s left")


def reasoning_costs(levels: Sequence[LevelPlan]) -> Table:
    """A table of the estimated cost of reasoning, for each level and in total."""
    table = Table("level", "prompts", "different", "stored", "to ask", "tokens", "time", "MiB")
    for column in table.columns[1:]:
        column.justify = "right"
    groups = [(level.level, [level]) for level in levels]
    for name, some in [*groups, ("all", list(levels))]:
        if name == "all":
            table.add_section()
        counts = [
            sum(number)
            for number in zip(*((p.prompts, p.distinct, p.stored, p.missing, p.tokens) for p in some), strict=True)
        ]
        seconds, size = sum(p.seconds for p in some), sum(p.bytes for p in some)
        table.add_row(name, *(f"{count:,}" for count in counts), _duration(seconds), f"{size / 2**20:.1f}")
    prompts, saved = sum(p.prompts for p in levels), sum(p.prompts - p.missing for p in levels)
    table.caption = f"{saved:,} of {prompts:,} calls are saved. Tokens, time and disk are estimates from a sample."
    return table


def _duration(seconds: float) -> str:
    """A duration in seconds below two minutes, in minutes below two hours, then in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(console: Console, message: str) -> None:
    """Print a message as it is: no markup, no highlighting, no wrapping."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def print_text(console: Console, title: str, text: str) -> None:
    """Print a text in a frame, as it is."""
    console.print(Panel(escape(text or "(empty)"), title=escape(title), title_align="left"))


def print_explanation(console: Console, explanation: Explanation) -> None:
    """Print a user's history, prompt and text, and how the vector was computed."""
    counts = ", ".join(f"{name} {count}" for name, count in explanation.counts.items())
    console.rule(f"user {escape(explanation.user)}")
    say(console, f"positives: {counts}")
    if explanation.prompt is None:
        say(console, f"{explanation.how}, so there is no prompt; composed states are means over the items of positives")
        say(console, "the latest positives:")
    else:
        say(console, f"snapshot: {explanation.snapshot:%Y-%m-%d %H:%M:%S} UTC, made of the positives before it:")
    for p in explanation.history:
        say(console, f"  {p.time:%Y-%m-%d %H:%M}  {p.scenario}: {p.behaviour} {p.item}")
    if explanation.prompt is None:
        return
    print_text(console, "prompt", explanation.prompt)
    title = "text, written on request" if explanation.on_request else "text"
    cut = " (cut off by the token limit)" if explanation.finish_reason == "length" else ""
    print_text(console, title + cut, explanation.text or "")
    interests = parse_interests(explanation.text or "", list(explanation.counts))
    if interests is not None:
        say(console, f"common interests: {'; '.join(interests.common) or 'none listed'}")
        for scenario, found in interests.distinct.items():
            say(console, f"distinct in {scenario}: {'; '.join(found)}")
    say(console, f"the user's vector is {explanation.how}")
