"""Tables of plain text cells for the terminal, for Markdown and for LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "★": r"$\star$",
    "↓": r"$\downarrow$",
    "<": "$<$",
    ">": "$>$",
}


_AROUND = 3
"""The width in characters of the space between two columns of a table."""
_LONGEST = 30
"""The most letters of a value that are kept on one line in the terminal; a longer value is a text and may wrap."""


@dataclass(frozen=True)
class Cell:
    """A text, and whether it stands out."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table: a header, and lines with as many cells; the first `labels` columns say what a line is."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    labels: int = 1
    note: str = ""

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(
            title=escape(self.title), caption=escape(self.note) or None, title_justify="left", box=box.SIMPLE_HEAD
        )
        for place, name in enumerate(self.header):
            label = place < self.labels
            shortest = None if label else min(self._width(place) - _AROUND, _LONGEST)
            table.add_column(escape(name), justify="left" if label else "right", min_width=shortest)
        for line in self.lines:
            table.add_row(*(f"[bold]{escape(c.text)}[/]" if c.strong else escape(c.text) for c in line))
        return table

    def parts(self, width: int) -> list[Sheet]:
        """Split the sheet into parts that fit the terminal's width; each has the labels and some of the columns."""
        wide = [min(self._width(place), _LONGEST + _AROUND) for place in range(len(self.header))]
        left = width - 1 - sum(wide[: self.labels])
        groups: list[list[int]] = []
        for place in range(self.labels, len(self.header)):
            if not groups or sum(wide[p] for p in [*groups[-1], place]) > left:
                groups.append([])
            groups[-1].append(place)
        if len(groups) < 2:
            return [self]
        found = []
        for number, group in enumerate(groups):
            shown = [*range(self.labels), *group]
            note = self.note if number == len(groups) - 1 else ""
            lines = [[line[place] for place in shown] for line in self.lines]
            title = self.title if number == 0 else f"{self.title} (continued)"
            found.append(Sheet(title, [self.header[place] for place in shown], lines, self.labels, note))
        return found

    def _width(self, place: int) -> int:
        """The width of a column and the space around it; labels may wrap between words, values may not."""
        texts = [line[place].text for line in self.lines]
        if place < self.labels:
            texts = [word for text in texts for word in text.split()]
        return _AROUND + max((len(text) for text in [*self.header[place].split(), *texts]), default=0)

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        rows = [
            [piped(name) for name in self.header],
            ["---" if place < self.labels else "---:" for place in range(len(self.header))],
            *([f"**{piped(c.text)}**" if c.strong else piped(c.text) for c in line] for line in self.lines),
        ]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        return "\n\n".join(part for part in (f"### {self.title}", table, self.note) if part) + "\n"

    def latex(self) -> str:
        """As a LaTeX table that needs the package booktabs."""
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        lines = [
            " & ".join(rf"\textbf{{{escaped(c.text)}}}" if c.strong else escaped(c.text) for c in line) + r" \\"
            for line in self.lines
        ]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{escaped(self.title)}{'. ' + escaped(self.note) if self.note else ''}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(escaped(name) for name in self.header) + r" \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def piped(text: str) -> str:
    """A text as a cell of a Markdown table."""
    return text.replace("|", r"\|").replace("\n", " ")


def escaped(text: str) -> str:
    """A text with the characters that LaTeX would interpret escaped."""
    return "".join(_LATEX.get(c, c) for c in text)
