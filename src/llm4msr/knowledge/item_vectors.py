"""A vector for each item: from the LLM, from further readings, from statistics of its text, or several joined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from llm4msr.data.prepared import PreparedData
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.readings import open_reading
from llm4msr.knowledge.vectors import Reduction


@dataclass(frozen=True)
class ItemVectors:
    """A vector for each item code, a mask of the `known` ones `(items,)`, and the fitted reductions.

    Row 0 of `table` `(items + 1, k)` is the vector of the unknown item, which is zero.
    """

    table: NDArray[np.float32]
    known: NDArray[np.bool_]
    reductions: dict[str, Reduction]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The items' own vectors, `(items, k)`."""
        return self.table[1:]

    @classmethod
    def of(cls, vectors: NDArray[np.float32], known: NDArray[np.bool_] | None = None) -> ItemVectors:
        """Wrap given vectors `(items, k)`. Without `known`, all items are known."""
        table = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors])
        return cls(table, np.ones(len(vectors), dtype=bool) if known is None else known, {})


def item_vectors(folder: KnowledgeFolder, data: PreparedData, kinds: tuple[str, ...], dimensions: int) -> ItemVectors:
    """The vectors of each kind side by side, each reduced to its share of the dimensions.

    Kinds are `llm`; `text`: TF-IDF and SVD of the prompt that the LLM reads; `categories`: TF-IDF and SVD of the item's
    category alone; and names of readings. An item is known if every kind knows it. All statistics are fitted on the
    items of the training part. Raises `InputError` if the folder has no items, or no such reading.
    """
    trained = trained_items(data)
    share = max(1, dimensions // len(kinds))
    parts: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    reductions: dict[str, Reduction] = {}
    known = np.ones(data.items.height, dtype=bool)
    for kind in kinds:
        name = "item" if kind == "llm" else f"item {kind}"
        if kind in ("text", "categories"):
            codes = folder.subjects("item")["subject"].to_numpy()
            texts = folder.item_texts(data, codes) if kind == "text" else _categories(data, codes)
            raw = text_vectors(texts, trained[codes], share)
            reductions[name] = Reduction.fit(raw[trained[codes]], share)
            reduced = reductions[name].apply(raw)
        else:
            read = folder if kind == "llm" else open_reading(folder, data, kind)
            index, reduced, reductions[name] = read.reduced("item", share, lambda i: trained[i["subject"].to_numpy()])
            codes = index["subject"].to_numpy()
        parts.append((codes, reduced))
        here = np.zeros_like(known)
        here[codes] = True
        known &= here
    table = np.zeros((data.items.height + 1, sum(reduced.shape[1] for _, reduced in parts)), dtype=np.float32)
    start = 0
    for codes, reduced in parts:
        table[codes + 1, start : start + reduced.shape[1]] = reduced
        start += reduced.shape[1]
    table[1:][~known] = 0.0
    return ItemVectors(table, known, reductions)


def trained_items(data: PreparedData) -> NDArray[np.bool_]:
    """Which items occur in the training part, in its rows or its history, `(items,)`."""
    trained = np.zeros(data.items.height, dtype=bool)
    trained[data.item[: data.split.valid]] = True
    past = data.positives.filter(pl.col("time") < data.split.valid_time)
    trained[past["item"].to_numpy()] = True
    return trained


def text_vectors(texts: list[str], training: NDArray[np.bool_], dimensions: int) -> NDArray[np.float32]:
    """TF-IDF of words and SVD, fitted on the texts of the training part, `(n, k)`; zeros if those have no word."""
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
    """Each item's category, or its title if the schema names no category."""
    column = data.schema.item_text.category or data.schema.item_text.title
    if column is None:
        return [""] * len(codes)
    texts: list[str] = data.texts("item", column).gather(codes).fill_null("").to_list()
    return texts
