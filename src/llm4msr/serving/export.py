"""Export of a finished run as a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from llm4msr.data.tables import EntitySide
from llm4msr.folders import write_json, write_text_atomically, written_aside
from llm4msr.models.readers import mean_state
from llm4msr.seals import seal
from llm4msr.serving.bundle import KIND, VERSION, Sources
from llm4msr.serving.card import model_card
from llm4msr.serving.entities import titles_of, write_fields, write_histories, write_vocabularies
from llm4msr.serving.knowledge import write_knowledge
from llm4msr.serving.lookup import LookupWriter
from llm4msr.serving.states import StateRule
from llm4msr.serving.texts import scenario_cards, user_texts
from llm4msr.serving.trained import Trained, open_for_export
from llm4msr.times import iso
from llm4msr.training.checkpoint import read_tensors, write_tensors
from llm4msr.training.config import RunConfig
from llm4msr.training.metrics import Score

_SIDES: tuple[EntitySide, ...] = ("user", "item")


def export_bundle(
    run: Path,
    out: Path,
    *,
    as_of_time: datetime | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
    config: RunConfig | None = None,
) -> Path:
    """Write a finished run as the bundle `out`, complete or not at all.

    States, histories and snapshots are those from strictly before `as_of_time`, by default from all of the data; the
    only snapshot of a protocol that leaks (`train_end`, `all`) is taken whatever its time.
    With `onnx` the model is also written as ONNX, and checked against PyTorch. If data or knowledge were moved since
    the run, `config` says where they are now.

    Raises `InputError` if the run has not ended, its data or knowledge changed, or it was trained with a control.
    """
    if onnx:
        from llm4msr.serving.onnx import check_packages, write_onnx

        check_packages()
    report("opening the run")
    trained = open_for_export(run, as_of_time, config)
    with written_aside(out, replaces=KIND if overwrite else None) as folder:
        for name in ("users", "items"):
            (folder / name).mkdir()
        report("users, items and vocabularies")
        lookup = LookupWriter(folder)
        for side in _SIDES:
            ids = (trained.data.users if side == "user" else trained.data.items)[side].to_list()
            lookup.numbers(side, ids)
            if side == "item":
                lookup.texts("item id", enumerate(ids))
            write_fields(trained, folder, side)
        write_vocabularies(trained.data, lookup)
        lookup.texts("title", enumerate(titles_of(trained.data)))
        report("states and histories")
        sources, rule = write_knowledge(trained, folder)
        write_histories(trained, folder)
        report("texts")
        cards = scenario_cards(trained)
        write_json(folder / "scenarios.json", [card.model_dump(mode="json") for card in cards])
        lookup.texts("knowledge", user_texts(trained))
        lookup.close()
        report("weights")
        _write_means(trained, folder)
        model = trained.model.cpu().freeze()
        write_tensors(folder / "model.safetensors", model.state_dict())
        if (run / "knowledge.safetensors").is_file():
            write_tensors(folder / "knowledge.safetensors", read_tensors(run / "knowledge.safetensors")[0])
        content = _manifest(trained, sources, rule)
        write_text_atomically(folder / "card.md", model_card(content, cards))
        if onnx:
            report("ONNX")
            scenarios = trained.data.scenario_count
            write_onnx(model, sources.widths(rule, scenarios), trained.source.layout, scenarios, folder / "onnx")
        report("sealing the bundle")
        seal(folder, KIND, VERSION, content)
    return out


def _write_means(trained: Trained, folder: Path) -> None:
    """Write the population's means over a sample of training rows."""
    batch = trained.source.population()
    with torch.inference_mode():
        means = {"embedding": trained.model.embedding(batch).mean(0, keepdim=True)}
        if batch.users is not None:
            means["users"] = mean_state(batch.users, trained.source.widths.users)
        if batch.item is not None:
            known = batch.item[batch.item[:, -1] == 0]
            means["item"] = (known if len(known) else batch.item).mean(0, keepdim=True)
    write_tensors(folder / "means.safetensors", means)


def _manifest(trained: Trained, sources: Sources, rule: StateRule) -> dict[str, Any]:
    data, result, layout = trained.data, trained.result, trained.source.layout
    folder = trained.folder
    return {
        "schema": data.schema.model_dump(mode="json"),
        "fields": data.manifest["fields"],
        "model": trained.config.model.model_dump(mode="json"),
        "layout": {"categorical": list(layout.categorical), "multi": list(layout.multi), "numeric": layout.numeric},
        "sources": sources.model_dump(mode="json"),
        "states": rule.model_dump(mode="json"),
        "as_of": iso(trained.moment),
        "split": {"valid": iso(data.split.valid_time), "test": iso(data.split.test_time)},
        "counts": {name: data.manifest["counts"][name] for name in ("rows", "users", "items", "positives")},
        "metrics": {
            "overall": _metrics(result.scores.overall),
            "mean_auc": result.scores.mean_auc,
            "scenarios": [_metrics(score) for score in result.scores.scenarios],
        },
        "knowledge": None
        if folder is None or not trained.needs
        else {
            "llm": folder.llm,
            "protocol": folder.config.snapshots.protocol if "prompted" in trained.needs else "composed",
            "history": folder.config.history,
            "leaks": result.leaks,
        },
        "trained": {"seconds": result.seconds, "epoch": result.best_epoch, "parameters": result.parameters},
    }


def _metrics(score: Score) -> dict[str, Any]:
    return asdict(score) | {"constant_log_loss": score.constant}
