"""The paper's Table 4: the settings that the models were trained with."""

from __future__ import annotations

from pathlib import Path

from llm4msr.data.prepared import PreparedData
from llm4msr.experiments.config import DataChoice, MatrixConfig
from llm4msr.experiments.runs import Run
from llm4msr.experiments.variants import varied
from llm4msr.knowledge.controls import Control
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.models.registry import BACKBONES, ENHANCERS
from llm4msr.report.sheets import Cell, Sheet


def settings(config: MatrixConfig, label: str | None) -> Sheet:
    """Table 4: the training settings, and some settings of the llm4msr enhancer with the given label."""
    label, ours = varied(config, label)
    model = ENHANCERS.config(ours.name, ours.settings)
    backbones = [BACKBONES.config(name, given) for name, given in config.backbones.items()]
    hidden = {str(list(backbone.hidden)) for backbone in backbones if hasattr(backbone, "hidden")}
    train, search = config.train, config.search
    same = {
        "embedding dimension": str(config.embedding_dim),
        "batch size": str(train.batch_size),
        "hidden layers of the backbones": " or ".join(sorted(hidden)),
        "learning rate": f"{train.learning_rate:g}",
        "embedding decay": f"{train.embedding_decay:g}",
        "epochs, at most": str(train.epochs),
        "seeds": str(config.seeds),
        f"K of {label}": str(model.layers),
    }
    if search.trials > 1:  # the first trial uses the configured settings, so one alone is no search
        low, high = (f"{bound:g}" for bound in search.learning_rate)
        same["learning rate"] += f", searched from {low} to {high} in {search.trials} trials a model"
        low, high = (f"{bound:g}" for bound in search.embedding_decay)
        same["embedding decay"] += f", searched from {low} to {high} with it"
    lines = {name: [value] * len(config.data) for name, value in same.items()}
    known = [_of_knowledge(choice, ours.knowledge or choice.knowledge) for choice in config.data.values()]
    for place, name in enumerate(("T of the users' prompts", "protocol of the users' prompts", "the language model")):
        lines[name] = [values[place] for values in known]
    cells = [[Cell(name), *map(Cell, values)] for name, values in lines.items()]
    return Sheet("Settings", ["setting", *config.data], cells)


def chosen(config: MatrixConfig, runs: list[Run]) -> list[Sheet]:
    """Table 4, continued: the settings that the search chose for each model; no sheet if nothing was searched."""
    if config.search.trials < 2:
        return []
    lines = {}
    for row in (run.row for run in runs if run.row["kind"] == "seed"):
        names = (row["data"], row["backbone"], Control(row["control"]).label(row["enhancer"]))
        values = (f"{row['learning_rate']:.2g}", f"{row['embedding_decay']:.2g}")
        lines[names] = [Cell(text) for text in (*names, *values)]
    header = ["data", "backbone", "enhancer", "learning rate", "embedding decay"]
    note = "Those with the best mean validation AUC over the scenarios; each model had the same number of trials."
    return [Sheet("Settings that the search chose", header, list(lines.values()), 3, note)] if lines else []


def _of_knowledge(choice: DataChoice, folder: Path | None) -> tuple[str, str, str]:
    """T, the protocol, and the language model: its name, and what identifies its engine (checksums shortened)."""
    if folder is None:
        return "", "", ""
    known = KnowledgeFolder.open(folder, PreparedData.open(choice.folder, check=False))
    name, *engine = known.llm.values()
    model = ", ".join(filter(None, (name, *(str(part)[:12] for part in engine))))
    if "user" not in known.config.levels:
        return "no prompts", "", model
    protocol = known.config.snapshots.protocol + (f" (leaks: {known.leaks})" if known.leaks else "")
    return str(known.config.history), protocol, model
