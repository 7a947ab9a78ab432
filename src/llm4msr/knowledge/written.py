"""What the LLM wrote of scenarios and users: for the vectors or, where these need no text, for people on request."""

from __future__ import annotations

import polars as pl

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer, EngineFor, Generation, Refusal
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.prompts import PromptWriter
from llm4msr.knowledge.store import answer_key
from llm4msr.knowledge.stores import Stores

FOR_PEOPLE = Generation(pooling="last_generated", max_new_tokens=160)
"""How a text is written on request."""


def scenario_texts(folder: KnowledgeFolder) -> dict[int, str]:
    """What the LLM wrote of each scenario, by index; empty if it was not asked about scenarios."""
    asked = folder.index.filter(pl.col("level") == "scenario").select("subject", "key").rows()
    if not asked:
        return {}
    with Stores(folder.path, read_only=True) as stores:
        answers = [(scenario, stores.read(key)) for scenario, key in asked]
    return {scenario: answer.text for scenario, answer in answers if answer is not None}


def text_of_snapshot(
    stores: Stores, folder: KnowledgeFolder, writer: PromptWriter, user: int, time: int, key: bytes
) -> Answer | None:
    """What the LLM wrote of a user's snapshot: for the vector or, if that needed no text, on request."""
    if not folder.config.user.generates:
        prompt = writer.user(user, time)
        kept = None if prompt is None else stores.read(_key(folder, prompt))
        if kept is not None:
            return kept
    return stores.read(key)


def text_on_request(folder: KnowledgeFolder, prompt: str, engine: EngineFor) -> Answer:
    """The text of a user's prompt that was written on request, or is written now and kept in the store.

    `engine` is called only if the text has to be written. Raises `InputError` if the engine is another one than the
    knowledge was made with, or writes nothing.
    """
    key = _key(folder, prompt)
    with Stores(folder.path, read_only=True) as stores:
        kept = stores.read(key)
    if kept is not None:
        return kept
    llm = engine(folder.manifest["engine"])
    folder.require(llm)
    (written,) = [answer for batch in llm.run([prompt], FOR_PEOPLE) for _, answer in batch]
    if isinstance(written, Refusal):
        raise InputError(f"no text can be written: {written.reason}")
    with Stores(folder.path) as stores:
        stores.write([(key, written)])
    return written


def _key(folder: KnowledgeFolder, prompt: str) -> bytes:
    return answer_key(folder.manifest["engine"], FOR_PEOPLE, prompt)
