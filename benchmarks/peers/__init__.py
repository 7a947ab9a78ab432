"""Public libraries that a user would pick instead, each run by its own loader, model and optimizer.

Nothing of them is part of this project. `pip install fuxictr torch-rechub` and a clone of Scenario-Wise-Rec (its folder
in the variable SCENARIO_WISE_REC) bring them in; one that is missing is skipped by name.
"""
