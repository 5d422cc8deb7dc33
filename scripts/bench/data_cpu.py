"""Seconds and memory to encode and pack 200,252 rows, the training rows of Llama2-MedTuned-Instructions.

    python scripts/bench/data_cpu.py --raw_dir=raw --tokenizer=llama2 --out=data_cpu.json

Rows per source are the published ones; the rows are real ones of --raw_dir, repeated up to the count, and sources that
are not at hand are stood in for by rows of like kind (SHARES says which). Timed are reading, encoding into an empty
cache, hashing and packing for each length, and once more from the cache. Memory is the proportional set size of this
process and its workers, sampled: shared pages count once. Bars: 180 s and 2 GB on 2 cores, 97 % filled.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags

_RAW = flags.DEFINE_string("raw_dir", None, "Folder of raw corpora, as for `medtune prepare`.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder with Llama 2's tokenizer.model.", required=True)
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_LENGTHS = flags.DEFINE_list("lengths", ["1024", "2048", "4096"], "Positions of a sequence.")
_WEIGHT = flags.DEFINE_float("decision_weight", 1.0, "train.decision_weight; other than 1, tasks are asked row by row.")

SHARES = {  # source -> (rows, the source at hand whose rows it takes)
    "NCBI-disease": (5_424, "NCBI-disease"),
    "BC5CDR-disease": (4_560, "BC5CDR-disease"),
    "BC5CDR-chem": (4_560, "BC5CDR-chem"),
    "BC2GM": (12_574, "JNLPBA"),
    "JNLPBA": (14_690, "JNLPBA"),
    "i2b2-2012": (6_755, "BC5CDR-disease"),
    "hoc": (12_119, "hoc"),
    "MedNLI": (11_232, "hoc"),
    "i2b2-2010": (22_256, "hoc"),
    "chatdoctor": (56_082, "chatdoctor"),
    "pmc_llama": (50_000, "PubMedQA"),
}
BARS = {"seconds": 180.0, "gigabytes": 2.0, "filled": 0.97}


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows_of_all(Path(folder))
        found: dict[str, Any] = {"rows": rows, "decision_weight": _WEIGHT.value}
        for turn in ("encoded", "cached"):
            found[turn] = in_a_process_of_its_own(Path(folder))
    show(found)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")


def write_rows_of_all(folder: Path) -> int:
    """Writes train.parquet of the published size; returns its rows."""
    from medtune_jax.data_prep.prepare import prepare
    from medtune_jax.tasks.rows import Row, read_rows, write_rows

    at_hand = sorted({taken for _, taken in SHARES.values()})
    prepare(folder / "at_hand", raw_dir=Path(_RAW.value), sources=at_hand)
    by_source: dict[str, list[Row]] = {name: [] for name in at_hand}
    for row in read_rows(folder / "at_hand", "train"):
        by_source[row.source].append(row)
    repeated = (itertools.islice(itertools.cycle(by_source[taken]), count) for count, taken in SHARES.values())
    rows = list(itertools.chain.from_iterable(repeated))
    write_rows(folder / "train.parquet", rows)
    return len(rows)


def in_a_process_of_its_own(folder: Path) -> dict[str, Any]:
    """Returns `measure(folder)`: this process has held the rows already."""
    import multiprocessing

    options = (folder, _TOKENIZER.value, [int(length) for length in _LENGTHS.value], _WEIGHT.value)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, options)


def measure(folder: Path, tokenizer_folder: str, lengths: list[int], weight: float) -> dict[str, Any]:
    """Reads, encodes and packs; returns seconds by part, memory in GB, and what the sequences are like."""
    from medtune_jax.data.cache import encode_cached
    from medtune_jax.data.loader import TrainData
    from medtune_jax.data.prompts import get_template
    from medtune_jax.data.tokenizer import load_tokenizer
    from medtune_jax.tasks.rows import read_rows

    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()

    packed = {}
    with Memory() as memory:
        rows = read_rows(folder / "train.parquet")
        lap("read")
        tokenizer, template = load_tokenizer(tokenizer_folder), get_template("medtuned_train")
        encode = partial(encode_cached, tokenizer, template, rows, folder=folder / "cache", overlong="drop")
        encoded, report = encode(max_length=max(lengths), decision_weight=weight)
        lap("encode")
        for length in lengths:
            fitting = encoded
            if int(encoded.lengths.max()) > length:
                fitting, _ = encode(max_length=length, decision_weight=weight)
                lap(f"encode again for {length}")
            data = TrainData(fitting, max_length=length, batch_size=16, packing=True, seed=0, epochs=1.0)
            lap(f"plan {length}")
            data.batch(data.total_steps // 2)
            began = time.perf_counter()
            for step in range(20):
                data.batch(step)
            milliseconds = 1000 * (time.perf_counter() - began) / 20
            began = time.perf_counter()
            packed[length] = {"filled": round(data.filled, 4), "batch_milliseconds": round(milliseconds, 2)}
    return {
        "seconds": seconds,
        "gigabytes": round(memory.peak / 1e9, 2),
        "tokens": report.tokens,
        "loss_tokens": report.loss_tokens,
        "packed": packed,
    }


class Memory:
    """The highest proportional set size of this process and its children, bytes, sampled while it is entered."""

    def __enter__(self) -> Memory:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        while not self._done.wait(0.25):
            total = 0
            for one in [process, *process.children(recursive=True)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue  # it has just ended
            self.peak = max(self.peak, total)


def show(found: dict[str, Any]) -> None:
    """Prints the figures and the bars."""
    for turn in ("encoded", "cached"):
        one = found[turn]
        main_path = [name for name in one["seconds"] if not name.startswith("encode again")]
        total = sum(one["seconds"][name] for name in main_path)
        parts = ", ".join(f"{name} {value}" for name, value in one["seconds"].items())
        print(f"{turn}: {total:.1f} s ({parts}), {one['gigabytes']} GB")
        if turn == "encoded":
            print(f"  bar {BARS['seconds']:g} s {verdict(total <= BARS['seconds'])}", end=", ")
            print(f"bar {BARS['gigabytes']:g} GB {verdict(one['gigabytes'] <= BARS['gigabytes'])}")
            print(f"  {found['rows']:,} rows, {one['tokens']:,} tokens, {one['loss_tokens']:,} bear loss")
            for length, packed in one["packed"].items():
                print(
                    f"  {length} positions: {packed['filled']:.2%} filled, bar 97 % "
                    f"{verdict(packed['filled'] >= BARS['filled'])}; {packed['batch_milliseconds']} ms a batch of 16"
                )


def verdict(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    app.run(main)
