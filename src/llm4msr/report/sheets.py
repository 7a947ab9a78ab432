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
    "<": "$<$",
    ">": "$>$",
}


@dataclass(frozen=True)
class Cell:
    """A text, and whether it stands out."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table: a header over lines of as many cells; the first `labels` columns say what a line is."""

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
            table.add_column(escape(name), justify="left" if place < self.labels else "right")
        for line in self.lines:
            table.add_row(*(f"[bold]{escape(c.text)}[/]" if c.strong else escape(c.text) for c in line))
        return table

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        rows = [
            list(self.header),
            ["---" if place < self.labels else "---:" for place in range(len(self.header))],
            *([f"**{piped(c.text)}**" if c.strong else piped(c.text) for c in line] for line in self.lines),
        ]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        return "\n\n".join(part for part in (f"### {self.title}", table, self.note) if part) + "\n"

    def latex(self) -> str:
        """As a LaTeX table that needs the package booktabs."""
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        lines = [
            " & ".join(rf"\textbf{{{_tex(c.text)}}}" if c.strong else _tex(c.text) for c in line) + r" \\"
            for line in self.lines
        ]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_tex(self.title)}{'. ' + _tex(self.note) if self.note else ''}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(_tex(name) for name in self.header) + r" \\",
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


def _tex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
