"""A table or a figure of the paper as a section of a document, in Markdown and in LaTeX."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm4msr.experiments.case_study import CaseStudy
from llm4msr.report.sheets import Sheet, escaped

TITLES = {
    "table-1": "Table 1: what the data are like",
    "table-2": "Table 2: AUC of every backbone and enhancer",
    "table-3": "Table 3: what they cost",
    "table-4": "Table 4: settings",
    "figure-3": "Figure 3: level and placement of the meta layers",
    "figure-4a": "Figure 4(a): positives a scenario in a user's prompt",
    "figure-4b": "Figure 4(b): number of meta layers",
    "figure-5": "Figure 5: one user",
}
"""All parts, and their headings."""


@dataclass(frozen=True)
class Section:
    """One table or figure: its sheets, the name of its image if it has one, its case study if any, and a remark."""

    part: str
    sheets: list[Sheet] = field(default_factory=list)
    image: str | None = None
    study: CaseStudy | None = None
    remark: str = ""

    @property
    def title(self) -> str:
        """The heading."""
        return TITLES[self.part]

    def markdown(self) -> str:
        """The section with its remark, image, texts and tables."""
        texts = [] if self.study is None else list(self.study.scenarios.items())
        if self.study is not None:
            told = self.study.explanation
            texts += [("Prompt", told.prompt or ""), ("Text", told.text or ""), ("Vector", told.how)]
        quoted = [f"**{title}**\n\n" + "\n".join(f"> {line}" for line in text.split("\n")) for title, text in texts]
        image = [f"![{self.title}]({self.image}.svg)"] if self.image else []
        parts = [f"## {self.title}", self.remark, *image, *quoted, *(sheet.markdown() for sheet in self.sheets)]
        return "\n\n".join(part.rstrip() for part in parts if part) + "\n"

    def latex(self) -> str:
        """The section's remark, image and tables."""
        image = (
            f"\\begin{{figure}}\n\\includegraphics[width=\\linewidth]{{{self.image}.pdf}}\n"
            f"\\caption{{{self.title.partition(': ')[2]}}}\n\\end{{figure}}\n"
        )
        remark = [f"{escaped(self.remark)}\n"] if self.remark else []
        return "\n".join([*remark, *([image] if self.image else []), *(sheet.latex() for sheet in self.sheets)])
