"""Figures: bars or lines of means with their deviations, as SVG for a page and as PDF for a paper."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#555555")
"""Colours that colour-blind people can tell apart, too (Okabe and Ito)."""
_HEIGHT, _LEAST_WIDTH, _LEGEND = 3.2, 4.0, 2.2
"""Inches."""
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Emoji",
    "Symbola",
)
_LABEL = 16
"""The most letters in a line of a label below the diagram."""


@dataclass(frozen=True)
class Panel:
    """One diagram: for each series a (mean, deviation) at each of the `places`, NaN if there is none."""

    title: str
    places: Sequence[str]
    series: Mapping[str, Sequence[tuple[float, float]]]
    x: str = ""
    y: str = ""


def draw(panels: Sequence[Panel], path: Path, kind: Literal["bars", "lines"]) -> None:
    """Write the panels, one below the other, to `path` with the endings `.svg` and `.pdf`.

    The same panels give the same files. Letters that the first font lacks are taken from other installed fonts; one
    warning is given if no font has some of them.
    """
    installed = set(font_manager.get_font_names())
    families = [name for name in _FONTS if name in installed]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with mpl.rc_context(
            {"svg.hashsalt": "llm4msr", "font.size": 9, "text.parse_math": False, "font.family": families}
        ):
            _drawn(panels, path, kind)
    for other in (w for w in found if "missing from font" not in str(w.message)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if any("missing from font" in str(w.message) for w in found):
        warnings.warn(f"{path.name}: no installed font has all letters of its names; install Noto Sans", stacklevel=2)


def _drawn(panels: Sequence[Panel], path: Path, kind: Literal["bars", "lines"]) -> None:
    widest = max(len(panel.places) * (len(panel.series) if kind == "bars" else 2) for panel in panels)
    size = (max(_LEAST_WIDTH, 0.22 * widest + 1) + _LEGEND, _HEIGHT * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        drawn = (_bars if kind == "bars" else _lines)(axes, panel)
        axes.set_title(panel.title, loc="left", fontsize=10)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        axes.set_xticks(range(len(panel.places)), [textwrap.fill(name, _LABEL) for name in panel.places])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(drawn, list(panel.series), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def _bars(axes: Axes, panel: Panel) -> list[Container]:
    drawn: list[Container] = []
    width = 0.8 / max(1, len(panel.series))
    for number, values in enumerate(panel.series.values()):
        at = np.arange(len(values)) + (number - (len(panel.series) - 1) / 2) * width
        mean, deviation = np.array(values, dtype=float).reshape(-1, 2).T
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(axes.bar(at, mean, width * 0.95, yerr=deviation, color=colour, error_kw={"elinewidth": 0.8}))
    axes.axhline(0, color="black", linewidth=0.8)
    return drawn


def _lines(axes: Axes, panel: Panel) -> list[Container]:
    drawn: list[Container] = []
    for number, values in enumerate(panel.series.values()):
        mean, deviation = np.array(values, dtype=float).reshape(-1, 2).T
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(axes.errorbar(np.arange(len(values)), mean, deviation, color=colour, marker="o", capsize=2))
    return drawn
