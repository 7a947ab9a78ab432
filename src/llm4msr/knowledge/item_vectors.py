"""A vector for each item: the LLM's reading of it, plain statistics of the same text, or several of them joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.vectors import Reduction

ItemKind = Literal["llm", "text", "categories"]
"""`text`: TF-IDF and SVD of the very prompt that the LLM reads; `categories`: of the item's category alone."""


@dataclass(frozen=True)
class ItemVectors:
    """A vector for each item code `(items, k)`, which of them are `known` `(items,)`, and how they were reduced."""

    vectors: NDArray[np.float32]
    known: NDArray[np.bool_]
    reductions: dict[str, Reduction]


def item_vectors(
    folder: KnowledgeFolder, data: PreparedData, kinds: tuple[ItemKind, ...], dimensions: int
) -> ItemVectors:
    """The vectors of each kind side by side, each reduced to its share of the dimensions.

    All statistics are fitted on the items of the training part. Raises `InputError` where the folder has no items.
    """
    trained = trained_items(data)
    share = max(1, dimensions // len(kinds))
    parts, reductions = [], {}
    codes = folder.subjects("item")["subject"].to_numpy()
    for kind in kinds:
        name = "item" if kind == "llm" else f"item {kind}"
        if kind == "llm":
            _, reduced, reductions[name] = folder.reduced("item", share, lambda i: trained[i["subject"].to_numpy()])
        else:
            texts = folder.item_texts(data, codes) if kind == "text" else _categories(data, codes)
            raw = text_vectors(texts, trained[codes], share)
            reductions[name] = Reduction.fit(raw[trained[codes]], share)
            reduced = reductions[name].apply(raw)
        parts.append(reduced)
    joined = np.concatenate(parts, 1)
    vectors = np.zeros((data.items.height, joined.shape[1]), dtype=np.float32)
    known = np.zeros(data.items.height, dtype=bool)
    vectors[codes], known[codes] = joined, True
    return ItemVectors(vectors, known, reductions)


def trained_items(data: PreparedData) -> NDArray[np.bool_]:
    """Which items occur in the training part, in its rows or its history, `(items,)`."""
    trained = np.zeros(data.items.height, dtype=bool)
    trained[data.item[: data.split.valid]] = True
    past = data.positives.filter(pl.col("time") < data.split.valid_time)
    trained[past["item"].to_numpy()] = True
    return trained


def text_vectors(texts: list[str], training: NDArray[np.bool_], dimensions: int) -> NDArray[np.float32]:
    """TF-IDF of words and SVD, fitted on the texts of the training part, `(n, k)`; zeros where those have no word."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=50_000, token_pattern=r"(?u)\b\w+\b")
    try:
        fitted = vectorizer.fit_transform([texts[i] for i in np.flatnonzero(training)])
    except ValueError:
        return np.zeros((len(texts), 1), dtype=np.float32)
    width = min(dimensions, fitted.shape[1] - 1, fitted.shape[0] - 1)
    everything = vectorizer.transform(texts)
    if width < 1:
        return np.asarray(everything.toarray(), dtype=np.float32)
    svd = TruncatedSVD(width, random_state=0).fit(fitted)
    return np.asarray(svd.transform(everything), dtype=np.float32)


def _categories(data: PreparedData, codes: NDArray[np.int32]) -> list[str]:
    """Each item's category, or its title where the schema names no category."""
    column = data.schema.item_text.category or data.schema.item_text.title
    if column is None:
        return [""] * len(codes)
    name = "item" if column == data.schema.columns.item else column
    texts: list[str] = data.items[name].cast(pl.String).fill_null("").gather(codes).to_list()
    return texts
