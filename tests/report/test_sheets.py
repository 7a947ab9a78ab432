from __future__ import annotations

import io

import pytest
from rich.console import Console

from llm4msr.report.sheets import Cell, Sheet

COLUMNS = [f"model {n}" for n in range(9)]
SHEET = Sheet(
    "Test AUC",
    ["backbone", "scenario", *COLUMNS],
    [[Cell("star"), Cell("drugstore and general merchandise"), *(Cell(f"0.{n}111 ±0.001") for n in range(9))]],
    2,
    "A note.",
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 300])
def test_no_number_is_cut_however_narrow_the_terminal_is(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    parts = SHEET.parts(width)
    for part in parts:
        console.print(part.rich())
    text = console.export_text()
    assert all(text.count(f"0.{n}111 ±0.001") == 1 for n in range(9))
    assert "…" not in text
    assert text.count("A note.") == 1
    assert [name for part in parts for name in part.header[2:]] == COLUMNS
    assert (len(parts) == 1) == (width == 300)
