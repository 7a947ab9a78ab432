"""The time to prepare files of KuaiSAR's shape, beside a pandas and scikit-learn pipeline, in one run.

    python -m benchmarks.prepare_speed [--scale 0.1] [--rounds 2]

The pipeline does what public multi-scenario code does: read the CSV files, concatenate the two scenarios, join the
features of users and items, sort by time, fit a `LabelEncoder` on each of the 12 fields over all rows, save them all.
It checks nothing, keeps no history, and fits its vocabularies on the test part, too. Ours is `llm4msr prepare`.
Each runs in its own process, whose peak memory is printed. They take turns, and the fastest round of each counts,
because on a virtual machine the first process to touch memory may have to wait for the host.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kuaisar_files import Shape, write_files
from llm4msr.allocation import keep_freed_memory
from llm4msr.data.prepare import prepare
from llm4msr.data.sources import read_source

_USER = ("user_id", "search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
_ITEM = ("item_id", "author_id", "item_type", "upload_type", "first_level_category_id", "second_level_category_id")


def ours(files: Path, out: Path) -> None:
    """`llm4msr prepare --source kuaisar`."""
    prepare(read_source("kuaisar", {"folder": str(files)}), out)


def pipeline(files: Path, out: Path) -> None:
    """The same files with pandas and scikit-learn."""
    import pandas as pd
    from sklearn.preprocessing import LabelEncoder

    def read(name: str, columns: list[str]) -> Any:
        return pd.read_csv(files / f"{name}.csv", usecols=columns, on_bad_lines="skip", low_memory=False)

    shown = read("rec_inter", ["user_id", "item_id", "timestamp", "click"])
    found = read("src_inter", ["user_id", "item_id", "search_session_timestamp", "click_cnt"])
    shown = shown.assign(scenario=0, label=(pd.to_numeric(shown["click"], errors="coerce") > 0).astype(int))
    found = found.assign(scenario=1, label=(pd.to_numeric(found["click_cnt"], errors="coerce") > 0).astype(int))
    found = found.rename(columns={"search_session_timestamp": "timestamp"})
    rows = pd.concat([shown.drop(columns="click"), found.drop(columns="click_cnt")], ignore_index=True)
    for column in ("user_id", "item_id", "timestamp"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce")
    rows = rows.dropna()
    rows["hour"] = pd.to_datetime(rows["timestamp"], unit="ms").dt.hour
    for name, fields in (("user_features", _USER), ("item_features", _ITEM)):
        table = read(name, list(fields))
        table[fields[0]] = pd.to_numeric(table[fields[0]], errors="coerce")
        rows = rows.merge(table, on=fields[0], how="left")
    rows = rows.sort_values("timestamp")
    out.mkdir(parents=True)
    for field in (*_USER, *_ITEM, "hour"):
        np.save(out / f"{field}.npy", LabelEncoder().fit_transform(rows[field].fillna(-1).astype(str)))
    for field in ("scenario", "label", "timestamp"):
        np.save(out / f"{field}.npy", rows[field].to_numpy())


def _measured(work: Any, files: Path, out: Path, answers: Any) -> None:
    keep_freed_memory()  # as `llm4msr prepare` does; this also applies to the pipeline
    began = time.perf_counter()
    work(files, out)
    answers.put((time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def main() -> None:
    """Write the files, run both, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    scale = options.scale
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shape = Shape().scaled(scale)
        write_files(folder / "files", shape)
        os.sync()  # unwritten pages would slow down the first of the two
        print(f"{shape.recommended + shape.searched:,} rows, {shape.items:,} items")
        contenders = {"llm4msr": ours, "pandas and LabelEncoder": pipeline}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, work in contenders.items():
                answers = spawn.Queue()
                process = spawn.Process(target=_measured, args=(work, folder / "files", folder / name, answers))
                process.start()
                process.join()
                took, memory = answers.get(timeout=10)
                shutil.rmtree(folder / name)
                seconds[name].append(took)
                print(f"{name}: {took:.1f} s, peak {memory:.1f} GiB", flush=True)
        fastest = [min(times) for times in seconds.values()]
        print(f"ratio: {fastest[1] / fastest[0]:.1f}")


if __name__ == "__main__":
    main()
