"""The paper's Table 1: what the data sets are like."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm4msr.data.prepared import PreparedData
from llm4msr.experiments.config import MatrixConfig
from llm4msr.report.sheets import Cell, Sheet


def statistics(config: MatrixConfig) -> Sheet:
    """Table 1: users, items and interactions of each scenario, and the users and items it shares with the others."""
    lines = []
    for name, choice in config.data.items():
        data = PreparedData.open(choice.folder, check=False)
        logged = data.logged()
        scenario, label = np.asarray(data.scenario[logged]), np.asarray(data.label[logged])
        users = _members(np.asarray(data.user[logged]), scenario, data.users.height, data.scenario_count)
        items = _members(np.asarray(data.item[logged]), scenario, data.items.height, data.scenario_count)
        for d, title in enumerate(s.title for s in data.schema.scenarios):
            rows = scenario == d
            clicked = float(label[rows].mean()) if rows.any() else float("nan")
            counts = [users[d].sum(), _shared(users, d), items[d].sum(), _shared(items, d), rows.sum()]
            lines.append([Cell(name), Cell(title), *(Cell(f"{count:,}") for count in counts)])
            lines[-1].append(Cell("" if np.isnan(clicked) else f"{1 - clicked:.2%}"))
    header = ["data", "scenario", "users", "also elsewhere", "items", "also elsewhere", "interactions", "sparsity"]
    note = (
        "Interactions of all parts, without the history before them and without sampled negatives; sparsity is the "
        "share that was not clicked. Elsewhere: in another scenario of the same data."
    )
    return Sheet("Statistics of the data", header, lines, 2, note)


def _members(codes: NDArray[np.int32], scenario: NDArray[np.int16], most: int, scenarios: int) -> NDArray[np.bool_]:
    """A mask of the users, or items, of each scenario, `(scenarios, most)`."""
    found = np.zeros((scenarios, most), dtype=bool)
    found[scenario, codes] = True
    return found


def _shared(members: NDArray[np.bool_], d: int) -> int:
    """How many members of scenario `d` are also in another scenario."""
    others = np.delete(members, d, axis=0).any(axis=0)
    return int((members[d] & others).sum())
