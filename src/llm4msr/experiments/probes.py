"""Measures how well knowledge alone predicts training and test labels, for each protocol.

A gap between the two means that training labels leak. A protocol that also shows test rows their labels, such as
`all`, has no gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge import SnapshotProtocol
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.controls import history_vectors
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import LEAKS, Snapshots, snapshot_times
from llm4msr.knowledge.item_vectors import item_vectors
from llm4msr.knowledge.states import COMPOSED, UNKNOWN, StateTable
from llm4msr.knowledge.tables import load_knowledge
from llm4msr.report.sheets import Cell, Sheet

_ROWS = 40_000


@dataclass(frozen=True)
class Probe:
    """A protocol, the AUC of its probe on held-out training rows and on test rows, and what the protocol leaks."""

    protocol: str
    train: float
    test: float
    leaks: str

    @property
    def gap(self) -> float:
        """The AUC on training rows minus the AUC on test rows."""
        return self.train - self.test


def probes(data: PreparedData, folder: KnowledgeFolder, config: KnowledgeConfig) -> list[Probe]:
    """Fit a logistic regression for each protocol, on the user's vector, the candidate's, and their product.

    The folder's own protocol is among them. For prompt protocols, a user's vector is, for each scenario, the mean
    vector of the items that the user's prompt would name: the content of the prompt, whatever a model makes of it. One
    half of a sample of training rows is for fitting, the other half for scoring. Raises `InputError` if the folder has
    no items, or if the training or the test part has rows of one class only.
    """
    for part in ("train", "test"):
        first, last = data.split.range(part)
        if len(np.unique(data.label[first:last])) < 2:
            raise InputError(
                f"{data.path}: the {part} part has rows of one class or none, and what leaks cannot be seen"
            )
    items = item_vectors(folder, data, config.vectors, min(config.dimensions, 32))
    candidate = StateTable(items.vectors, np.asarray(data.item))
    found = []
    own = folder.config.snapshots
    protocols: tuple[SnapshotProtocol, ...] = ("all", "train_end", "slices")
    looked_at = {protocol: Snapshots(protocol=protocol, slices=own.slices) for protocol in protocols}
    rows = _Rows.of(data)
    for protocol, snapshots in (looked_at | {own.protocol: own}).items():
        tables = _history_tables(data, snapshots, folder.config.history, items.vectors, rows.all())
        found.append(_probe(data, protocol, tables, candidate, LEAKS.get(protocol, ""), rows))
    knowledge = load_knowledge(folder, data, config.model_copy(update={"dimensions": 32}), {*COMPOSED})
    found.append(_probe(data, "composed", list(knowledge.users.values()), candidate, "", rows))
    return found


def probes_sheet(found: list[Probe]) -> Sheet:
    """The probes as a table; protocols that leak are strong."""
    lines = [
        [
            Cell(p.protocol, bool(p.leaks)),
            Cell(f"{p.train:.4f}"),
            Cell(f"{p.test:.4f}"),
            Cell(f"{p.gap:+.4f}"),
            Cell(p.leaks),
        ]
        for p in found
    ]
    note = (
        "AUC of a logistic regression on the user's vector, the candidate's and their product; training rows are those "
        "that it was not fitted on. Strong protocols show rows what they must not know."
    )
    return Sheet("What knowledge alone predicts", ["protocol", "training", "test", "gap", "leaks"], lines, 1, note)


@dataclass(frozen=True)
class _Rows:
    """A sample of rows: training rows for fitting, held-out training rows, and test rows."""

    fitted: NDArray[np.int64]
    held: NDArray[np.int64]
    test: NDArray[np.int64]

    @staticmethod
    def of(data: PreparedData) -> _Rows:
        """Draw the sample; every protocol gets the same."""
        random = np.random.default_rng(0)
        train = np.sort(random.permutation(data.split.valid)[: 2 * _ROWS])
        first, last = data.split.range("test")
        return _Rows(train[::2], train[1::2], np.sort(random.permutation(np.arange(first, last))[:_ROWS]))

    def all(self) -> NDArray[np.int64]:
        """Every row of the sample."""
        return np.concatenate([self.fitted, self.held, self.test])


def _history_tables(
    data: PreparedData, snapshots: Snapshots, most: int, items: NDArray[np.float32], rows: NDArray[np.int64]
) -> list[StateTable]:
    """For each scenario, each row's mean item vector of the user's history there, as of the snapshot the row sees."""
    moments = np.array(snapshot_times(data, snapshots))
    user, time = np.asarray(data.user)[rows], np.asarray(data.time)[rows]
    leaks = snapshots.protocol in LEAKS  # then rows before its only snapshot see it, too
    given = np.zeros(len(rows), np.int64) if leaks else np.searchsorted(moments, time, side="left") - 1
    known = given >= 0
    seen, state = np.unique(given[known] * data.users.height + user[known], return_inverse=True)
    moment, whose = np.divmod(seen, data.users.height)
    vectors = history_vectors(data, whose.astype(np.int32), moments[moment], most, items)
    index = np.full(data.rows, UNKNOWN, np.int32)
    index[rows[known]] = state + 1
    table = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors])
    return [StateTable(part, index) for part in np.split(table, data.scenario_count, axis=1)]


def _probe(
    data: PreparedData, protocol: str, users: list[StateTable], candidate: StateTable, leaks: str, rows: _Rows
) -> Probe:
    scaler = StandardScaler().fit(_features(users, candidate, rows.fitted))
    model = LogisticRegression(max_iter=300, C=0.1)
    model.fit(scaler.transform(_features(users, candidate, rows.fitted)), data.label[rows.fitted])

    def auc(part: NDArray[np.int64]) -> float:
        scores = model.decision_function(scaler.transform(_features(users, candidate, part)))
        return float(roc_auc_score(data.label[part], scores))

    return Probe(protocol, auc(rows.held), auc(rows.test), leaks)


def _features(users: list[StateTable], candidate: StateTable, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    item = candidate.vectors[candidate.index[rows]]
    parts = [item]
    for table in users:
        state = table.vectors[table.index[rows]][:, : item.shape[1]]
        product = state * item
        parts += [state, product, product.sum(1, keepdims=True)]
    return np.concatenate(parts, 1)
