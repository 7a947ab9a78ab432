"""What several tests share: a small generated shop, a tiny language model, and knowledge made of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.frames import from_frames
from llm4msr.knowledge.engines.base import Generation
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.history import Snapshots
from llm4msr.knowledge.reason import reason
from llm4msr.knowledge.reason_config import ReasonConfig
from llm4msr.schema import Schema

torch.set_num_threads(1)  # tensors are tiny here; threads would only wait for each other

SHOP = {
    "name": "shop",
    "description": "a small shop",
    "columns": {
        "user": "user",
        "item": "item",
        "scenario": "place",
        "time": "time",
        "time_unit": "s",
        "label": "click",
    },
    "scenarios": [
        {"value": "search", "name": "search", "description": "people type queries"},
        {"value": "feed", "name": "feed", "description": "people scroll"},
        {"value": "mail", "name": "mail", "description": "people get letters"},
    ],
    "fields": [
        {"name": "user", "side": "user", "min_count": 1},
        {"name": "item", "side": "item", "min_count": 1},
        {"name": "colour", "side": "item"},
        {"name": "price", "side": "item", "kind": "numeric"},
        {"name": "tags", "side": "item", "kind": "multi", "max_values": 3},
        {"name": "hour", "side": "context"},
    ],
    "item_text": {"title": "title", "category": "colour"},
    "behaviours": [{"name": "clicked"}],
}

FAST = ReasonConfig(
    history=3,
    snapshots=Snapshots(slices=2),
    scenario=Generation(pooling="last_generated", max_new_tokens=4),
)
"""Reasoning that a test can afford."""


def shop_frames(rows: int = 1200, users: int = 30, items: int = 40, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Impressions in which users like items of their own colour, so that there is something to learn."""
    random = np.random.default_rng(seed)
    colours = np.array(["red", "green", "blue", "white"])
    colour = random.integers(0, 4, items)
    taste = random.integers(0, 4, users)
    user, item = random.integers(0, users, rows), random.integers(0, items, rows)
    place = random.choice(["search", "feed", "mail"], rows, p=[0.5, 0.4, 0.1])
    chance = np.where(colour[item] == taste[user], 0.8, 0.15)
    interactions = pl.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in item],
            "place": place,
            "time": np.sort(random.integers(1_000_000, 2_000_000, rows)),
            "click": (random.random(rows) < chance).astype(int),
            "hour": random.integers(0, 24, rows),
        }
    )
    catalogue = pl.DataFrame(
        {
            "item": [f"i{i}" for i in range(items)],
            "colour": colours[colour],
            "title": [f"{colours[c]} thing {i}" for i, c in enumerate(colour)],
            "price": np.round(random.random(items) * 10, 2),
            "tags": [
                "|".join(random.choice(["new", "sale", "bulky"], n, replace=False))
                for n in random.integers(0, 4, items)
            ],
        }
    )
    return {"interactions": interactions, "items": catalogue}


@pytest.fixture(scope="session", autouse=True)
def _converted_models_go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that tests convert are not left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "llm4msr.knowledge.engines.openvino.cache_folder", lambda: tmp_path_factory.getbasetemp() / "cache"
        )
        yield


@pytest.fixture(scope="session")
def shop_schema() -> Schema:
    return Schema.checked(SHOP, "the shop")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, shop_schema: Schema) -> PreparedData:
    """The prepared shop; read it, do not change it."""
    return prepare(from_frames(shop_schema, **shop_frames()), tmp_path_factory.mktemp("shop") / "data")


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random-weight Llama of two layers and a tokenizer of bytes."""
    return make_tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def tiny_engine(tiny_llm: Path) -> TransformersEngine:
    return TransformersEngine(tiny_llm, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def shop_knowledge(
    tmp_path_factory: pytest.TempPathFactory, shop: PreparedData, tiny_engine: TransformersEngine
) -> KnowledgeFolder:
    """What the tiny model knows of the shop; read it, do not change it."""
    folder = tmp_path_factory.mktemp("knowledge")
    reason(shop, tiny_engine, folder, FAST)
    return KnowledgeFolder.open(folder, shop)


def make_tiny_llm(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*specials, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=specials[0], eos_token=specials[1])
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(letters) + 2,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
