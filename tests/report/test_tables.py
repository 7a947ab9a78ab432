from __future__ import annotations

import io

from rich.console import Console

from llm4msr.report.tables import Row, cell, score_sheets
from llm4msr.training.metrics import Score, Scores


def _scores(auc: float | None) -> Scores:
    defined, empty = Score(1200, 30, auc, 0.25), Score(10, 0, None, 0.5)
    return Scores(defined, (defined, empty))


def test_cells_show_mean_and_deviation_and_never_a_number_for_what_is_undefined() -> None:
    assert cell([0.5, 0.7]) == "0.6000 ±0.141"
    assert cell([0.5]) == "0.5000"
    assert cell([0.5, None]) == "undefined"
    assert cell([]) == "undefined"


def test_markdown_has_a_line_a_scenario_and_a_column_a_model() -> None:
    auc, loss = score_sheets([Row("plain", [_scores(0.7)]), Row("ours", [_scores(0.8)])], ["feed", "mail"])
    assert auc.markdown() == (
        "### Test AUC\n\n"
        "| scenario | plain | ours |\n"
        "| --- | ---: | ---: |\n"
        "| feed (1,200 rows, 30 positive) | 0.7000 | 0.8000 |\n"
        "| mail (10 rows, 0 positive) | undefined | undefined |\n"
        "| all rows (1,200 rows, 30 positive) | 0.7000 | 0.8000 |\n"
        "| mean over scenarios | 0.7000 | 0.8000 |\n"
    )
    assert loss.markdown().splitlines()[5] == "| mail (10 rows, 0 positive) | 0.5000 | 0.5000 | 0.0000 |"


def test_four_models_fit_a_terminal_of_80_columns() -> None:
    rows = [Row(f"a model with a long name {i}", [_scores(0.7), _scores(0.8)]) for i in range(4)]
    console = Console(width=80, record=True, file=io.StringIO())
    (part,) = score_sheets(rows, ["feed", "drugstore and general merchandise"])[0].parts(80)
    console.print(part.rich())
    text = console.export_text()
    assert text.count("0.7500 ±0.071") == 4 * 3
    assert "…" not in text


def test_names_are_shown_as_they_are() -> None:
    sheet = score_sheets([Row("a [/b] | c", [_scores(0.7)])], ["[promo] deals", "x|y"])[0]
    assert "| [promo] deals (" in sheet.markdown()
    assert "| x\\|y (" in sheet.markdown()
    assert "| a [/b] \\| c |" in sheet.markdown()
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sheet.rich())
    text = console.export_text()
    assert "[promo] deals" in text
    assert "a [/b] | c" in text
