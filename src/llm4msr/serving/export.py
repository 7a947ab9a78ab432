"""From a finished run to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from llm4msr.data.fields import encode_fitted
from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.folders import seal, write_text_atomically, written_aside
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.sources import behaviour_weights, items_of, prompted_states
from llm4msr.knowledge.states import as_of
from llm4msr.knowledge.stores import Stores
from llm4msr.knowledge.vectors import Reduction
from llm4msr.models.model import MultiScenarioModel
from llm4msr.models.readers import mean_state
from llm4msr.report.explain import text_of_snapshot
from llm4msr.schema import FieldSpec
from llm4msr.serving.bundle import KIND, VERSION, ScenarioCard, Sources
from llm4msr.serving.card import model_card
from llm4msr.serving.fields import KINDS, TYPES, is_id, places, vocabulary_table
from llm4msr.serving.lookup import LookupWriter
from llm4msr.serving.states import Events, StateRule, sums_of_users
from llm4msr.training.batches import BatchSource
from llm4msr.training.checkpoint import read_tensors, write_tensors
from llm4msr.training.metrics import Score
from llm4msr.training.run import RunConfig, RunResult, open_trained, read_result, run_config

POPULAR = 500
"""So many of the items that were shown most in a scenario are kept as its candidates."""
_SAMPLE = 20_000
_SIDES: tuple[Literal["user", "item"], ...] = ("user", "item")


@dataclass(frozen=True)
class _Trained:
    """What a bundle is made of. `moment` is the time before which everything in it happened."""

    config: RunConfig
    result: RunResult
    data: PreparedData
    source: BatchSource
    model: MultiScenarioModel
    folder: KnowledgeFolder | None
    moment: int

    @property
    def needs(self) -> frozenset[str]:
        needs: frozenset[str] = self.config.model.enhancer_config().needs
        return needs


def export_bundle(
    run: Path,
    out: Path,
    *,
    as_of_time: datetime | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write the bundle `out` of a finished run; it is complete or absent.

    States, histories and snapshots are those from strictly before `as_of_time`, by default from all of the data.
    With `onnx` the model is also written as ONNX, and checked against PyTorch.

    Raises `InputError` where the run has not ended, its data or knowledge changed, or it was trained with a control.
    """
    report("opening the run")
    trained = _open(run, as_of_time)
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
            _write_fields(trained, folder, side)
        _write_vocabularies(trained.data, lookup)
        lookup.texts("title", enumerate(_titles(trained.data)))
        report("states and histories")
        sources, rule = _write_knowledge(trained, folder)
        _write_histories(trained, folder)
        report("texts")
        cards = _scenario_cards(trained)
        _write_json(folder / "scenarios.json", [asdict(card) for card in cards])
        lookup.texts("knowledge", _user_texts(trained))
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
            from llm4msr.serving.onnx import write_onnx

            report("ONNX")
            scenarios = trained.data.scenario_count
            write_onnx(model, sources.widths(rule, scenarios), trained.source.layout, scenarios, folder / "onnx")
        report("sealing the bundle")
        seal(folder, KIND, VERSION, content)
    return out


def _open(run: Path, as_of_time: datetime | None) -> _Trained:
    config = run_config(run)
    if config.knowledge.control != "none":
        raise InputError(
            f"{run}: was trained with the control {config.knowledge.control!r} in the place of knowledge, "
            "to be compared and not to be served; export the run without it"
        )
    data, source, model = open_trained(run)
    folder = None if config.knowledge_folder is None else KnowledgeFolder.open(config.knowledge_folder, data)
    latest = data.positives["time"].max() if data.positives.height else 0
    moment = max(int(data.time[-1]), int(latest)) + 1  # type: ignore[arg-type]
    if as_of_time is not None:
        moment = round(as_of_time.timestamp() * 1e6)
    return _Trained(config, read_result(run), data, source, model, folder, moment)


def _write_fields(trained: _Trained, folder: Path, side: Literal["user", "item"]) -> None:
    """The encoded fields of a side, a row a code, and one more for whoever is unknown."""
    data = trained.data
    entities = data.users if side == "user" else data.items
    found: dict[str, list[NDArray[Any]]] = {kind: [] for kind in KINDS}
    for place in places(data.schema).values():
        if place.spec.side == side:
            column = _entity_column(trained, place.spec, side, entities)
            found[place.spec.kind].append(column.reshape(len(column), -1))
    for kind in KINDS:
        empty = np.zeros((entities.height + 1, 0), TYPES[kind])
        np.save(folder / f"{side}s" / f"{kind}.npy", np.concatenate([empty, *found[kind]], 1).astype(TYPES[kind]))


def _entity_column(
    trained: _Trained, spec: FieldSpec, side: Literal["user", "item"], entities: pl.DataFrame
) -> NDArray[Any]:
    data = trained.data
    record = data.manifest["fields"][spec.name]
    vocabulary = None if spec.kind == "numeric" else data.vocabulary(spec.name)
    name = side if is_id(spec, data.schema) else spec.source
    if name in entities.columns:
        missing = pl.Series([None], dtype=entities[name].dtype)
        column = encode_fitted(spec, record, vocabulary, pl.concat([entities[name], missing]), f"{side}s.parquet")
        if is_id(spec, data.schema):
            column[-1] = 0
        return column
    missing = pl.Series([None], dtype=pl.Float64 if spec.kind == "numeric" else pl.String)
    blank = encode_fitted(spec, record, vocabulary, missing, spec.name)
    column = np.repeat(blank, entities.height + 1, 0)
    code = np.asarray(data.user if side == "user" else data.item)
    rows = np.flatnonzero(np.asarray(data.time) < trained.moment)
    column[code[rows]] = data.field(spec.name)[rows]  # of several rows the last one, which is the latest, stays
    return column


def _write_vocabularies(data: PreparedData, lookup: LookupWriter) -> None:
    for spec in data.schema.fields:
        if spec.kind != "numeric":
            values = [] if is_id(spec, data.schema) else data.vocabulary(spec.name).values.to_list()
            lookup.numbers(vocabulary_table(spec.name), values, range(1, len(values) + 1))


def _titles(data: PreparedData) -> list[str]:
    """What people call an item: its title or category, or its id."""
    text = data.schema.item_text
    columns = [c for c in (text.title, text.category) if c is not None and c in data.items.columns][:1]
    titles: list[str] = data.items.select(pl.coalesce([pl.col(c).cast(pl.String) for c in [*columns, "item"]]))[
        :, 0
    ].to_list()
    return titles


def _write_knowledge(trained: _Trained, folder: Path) -> tuple[Sources, StateRule]:
    """Item vectors, the sums of composed states, and the latest prompted state of each user."""
    data, config = trained.data, trained.config.knowledge
    composed = tuple(source for source in ("own", "others") if source in trained.needs)
    users: list[Literal["prompted", "own", "others"]] = [*composed]
    items = ItemVectors(np.zeros((data.items.height, 0), np.float32), np.zeros(data.items.height, bool), {})
    if trained.needs & {"own", "others", "item"}:
        assert trained.folder is not None
        items = items_of(trained.folder, data, config)
    known = np.append(items.known, [False])
    table = np.concatenate([items.vectors, np.zeros((1, items.vectors.shape[1]), np.float32)])
    np.save(folder / "items" / "vectors.npy", np.concatenate([table, ~known[:, None]], 1).astype(np.float32))
    rule = StateRule(
        sources=composed,
        scenarios=data.scenario_count,
        width=items.vectors.shape[1],
        half_life_days=config.half_life_days,
        half_life_events=config.half_life_events,
        behaviour_weights=tuple(behaviour_weights(data, config).tolist()),
        counts=_count_scales(trained, composed) if config.counts else (),
    )
    events = _events(trained)
    usable = (np.asarray(rule.behaviour_weights)[events.behaviour] > 0) & known[events.item]
    keys, sums = sums_of_users(events[usable], items.vectors, rule)
    np.save(folder / "users" / "state_keys.npy", keys)
    for name, part in vars(sums).items():
        np.save(folder / "users" / f"state_{name}.npy", part)
    prompted = 0
    if "prompted" in trained.needs:
        assert trained.folder is not None
        users.insert(0, "prompted")
        states, _ = prompted_states(trained.folder, data, config)
        everyone = np.arange(data.users.height, dtype=np.int32)
        latest = as_of(states.user, states.time, everyone, np.full(len(everyone), trained.moment))
        prompted = states.vectors.shape[1]
        blank = np.zeros((1, prompted), np.float32)
        vectors = np.concatenate([blank, states.vectors])[np.append(latest, [0])]
        flags = np.append(latest, [0])[:, None] == 0
        np.save(folder / "users" / "prompted.npy", np.concatenate([vectors, flags], 1).astype(np.float32))
    scenario = trained.source.widths.scenario
    sources = Sources(
        users=tuple(users),
        prompted=prompted,
        item=items.vectors.shape[1] if "item" in trained.needs else 0,
        scenario=0 if scenario is None else scenario.shape[1],
    )
    return sources, rule


def _count_scales(trained: _Trained, composed: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    tensors, _ = read_tensors(trained.result.folder / "knowledge.safetensors")
    names = [f"counts {source}" for source in composed]
    return tuple((float(tensors[f"{n}/mean"][0]), float(tensors[f"{n}/deviation"][0])) for n in names)


def _events(trained: _Trained) -> Events:
    """The positives before the bundle's moment, in order of user and time."""
    frame = trained.data.positives.filter(pl.col("time") < trained.moment)
    columns = [frame[name].to_numpy() for name in ("user", "time", "item", "scenario", "behaviour")]
    return Events(*columns)


def _write_histories(trained: _Trained, folder: Path) -> None:
    events = _events(trained)
    offsets = np.searchsorted(events.user, np.arange(trained.data.users.height + 1))
    np.save(folder / "users" / "history_offsets.npy", offsets.astype(np.int64))
    for name in ("time", "item", "scenario", "behaviour"):
        np.save(folder / "users" / f"history_{name}.npy", getattr(events, name))
    data = trained.data
    train = slice(0, data.split.valid)
    scenario, item = np.asarray(data.scenario[train]), np.asarray(data.item[train])
    for d in range(data.scenario_count):
        shown = np.bincount(item[scenario == d], minlength=data.items.height)
        most = np.argsort(-shown, kind="stable")[:POPULAR]
        np.save(folder / "items" / f"popular_{d}.npy", most[shown[most] > 0].astype(np.int32))


def _scenario_cards(trained: _Trained) -> list[ScenarioCard]:
    data, texts = trained.data, _scenario_texts(trained.folder)
    vectors = None if trained.folder is None else _level_vectors(trained.folder)
    train = slice(0, data.split.valid)
    scenario, label = np.asarray(data.scenario[train]), np.asarray(data.label[train])
    cards = []
    for d, declared in enumerate(data.schema.scenarios):
        there = scenario == d
        cards.append(
            ScenarioCard(
                value=declared.value,
                title=declared.title,
                description=declared.description,
                notes=declared.notes,
                text=texts.get(d, ""),
                rows=int(there.sum()),
                click_rate=round(float(label[there].mean()), 6) if there.any() else None,
                auc=trained.result.scores.scenarios[d].auc,
                similarity=None if vectors is None else [round(float(v), 6) for v in vectors[d] @ vectors.T],
                context=_usual_context(data, np.flatnonzero(there)),
            )
        )
    return cards


def _usual_context(data: PreparedData, rows: NDArray[np.intp]) -> dict[str, Any]:
    """The most usual raw value of each categorical context field in some rows, the mean of each numeric one."""
    found: dict[str, Any] = {}
    for spec in data.schema.fields:
        if (
            spec.side != "context"
            or spec.kind == "multi"
            or spec.source == data.schema.columns.scenario
            or not len(rows)
        ):
            continue
        column = np.asarray(data.field(spec.name)[rows])
        if spec.kind == "numeric":
            record, mean = data.manifest["fields"][spec.name], float(np.nanmean(column)) if len(column) else 0.0
            found[spec.name] = round(mean * record["deviation"] + record["mean"], 6) if np.isfinite(mean) else None
        elif (counts := np.bincount(column)[1:]).any():
            found[spec.name] = data.vocabulary(spec.name).values[int(counts.argmax())]
    return found


def _scenario_texts(folder: KnowledgeFolder | None) -> dict[int, str]:
    if folder is None or not (folder.index["level"] == "scenario").any():
        return {}
    with Stores(folder.path, read_only=True) as store:
        answers = [(d, store.read(key)) for d, key in folder.subjects("scenario").select("subject", "key").iter_rows()]
    return {d: answer.text for d, answer in answers if answer is not None}


def _level_vectors(folder: KnowledgeFolder) -> NDArray[np.float32] | None:
    """The scenarios' standardised vectors at length 1, `(D, d)`."""
    if not (folder.index["level"] == "scenario").any():
        return None
    raw = folder.level("scenario")[1]
    vectors = Reduction.fit(raw, 0).apply(raw)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def _user_texts(trained: _Trained) -> Iterator[tuple[int, str]]:
    """For each user with a snapshot: its time, the text that the LLM wrote, and how that ended."""
    folder = trained.folder
    if folder is None or not (folder.index["level"] == "user").any():
        return
    index = folder.subjects("user").filter((pl.col("time") < trained.moment) | (folder.leaks != ""))
    latest = index.sort("subject", "time").group_by("subject", maintain_order=True).last()
    writer = folder.writer(trained.data)
    with Stores(folder.path, read_only=True) as store:
        for user, time, key in latest.select("subject", "time", "key").iter_rows():
            answer = text_of_snapshot(store, folder, writer, user, time, key)
            record = {
                "snapshot": _iso(time),
                "time": time,
                "text": "" if answer is None else answer.text,
                "finish_reason": "" if answer is None else answer.finish_reason,
            }
            yield user, json.dumps(record, ensure_ascii=False)


def _write_means(trained: _Trained, folder: Path) -> None:
    """The population's means over training rows."""
    rows = np.unique(np.linspace(0, trained.data.split.valid - 1, _SAMPLE).astype(np.int64))
    batch = trained.source.make(rows)
    with torch.inference_mode():
        means = {"embedding": trained.model.embedding(batch).mean(0, keepdim=True)}
        if batch.users is not None:
            means["users"] = mean_state(batch.users, trained.source.widths.users)
        if batch.item is not None:
            known = batch.item[batch.item[:, -1] == 0]
            means["item"] = (known if len(known) else batch.item).mean(0, keepdim=True)
    write_tensors(folder / "means.safetensors", means)


def _manifest(trained: _Trained, sources: Sources, rule: StateRule) -> dict[str, Any]:
    data, result, layout = trained.data, trained.result, trained.source.layout
    folder = trained.folder
    return {
        "schema": data.schema.model_dump(mode="json"),
        "fields": data.manifest["fields"],
        "model": trained.config.model.model_dump(mode="json"),
        "layout": {"categorical": list(layout.categorical), "multi": list(layout.multi), "numeric": layout.numeric},
        "sources": sources.model_dump(mode="json"),
        "states": asdict(rule),
        "as_of": _iso(trained.moment),
        "split": {"valid": _iso(data.split.valid_time), "test": _iso(data.split.test_time)},
        "counts": {name: data.manifest["counts"][name] for name in ("rows", "users", "items", "positives")},
        "metrics": {"overall": _metrics(result.scores.overall), "mean_auc": result.scores.mean_auc},
        "knowledge": None
        if folder is None or not trained.needs
        else {
            "llm": folder.manifest["engine"],
            "protocol": folder.config.snapshots.protocol if "prompted" in trained.needs else "composed",
            "history": folder.config.history,
            "leaks": result.leaks,
        },
        "trained": {"seconds": result.seconds, "epoch": result.best_epoch, "parameters": result.parameters},
    }


def _metrics(score: Score) -> dict[str, Any]:
    return {"rows": score.rows, "auc": score.auc, "log_loss": score.log_loss}


def _iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, tz=UTC).isoformat()


def _write_json(path: Path, content: Any) -> None:
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
