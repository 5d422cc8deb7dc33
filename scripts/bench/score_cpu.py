"""Seconds to score 70,066 rows, the size of the published validation set, with 1,000 bootstrap resamples.

    python scripts/bench/score_cpu.py --raw_dir=raw --out=score_cpu.json

Rows per source are those of the validation split of nlpie/Llama2-MedTuned-Instructions. Sentences of named entities are
real ones of --raw_dir, repeated up to the count; the credentialed sources and hoc are made up. Every fifth answer has a
mistake, of which some cannot be read. Timed is `score_file` from predictions.jsonl to the last report. The bar is 60 s
of wall time on 2 cores; CPU time is told beside it, for it does not grow with what else runs there.
"""

from __future__ import annotations

import cProfile
import itertools
import json
import pstats
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from absl import app, flags

_RAW = flags.DEFINE_string("raw_dir", None, "Folder with NCBI-disease, BC5CDR-* and JNLPBA.", required=True)
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_PROTOCOLS = flags.DEFINE_list("protocols", ["aligned", "legacy_medtuned"], "Which protocols.")
_PROFILE = flags.DEFINE_bool("profile", False, "Print what takes the time.")

BAR_SECONDS = 60.0
# Source -> (rows, the raw source whose development sentences it takes; "" = made up).
ROWS = {
    "NCBI-disease": (923, "NCBI-disease"),
    "BC5CDR-disease": (4581, "BC5CDR-disease"),
    "BC5CDR-chem": (4581, "BC5CDR-chem"),
    "BC2GM": (2519, "JNLPBA"),
    "JNLPBA": (3856, "JNLPBA"),
    "i2b2-2012": (5664, "BC5CDR-disease"),
    "i2b2-2010": (43_000, ""),
    "MedNLI": (1395, ""),
    "hoc": (3547, ""),
}


def main(_: list[str]) -> None:
    from medtune_jax.evaluate.protocols import Protocol
    from medtune_jax.evaluate.score import score_file

    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "predictions.jsonl"
        count = write_predictions(path)
        for protocol in _PROTOCOLS.value:
            profile = cProfile.Profile()
            started, cpu = time.perf_counter(), time.process_time()
            if _PROFILE.value:
                profile.enable()
            scores = score_file(path, Path(temporary) / protocol, protocol=cast(Protocol, protocol))
            profile.disable()
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            leading = {name: entry["metrics"][entry["metric"]] for name, entry in scores.document["sources"].items()}
            took = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
            found.append({"protocol": protocol, "rows": count, **took, "metrics": leading})
            if _PROFILE.value:
                pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    print(f"{'protocol':<18}{'rows':>8}{'seconds':>9}{'of CPU':>8}")
    for one in found:
        verdict = "met" if one["seconds"] < BAR_SECONDS else "missed"
        figures = f"{one['rows']:>8,}{one['seconds']:>9}{one['cpu_seconds']:>8}"
        print(f"{one['protocol']:<18}{figures}  bar of {BAR_SECONDS:g} s {verdict}")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")


def write_predictions(path: Path) -> int:
    """Writes the predictions and returns how many there are."""
    from medtune_jax.tasks.registry import get_source

    rng, count = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as file:
        for name, (rows, raw) in ROWS.items():
            task = get_source(name).task
            examples = itertools.cycle(sentences(raw, task)) if raw else made_up(name, task, rng)
            for annotation in itertools.islice(examples, rows):
                input, output = task.render(annotation)
                generated = spoilt(output, task, rng) if count % 5 == 0 else output
                group = f"{name}-{count // 10}" if name == "hoc" else ""
                line = {"source": name, "group": group, "input": input, "output": output, "generated": generated}
                file.write(json.dumps(line) + "\n")
                count += 1
    return count


def sentences(raw: str, task: Any) -> list[Any]:
    """Returns the development sentences of a raw source, their mentions given the types of a typed task in turn."""
    from medtune_jax.data_prep.readers.conll import read_conll
    from medtune_jax.tasks.ner import NerTask

    found = []
    types = itertools.cycle(task.labels or ("",))
    for tokens, tags in read_conll(Path(_RAW.value) / raw / "devel.tsv", NerTask()).annotations:
        kind, typed = "", []
        for tag in tags:
            kind = next(types) if tag == "B" else kind
            typed.append(f"{tag}-{kind}" if kind and tag != "O" else tag)
        found.append((tokens, tuple(typed)))
    return found


def made_up(name: str, task: Any, rng: random.Random) -> Iterator[Any]:
    """Yields invented annotations; relations are as one-sided as the published ones, 37 of 43 without any."""
    words = ["The", "patient", "reports", "pain", "after", "treatment", "with", "a", "new", "drug", "."]
    for number in itertools.count():
        text = " ".join(rng.choices(words, k=30)) + f" {number}"
        if name == "MedNLI":
            yield text, " ".join(rng.choices(words, k=10)), rng.choice(task.labels)
        elif name == "hoc":
            yield text, (rng.choice(task.labels),) if rng.random() < 0.25 else ()
        else:
            yield text, task.negative if rng.random() < 37 / 43 else rng.choice(task.labels)


def spoilt(output: str, task: Any, rng: random.Random) -> str:
    """Returns an answer with a mistake: half the lines of entities retagged or dropped, another label, or no answer."""
    if rng.random() < 0.1:
        return "I cannot tell."
    if task.kind == "ner":
        lines = [line for line in output.split("\n") if rng.random() < 0.9]
        return "\n".join(line.rpartition(" : ")[0] + " : O" if rng.random() < 0.2 else line for line in lines)
    return rng.choice(task.labels)


if __name__ == "__main__":
    app.run(main)
