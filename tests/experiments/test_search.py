"""The search for learning rate and decay."""

from __future__ import annotations

from statistics import median

import pytest

from llm4msr.experiments.config import Search
from llm4msr.experiments.search import best_of, propose

SEARCH = Search(trials=4, learning_rate=(1e-4, 1e-2), embedding_decay=(1e-8, 1e-2))
START = {"learning_rate": 1e-3, "embedding_decay": 1e-5}


def test_proposals_are_spread_evenly_over_the_powers_of_ten() -> None:
    found = [propose(SEARCH, START, [(START, 0.5)], seed) for seed in range(40)]
    assert all(1e-4 <= settings["learning_rate"] <= 1e-2 for settings in found)
    assert 4e-4 < median(settings["learning_rate"] for settings in found) < 2.5e-3
    assert 1e-6 < median(settings["embedding_decay"] for settings in found) < 1e-4


def test_any_seed_of_a_run_can_seed_a_search() -> None:
    proposed = [propose(SEARCH, START, [(START, 0.5)], seed) for seed in (20240101, 2**63 - 1)]
    assert proposed[0] != proposed[1]


def test_the_first_trial_is_the_start_and_the_best_one_wins() -> None:
    assert propose(SEARCH, START, [], 0) == START
    other = {"learning_rate": 2e-3, "embedding_decay": 1e-6}
    assert best_of([(START, 0.6), (other, 0.7), (START, None)], START) == other
    assert best_of([(START, 0.7), (other, 0.7)], other) == START
    assert best_of([(other, None)], START) == pytest.approx(START)
