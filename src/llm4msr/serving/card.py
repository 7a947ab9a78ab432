"""The model card: what a bundle was made from, its metrics, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm4msr.data.classes import tells
from llm4msr.serving.requests import ScenarioCard

_LIMITS = """\
- Scores are probabilities of the click that the data's label means, in the scenarios listed above and no others.
- A user, an item or a value that training never saw goes through a learned `unknown`; answers name unknown users and
  items, not unknown values.
- A user's composed states move with every event; prompted states and texts are those of the last snapshot.
- Texts were written by a language model. They are for people to read, and can be wrong.
- Metrics are of the test part, which is later in time than all that the model learned from."""


def model_card(manifest: dict[str, Any], scenarios: Sequence[ScenarioCard]) -> str:
    """The card as Markdown, from a bundle's manifest and scenarios."""
    model, knowledge, counts = manifest["model"], manifest["knowledge"], manifest["counts"]
    metrics = manifest["metrics"]
    rows = [
        f"| {s.title} | {s.rows:,} | {_number(s.click_rate)} | {tested['rows']:,} | {tested['positive']:,} | "
        f"{_number(s.auc)}{_doubt(s.rows, tested)} |"
        for s, tested in zip(scenarios, metrics["scenarios"], strict=True)
    ]
    reads = "no knowledge" if knowledge is None else f"knowledge of {_llm(knowledge['llm'])}"
    protocol = "" if knowledge is None else f" Users' knowledge: {knowledge['protocol']}."
    leaks = f"\n\n**Leak**: {knowledge['leaks']}." if knowledge and knowledge["leaks"] else ""
    return f"""# {manifest["schema"]["name"]}: {model["backbone"]["name"]} + {model["enhancer"]["name"]}

{manifest["schema"]["description"]}

- Data: {", ".join(f"{counts[name]:,} {name}" for name in ("rows", "users", "items", "positives"))}.
- Split by time: validation from {manifest["split"]["valid"]}, test from {manifest["split"]["test"]}.
- States and histories as of {manifest["as_of"]}.
- {manifest["trained"]["parameters"]:,} parameters; reads {reads}.{protocol}{leaks}

| scenario | training rows | click rate | test rows | positive | test AUC |
| --- | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

Test AUC over all rows {_number(metrics["overall"]["auc"])}, mean over scenarios {_number(metrics["mean_auc"])}. \
Log loss {_number(metrics["overall"]["log_loss"])}; the click rate alone would have \
{_number(metrics["overall"]["constant_log_loss"])}.

## Limits

{_LIMITS}
"""


def _doubt(trained: int, tested: dict[str, Any]) -> str:
    """What a scenario's AUC must not be believed for, if anything."""
    if not trained:
        return " (not trained)"
    return "" if tells(tested["rows"], tested["positive"]) else " (too few rows to tell)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _llm(identity: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in identity.items() if value)
