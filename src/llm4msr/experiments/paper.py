"""Makes every table and figure of the paper from one matrix; a run that several of them need is made once.

Table 2 and Figures 3 to 5 train models, all below one folder. They share their runs, and a finished run is never run
again. As in the paper, Figures 3 to 5 and Table 3 use one backbone. Table 3, Figure 4 and Figure 5 use the first data
set only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from llm4msr import __version__
from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.experiments.benchmark import Say, Training, claim, finished_runs, run_matrix
from llm4msr.experiments.case_study import case_study, telling_user
from llm4msr.experiments.cells import cells_of
from llm4msr.experiments.config import MatrixConfig
from llm4msr.experiments.efficiency import efficiency
from llm4msr.experiments.panels import as_sheet, improvements, swept
from llm4msr.experiments.sections import TITLES, Section
from llm4msr.experiments.settings_table import chosen, settings
from llm4msr.experiments.statistics import statistics
from llm4msr.experiments.tables import failures, finished_seeds, leaks, sheets
from llm4msr.experiments.variants import ablation, sweep_history, sweep_layers, varied
from llm4msr.folders import write_text_atomically
from llm4msr.knowledge.engines.base import EngineFor
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import Progress
from llm4msr.report.explain import code_of_user
from llm4msr.report.figures import Panel, draw
from llm4msr.report.sheets import Sheet
from llm4msr.training.identity import run_config

PARTS = tuple(TITLES)


@dataclass(frozen=True)
class PaperConfig:
    """Which parts to make, and from what.

    - `label`: the llm4msr enhancer for Table 4 and the figures; by default the matrix's first.
    - `backbone`: the backbone for Table 3 and the figures; by default STAR if the matrix has it, or else its first.
    - `layers`, `history`: the values of K and of T. If `history` is empty, T is a quarter, a half and all of the T of
      the matrix's knowledge.
    - `user`: the id of the user for Figure 5; by default `telling_user` chooses one.
    """

    parts: tuple[str, ...] = PARTS
    label: str | None = None
    backbone: str | None = None
    layers: tuple[int, ...] = (1, 2, 3, 4)
    history: tuple[int, ...] = ()
    user: str | None = None


class Paper:
    """Makes the sections of a matrix one by one, and writes each into its own files in `root`.

    `paper.md` and `paper.tex` hold all sections of this matrix made so far, including those of earlier calls.

    Args:
        matrix: the data sets, backbones and enhancers of Table 2.
        config: which parts to make, and their options.
        root: the folder of runs, results and documents.
        engine: makes the LLM; called only if Figure 4(a) or Figure 5 has to ask it.
        jobs: the number of cells to run at once.
        say: called with a line for each part that starts and each cell that ends.
        reasoning: called after each batch that the LLM answered.
        training: called with a run's name after each of its validations, but only if `jobs` is 1.

    Raises `InputError` for an enhancer or a backbone that the matrix does not have, and for an unknown user.
    """

    def __init__(
        self,
        matrix: MatrixConfig,
        config: PaperConfig,
        root: Path,
        *,
        engine: EngineFor,
        jobs: int = 1,
        say: Say = lambda message: None,
        reasoning: Callable[[Progress], None] = lambda progress: None,
        training: Training = lambda name, progress: None,
    ) -> None:
        self._matrix, self._config, self._root = matrix, config, root
        self._engine, self._jobs, self._say = engine, jobs, say
        self._reasoning, self._training = reasoning, training
        self.failed = False
        """Whether a part, or a run of one, failed so far."""
        self._label, _ = varied(matrix, config.label)
        names = list(matrix.backbones)
        self._backbone = config.backbone or ("star" if "star" in names else names[0])
        if self._backbone not in names:
            raise InputError(f"the matrix has no backbone {self._backbone!r}; it has {', '.join(names)}")
        if config.user is not None:
            code_of_user(self._first_data(), config.user)

    def matrices(self) -> dict[str, MatrixConfig]:
        """The matrix of each part that trains models, as far as it is known before the LLM is asked."""
        found = {
            "table-2": self._matrix,
            "figure-3": ablation(self._of_backbone(), self._label),
            "figure-4b": self._layers_matrix(),
            "figure-5": self._user_matrix(),
        }
        with suppress(InputError):  # if T cannot be swept, the section says why
            found["figure-4a"] = self._history_matrix(None)
        return {part: found[part] for part in self._config.parts if part in found}

    def sections(self) -> Iterator[Section]:
        """Make, write and yield the sections, one part after the other."""
        claim(self._root)
        for part in self._config.parts:
            self._say(TITLES[part])
            try:
                section = self._section(part)
            except InputError:
                raise
            except Exception as error:  # noqa: BLE001 - one part's failure must not end the others
                self.failed = True
                section = Section(part, remark=f"Left out: {type(error).__name__}: {error}.")
            self._write(section)
            yield section

    def _section(self, part: str) -> Section:
        made: dict[str, Callable[[], Section]] = {
            "table-1": self._table_1,
            "table-2": self._table_2,
            "table-3": self._table_3,
            "table-4": self._table_4,
            "figure-3": self._figure_3,
            "figure-4a": self._figure_4a,
            "figure-4b": self._figure_4b,
            "figure-5": self._figure_5,
        }
        return made[part]()

    def _write(self, section: Section) -> None:
        head = f"# Tables and figures of the paper\n\n`llm4msr paper`, version {__version__}.\n"
        for ending, mark, text, first in (
            ("md", f"<!-- of the matrix {self._identity} -->", section.markdown(), [head]),
            ("tex", f"% of the matrix {self._identity}", section.latex(), []),
        ):
            write_text_atomically(self._root / f"{section.part}.{ending}", f"{mark}\n{text}")
            files = [self._root / f"{part}.{ending}" for part in PARTS]
            texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
            made = [text for text in texts if text.startswith(mark)]
            write_text_atomically(self._root / f"paper.{ending}", "\n".join([*first, *made]))

    @cached_property
    def _identity(self) -> str:
        """A hash of the matrix's settings and of the content of its folders; their paths do not matter."""
        written = self._matrix.model_dump(mode="json", exclude={"data": {"__all__"}})
        held = []
        for name, choice in self._matrix.data.items():
            folders = [choice.knowledge, *(enhancer.knowledge for enhancer in self._matrix.enhancers.values())]
            known = [KnowledgeFolder.fingerprint_of(folder) for folder in folders if folder is not None]
            held.append([name, PreparedData.open(choice.folder, check=False).fingerprint, *known])
        for enhancer in written["enhancers"].values():
            del enhancer["knowledge"]
        return hashlib.sha256(json.dumps([written, held], sort_keys=True).encode()).hexdigest()[:12]

    def _of_backbone(self, *, first: bool = False) -> MatrixConfig:
        """The matrix with the chosen backbone alone and, with `first`, the first data set alone."""
        data = dict(list(self._matrix.data.items())[: 1 if first else None])
        backbones = {self._backbone: self._matrix.backbones[self._backbone]}
        return self._matrix.model_copy(update={"data": data, "backbones": backbones})

    def _first_data(self) -> PreparedData:
        choice = next(iter(self._matrix.data.values()))
        return PreparedData.open(choice.folder, check=False)

    def _layers_matrix(self) -> MatrixConfig:
        return sweep_layers(self._of_backbone(first=True), self._label, self._config.layers)

    def _history_matrix(self, engine: EngineFor | None) -> MatrixConfig:
        matrix = self._of_backbone(first=True)
        return sweep_history(matrix, self._label, self._config.history, self._root, engine, self._reasoning)

    def _user_matrix(self) -> MatrixConfig:
        matrix = self._of_backbone(first=True)
        enhancers = {self._label: matrix.enhancers[self._label].model_copy(update={"controls": ()})}
        return matrix.model_copy(update={"enhancers": enhancers, "seeds": 1})

    def _run(self, part: str, matrix: MatrixConfig) -> pl.DataFrame:
        (self._root / f"{part}.parquet").unlink(missing_ok=True)  # it may be for other values; runs are kept
        found = run_matrix(
            matrix,
            self._root,
            jobs=self._jobs,
            say=self._say,
            progress=self._training,
            results=f"{part}.parquet",
        )
        self.failed |= "failed" in found["status"]
        return found

    def _drawn(self, part: str, panels: list[Panel], sheets: list[Sheet], results: pl.DataFrame) -> Section:
        draw(panels, self._root / part, "bars" if part == "figure-3" else "lines")
        return Section(part, [*sheets, *failures(results)], image=part, remark=leaks(results))

    def _table_1(self) -> Section:
        return Section("table-1", [statistics(self._matrix)])

    def _table_2(self) -> Section:
        return Section("table-2", sheets(self._run("table-2", self._matrix), self._matrix, self._root))

    def _table_3(self) -> Section:
        return Section("table-3", efficiency(self._of_backbone(first=True), say=self._say))

    def _table_4(self) -> Section:
        found = finished_runs(self._matrix, self._root)
        return Section("table-4", [settings(self._matrix, self._label), *chosen(self._matrix, found)])

    def _figure_3(self) -> Section:
        matrix = ablation(self._of_backbone(), self._label)
        results = self._run("figure-3", matrix)
        panels = improvements(results, matrix)
        note = (
            f"Test AUC above that of the backbone alone, in per cent of it, of {self._label} and its variants. "
            "A variant without the user's level also has no match features and no gate; candidate features stay."
        )
        tables = [as_sheet(panel, "Improvement of AUC", "+.2f", ".2f", note) for panel in panels]
        return self._drawn("figure-3", panels, tables, results)

    def _figure_4a(self) -> Section:
        try:
            self._history_matrix(None)  # checks all it can before the LLM is made
            matrix = self._history_matrix(self._engine)
        except InputError as error:
            return Section("figure-4a", remark=f"Left out: {error}.")
        return self._swept("figure-4a", matrix, "T")

    def _figure_4b(self) -> Section:
        return self._swept("figure-4b", self._layers_matrix(), "K")

    def _swept(self, part: str, matrix: MatrixConfig, setting: str) -> Section:
        results = self._run(part, matrix)
        panels = swept(results, matrix, setting)
        tables = [as_sheet(panel, f"Test AUC over {setting}", ".4f", ".3f") for panel in panels]
        return self._drawn(part, panels, tables, results)

    def _figure_5(self) -> Section:
        matrix = self._user_matrix()
        results = self._run("figure-5", matrix)
        done = finished_seeds(results)
        if done.is_empty():
            failed = results.filter(pl.col("status") == "failed")
            return Section("figure-5", remark=f"Left out: the run of {self._label} failed: {failed['reason'][-1]}")
        user = self._config.user or telling_user(self._first_data())
        try:
            (cell,) = cells_of(matrix)
            run = self._root / done["folder"][0]
            there = {"data": cell.base.data, "knowledge_folder": cell.base.knowledge_folder}
            found = case_study(run, user, self._engine, config=run_config(run).model_copy(update=there))
        except InputError as error:
            return Section("figure-5", remark=f"Left out: {error}.")
        return Section("figure-5", [found.scores], study=found)
