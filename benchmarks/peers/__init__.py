"""Public libraries that a user might pick instead, each with its own loader, model and optimizer.

None of their code is part of this project. Install them with `pip install fuxictr torch-rechub` and a clone of
Scenario-Wise-Rec, with its folder in the environment variable SCENARIO_WISE_REC. A missing one is skipped by name.
"""
