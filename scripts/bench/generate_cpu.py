"""Decoding speed on this machine, beside transformers' generate on torch.

    python scripts/bench/generate_cpu.py --out=generate_cpu.json
    python scripts/bench/generate_cpu.py --model=runs/ncbi --data=rows --out=generate_cpu.json

Greedy decoding and search with 4 beams of a random model of the tiny shape, --prompt_tokens given and --new_tokens
forced, for each batch size and float type: tokens written per second from prompts to texts, compilation left out. With
--model (a run or a Hugging Face directory, tuned on NCBI-disease) and --data (its rows) also the way from prompts to
scores: `medtune evaluate` by template over the whole test split, compilation and scoring included, beside how
Llama2-MedTuned was evaluated: 4 beams, one row at a time, up to 512 new tokens, timed on --sample rows spread over the
split, scoring not included.
Each measurement is a process of its own; the systems take turns, --rounds times, and the median is told.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags

_BATCHES = flags.DEFINE_list("batches", ["1", "8", "32"], "Batch sizes of greedy decoding.")
_BEAM_BATCHES = flags.DEFINE_list("beam_batches", ["1", "8"], "Batch sizes of beam search.")
_TYPES = flags.DEFINE_list("types", ["f32", "bf16"], "Which float types.")
_PROMPT = flags.DEFINE_integer("prompt_tokens", 160, "Tokens of each prompt.")
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens written to each prompt.")
_MODEL = flags.DEFINE_string("model", None, "Model tuned on NCBI-disease, for the way from prompts to scores.")
_DATA = flags.DEFINE_string("data", None, "Folder of prepared NCBI-disease rows.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Slots of template decoding.")
_POSITIONS = flags.DEFINE_integer("max_positions", None, "Positions that --model is used with.")
_SAMPLE = flags.DEFINE_integer("sample", 10, "Rows that the authors' way is timed on.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each system.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_WORKER = flags.DEFINE_string("worker", None, "(internal) What this process measures.")
_HOME = flags.DEFINE_string("home", None, "(internal) Folder with the random model.")

TINY: dict[str, Any] = {
    "hidden_size": 288,
    "num_layers": 6,
    "num_heads": 6,
    "intermediate_size": 768,
    "vocab_size": 32000,
}
# The least ratio to transformers, and the wanted one; None = no bar.
GREEDY_BARS: dict[int, tuple[float | None, float]] = {1: (1.0, 1.0), 8: (None, 1.0), 32: (None, 1.0)}
BEAMS, BEAM_GOAL = 4, 1.0
SCORES_BAR, SCORES_GOAL = 20.0, 50.0
_REPEATS = 4  # runs within a process, of which the first (it compiles) does not count


def main(_: list[str]) -> None:
    if _WORKER.value:
        print(json.dumps(WORKERS[_WORKER.value]()))
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = write_model(Path(temporary) / "model")
        for kind in _TYPES.value:
            for batch in map(int, _BATCHES.value):
                speeds = alternate(("medtune", "transformers"), home, kind, batch)
                least, wanted = GREEDY_BARS.get(batch, (None, 1.0))
                found.append(compared(f"greedy, batch {batch}, {kind}", "tokens/s", speeds, least, wanted))
            for batch in map(int, _BEAM_BATCHES.value):
                speeds = alternate(("medtune beams", "transformers beams"), home, kind, batch)
                found.append(compared(f"{BEAMS} beams, batch {batch}, {kind}", "tokens/s", speeds, None, BEAM_GOAL))
        if _MODEL.value and _DATA.value:
            speeds = alternate(("medtune scores", "transformers beam"), home, "f32", 1)
            found.append(compared("NCBI-disease test, prompts to scores", "rows/s", speeds, SCORES_BAR, SCORES_GOAL))
    print(table(found))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")


def write_model(home: Path) -> Path:
    """Writes a random model of the tiny shape as a Hugging Face directory, and returns it."""
    import jax

    from medtune_jax.convert.hf_export import export_params
    from medtune_jax.model.llama import LlamaConfig, init_params

    config = LlamaConfig(
        num_kv_heads=TINY["num_heads"],
        head_dim=TINY["hidden_size"] // TINY["num_heads"],
        max_positions=1024,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        **TINY,
    )
    export_params(init_params(jax.random.key(0), config), config, home)
    return home


def alternate(systems: tuple[str, str], home: Path, kind: str, batch: int) -> list[list[dict[str, Any]]]:
    """Measures two systems in turns, each time in a process of its own; returns the measurements of each."""
    measured: list[list[dict[str, Any]]] = [[], []]
    for _ in range(_ROUNDS.value):
        for system, list_ in zip(systems, measured, strict=True):
            words = [sys.executable, __file__, f"--worker={system}", f"--home={home}", f"--types={kind}"]
            words += [f"--batches={batch}"]
            given = (_PROMPT, _NEW, _MODEL, _DATA, _BATCH_SIZE, _POSITIONS, _SAMPLE)
            words += [f"--{flag.name}={flag.value}" for flag in given if flag.value is not None]
            path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(path)}
            ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise RuntimeError(f"{system} failed:\n{ran.stderr[-3000:]}")
            list_.append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"{system}, {kind}, batch {batch}: {list_[-1]}", file=sys.stderr, flush=True)
    return measured


def compared(
    work: str, unit: str, measured: list[list[dict[str, Any]]], least: float | None, wanted: float
) -> dict[str, Any]:
    """Returns one line of the table; speeds are medians."""
    ours, theirs = (statistics.median(one["speed"] for one in runs) for runs in measured)
    return {
        "work": work,
        "unit": unit,
        "medtune": ours,
        "transformers": theirs,
        "ratio": ours / theirs,
        "bar": least,
        "goal": wanted,
        "runs": measured,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Returns the figures as a Markdown table."""
    lines = ["| work | medtune | transformers | ratio | bar | goal |", "| --- | --- | --- | --- | --- | --- |"]
    for one in found:
        bar = "none" if one["bar"] is None else f"{one['bar']:g} {'met' if one['ratio'] >= one['bar'] else 'MISSED'}"
        goal = f"{one['goal']:g} {'met' if one['ratio'] >= one['goal'] else 'missed'}"
        lines.append(
            f"| {one['work']} | {one['medtune']:.4g} {one['unit']} | {one['transformers']:.4g} | {one['ratio']:.2f} "
            f"| {bar} | {goal} |"
        )
    return "\n".join(lines)


def random_prompts() -> list[list[int]]:
    """Returns the same random prompts to every system."""
    import random

    draw = random.Random(0)
    return [[1, *(draw.randrange(5, 30000) for _ in range(_PROMPT.value - 1))] for _ in range(int(_BATCHES.value[0]))]


def timed(run: Callable[[], list[list[int]]]) -> dict[str, Any]:
    """Returns tokens per second of the best run but the first, and a checksum of what was written."""
    seconds, written = [], []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        written = run()
        seconds.append(time.perf_counter() - began)
    return {"speed": sum(map(len, written)) / min(seconds[1:]), "tokens": sum(map(sum, written)), "seconds": seconds}


def measure_medtune(beams: int = 1) -> dict[str, Any]:
    from medtune_jax.convert.hf_import import load_params, read_config
    from medtune_jax.generate.engine import Engine
    from medtune_jax.generate.sampling import Beam, Greedy

    silent: Any = SimpleNamespace(eos_id=-1, decode=lambda ids: "")  # no text, and no end: the length is forced
    config = read_config(str(_HOME.value))
    dtype = {"f32": "float32", "bf16": "bfloat16"}[_TYPES.value[0]]
    engine = Engine(load_params(str(_HOME.value), config, dtype), config, silent, dtype=dtype)
    prompts = random_prompts()
    method = Greedy() if beams == 1 else Beam(beams)

    def run() -> list[list[int]]:
        answers = engine.generate(prompts, method=method, max_new_tokens=_NEW.value, batch_size=len(prompts), seed=0)
        return [list(answer.tokens) for answer in answers]

    return timed(run)


def measure_transformers(beams: int = 1) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[_TYPES.value[0]]
    model = LlamaForCausalLM.from_pretrained(_HOME.value, dtype=dtype).eval()
    prompts = torch.tensor(random_prompts())

    @torch.no_grad()
    def run() -> list[list[int]]:
        written = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=_NEW.value,
            min_new_tokens=_NEW.value,
            num_beams=beams,
            do_sample=False,
            pad_token_id=0,
        )
        return written[:, prompts.shape[1] :].tolist()

    return timed(run)


def measure_scores() -> dict[str, Any]:
    from medtune_jax.evaluate.run import evaluate
    from medtune_jax.generate.decoding import Decoding

    with tempfile.TemporaryDirectory() as out:
        result = evaluate(
            str(_MODEL.value),
            str(_DATA.value),
            "test",
            out,
            sources=["NCBI-disease"],
            batch_size=_BATCH_SIZE.value,
            decoding=Decoding(max_positions=_POSITIONS.value),
        )
    assert result is not None  # of several processes one speaks
    timing = result["timing"]
    return {"speed": timing["rows"] / (timing["wall_seconds"] - timing["load_seconds"]), **timing}


def measure_beam() -> dict[str, Any]:
    """The authors' evaluation loop, on rows spread evenly over the split."""
    import torch
    from transformers import LlamaForCausalLM

    from medtune_jax.convert.hf_export import export_params
    from medtune_jax.data.encode import encode_prompt
    from medtune_jax.data.prompts import get_template
    from medtune_jax.tasks.rows import read_rows
    from medtune_jax.train.load import load_model

    loaded = load_model(str(_MODEL.value), max_positions=_POSITIONS.value)
    with tempfile.TemporaryDirectory() as folder:
        export_params(loaded.params, loaded.config, Path(folder) / "model")
        model = LlamaForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()
    rows = read_rows(str(_DATA.value), "test", ["NCBI-disease"])
    rows = rows[:: max(1, len(rows) // _SAMPLE.value)][: _SAMPLE.value]
    template = get_template(loaded.template or "medtuned_train")
    seconds, written = 0.0, 0
    for row in rows:
        prompt = torch.tensor([encode_prompt(loaded.tokenizer, template, row.instruction, row.input)])
        began = time.perf_counter()
        with torch.no_grad():
            answer = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                num_beams=BEAMS,
                max_new_tokens=512,
                do_sample=False,
                eos_token_id=loaded.tokenizer.eos_id,
                pad_token_id=0,
            )
        seconds += time.perf_counter() - began
        written += answer.shape[1] - prompt.shape[1]
    return {"speed": len(rows) / seconds, "rows": len(rows), "tokens": written, "seconds": seconds}


WORKERS = {
    "medtune": measure_medtune,
    "transformers": measure_transformers,
    "medtune beams": lambda: measure_medtune(BEAMS),
    "transformers beams": lambda: measure_transformers(BEAMS),
    "medtune scores": measure_scores,
    "transformers beam": measure_beam,
}

if __name__ == "__main__":
    app.run(main)
