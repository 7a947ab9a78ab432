"""Learning rate and embedding decay by Optuna, the same budget for every cell, judged on validation data alone."""

from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from llm4msr.experiments.config import Search

Settings = dict[str, float]
_AT_RANDOM = 3
"""Successful trials needed before the estimator chooses. It does not depend on how many trials the search has, so a
longer search begins with the same trials.
"""


def propose(search: Search, start: Settings, history: list[tuple[Settings, float | None]], seed: int) -> Settings:
    """The next trial's settings, given the `history` of trials (settings and validation AUC, None if the trial failed).

    The first is `start`. The others come from a tree-structured Parzen estimator that is seeded anew for each trial,
    so that a search that was stopped continues as if it had not been.
    """
    if not history:
        return start
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bounds = {"learning_rate": search.learning_rate, "embedding_decay": search.embedding_decay}
    space = {name: FloatDistribution(low, high, log=True) for name, (low, high) in bounds.items()}
    sampler = optuna.samplers.TPESampler(seed=(seed * 1009 + len(history)) % 2**32, n_startup_trials=_AT_RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for settings, value in history:
        inside = {name: min(max(settings[name], space[name].low), space[name].high) for name in space}
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.add_trial(create_trial(params=inside, distributions=dict(space), value=value, state=state))
    return dict(study.ask(dict(space)).params)


def best_of(history: list[tuple[Settings, float | None]], start: Settings) -> Settings:
    """The settings with the best validation AUC, the earliest if several are equal; `start` if no trial succeeded."""
    tried = [(value, -place, settings) for place, (settings, value) in enumerate(history) if value is not None]
    return max(tried, key=lambda t: t[:2])[2] if tried else start
