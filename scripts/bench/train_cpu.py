"""Training speed and memory on this machine, beside transformers' Trainer on torch.

    python scripts/bench/train_cpu.py --data=rows --tokenizer=llama2 --out=train_cpu.json

--data is a folder of prepared NCBI-disease rows, --tokenizer a folder with Llama 2's tokenizer. Each measurement is a
process of its own; the systems take turns, --rounds times, and the median is told. All read the same rows (those of at
most 512 tokens), the same ids and loss mask, the same weights, and end with one checkpoint:
  medtune         this system: 4 packed sequences of 512 positions;
  trainer         transformers.Trainer, 8 rows padded to their longest, random order: how Llama2-MedTuned was trained;
  trainer grouped the same with rows grouped by length, its strongest setting.
With --tunings=lora both sides tune adapters of rank 16 on all seven projections of each layer, the other side by PEFT.
Speed is tokens (padding not counted) over the wall time of an update, the median over updates, the first two left out.
bf16 = float32 weights, bfloat16 matmuls (autocast on the other side); frozen weights are bfloat16 then.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

_DATA = flags.DEFINE_string("data", None, "Folder of prepared NCBI-disease rows.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder with Llama 2's tokenizer.", required=True)
_SHAPES = flags.DEFINE_list("shapes", ["tiny", "small"], "Which shapes.")
_TUNINGS = flags.DEFINE_list("tunings", ["full", "lora"], "What is tuned: all weights, adapters.")
_TYPES = flags.DEFINE_list("types", ["f32", "bf16"], "Which float types.")
_STEPS = flags.DEFINE_integer("steps", 8, "Updates of a measurement.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Measurements of each system.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_WORKER = flags.DEFINE_string("worker", None, "(internal) The system that this process measures.")
_HOME = flags.DEFINE_string("home", None, "(internal) Folder with the model and the rows.")

SHAPES = {"tiny": (288, 6, 6, 768), "small": (512, 8, 8, 1376)}  # hidden, layers, heads, feed-forward
SYSTEMS = ("medtune", "trainer", "trainer grouped")
# (tuning, shape, type) -> least ratio to `trainer` and to `trainer grouped`; where there is none, there is no bar.
BARS: dict[tuple[str, str, str], tuple[float | None, float | None]] = {
    ("full", "tiny", "f32"): (1.4, 1.0),
    ("full", "tiny", "bf16"): (1.6, 1.2),
    ("full", "small", "f32"): (1.1, None),
    ("full", "small", "bf16"): (1.1, None),
}
GOALS: dict[tuple[str, str], tuple[float | None, float | None]] = {  # of speed, by (tuning, shape)
    ("full", "tiny"): (2.0, 1.5),
    ("full", "small"): (1.5, 1.0),
    ("lora", "tiny"): (None, 1.0),
    ("lora", "small"): (None, 1.0),
}
MEMORY_BARS, MEMORY_GOAL = {"full": 0.5, "lora": 0.33}, 0.25
RANK, ALPHA = 16, 32
LENGTH, PACKS, ROWS = 512, 4, 8
_WARM_UP = 2


def main(_: list[str]) -> None:
    if _WORKER.value:
        home = Path(str(_HOME.value))
        measure = measure_medtune if _WORKER.value == "medtune" else measure_trainer
        print(json.dumps(measure(home, _TUNINGS.value[0], _TYPES.value[0], _STEPS.value)))
        return
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for shape in _SHAPES.value:
            home = prepare(Path(temporary) / shape, shape)
            for tuning, kind in itertools.product(_TUNINGS.value, _TYPES.value):
                measured: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
                for _round in range(_ROUNDS.value):
                    for system in SYSTEMS:
                        measured[system].append(in_a_process(system, home, tuning, kind))
                        told = (
                            f"{shape} {tuning} {kind} {system}: {measured[system][-1]}, load {os.getloadavg()[0]:.1f}"
                        )
                        print(told, file=sys.stderr, flush=True)
                work = {"tuning": tuning, "shape": shape, "type": kind}
                found += [{**work, "system": system, **median(runs)} for system, runs in measured.items()]
    print(table(found))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=2) + "\n")


def prepare(home: Path, shape: str) -> Path:
    """Writes home/model (random weights, the tokenizer) and home/data (the rows that fit), and returns home."""
    import jax

    from medtune_jax.convert.hf_export import export_params
    from medtune_jax.data.encode import encode_rows
    from medtune_jax.data.prompts import get_template
    from medtune_jax.data.tokenizer import load_tokenizer
    from medtune_jax.model.llama import LlamaConfig, init_params
    from medtune_jax.tasks.rows import read_rows, write_rows

    tokenizer = load_tokenizer(_TOKENIZER.value)
    hidden, layers, heads, feed_forward = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_positions=LENGTH,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
    )
    (home / "data").mkdir(parents=True)
    export_params(init_params(jax.random.key(0), config), config, home / "model", tokenizer=tokenizer)
    rows = read_rows(_DATA.value, "train")
    encoded, _ = encode_rows(tokenizer, get_template("medtuned_train"), rows)
    kept = [row for row, length in zip(rows, encoded.lengths, strict=True) if length <= LENGTH]
    write_rows(home / "data" / "train.parquet", kept)
    return home


def in_a_process(system: str, home: Path, tuning: str, kind: str) -> dict[str, float]:
    """Measures `system` in a process of its own."""
    words = [sys.executable, __file__, f"--worker={system}", f"--home={home}", f"--types={kind}"]
    words += [f"--tunings={tuning}"]
    words += [f"--data={_DATA.value}", f"--tokenizer={_TOKENIZER.value}", f"--steps={_STEPS.value}"]
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(path)}
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{system} failed:\n{ran.stderr[-3000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def measure_medtune(home: Path, tuning: str, kind: str, steps: int) -> dict[str, float]:
    """One run of `medtune train`'s own function."""
    from medtune_jax.config import Config, LoraConfig
    from medtune_jax.train.loop import train

    plain, lora = Config(), LoraConfig(rank=RANK, alpha=ALPHA) if tuning == "lora" else LoraConfig()
    config = dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, path=str(home / "model"), lora=lora),
        data=dataclasses.replace(plain.data, path=str(home / "data"), max_length=LENGTH),
        train=dataclasses.replace(
            plain.train, steps=steps, batch_size=PACKS, precision="float32" if kind == "f32" else "bf16_compute"
        ),
        checkpoint=dataclasses.replace(plain.checkpoint, every_steps=steps),
        evaluation=dataclasses.replace(plain.evaluation, every_steps=0),
        log=dataclasses.replace(plain.log, every_steps=1, tensorboard=False),
    )
    with tempfile.TemporaryDirectory(dir=home) as workdir:
        result = train(config, workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return {
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines[_drop(steps) :]),
        "useful": sum(line["tokens"] for line in lines) / sum(line["padded_tokens"] for line in lines),
        "peak_mb": result.peak_memory_bytes / 1e6,
        "last_loss": lines[-1]["loss"],
    }


def measure_trainer(home: Path, tuning: str, kind: str, steps: int) -> dict[str, float]:
    """transformers.Trainer on the same rows, and PEFT for adapters."""
    import torch
    import transformers

    from medtune_jax.data.encode import encode_rows
    from medtune_jax.data.prompts import get_template
    from medtune_jax.data.tokenizer import load_tokenizer
    from medtune_jax.tasks.rows import read_rows

    tokenizer = load_tokenizer(home / "model")
    encoded, _ = encode_rows(tokenizer, get_template("medtuned_train"), read_rows(home / "data", "train"))
    examples = [
        {
            "input_ids": row.tokens.tolist(),
            "labels": [int(t) if w else -100 for t, w in zip(row.tokens, row.weights, strict=True)],
            "length": len(row.tokens),
        }
        for row in encoded
    ]
    batches: list[tuple[int, int]] = []  # (tokens, positions)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)
        batches.append((sum(len(row["input_ids"]) for row in rows), longest * len(rows)))

        def padded(name: str, value: int) -> Any:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    seconds: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    dtype = torch.bfloat16 if tuning == "lora" and kind == "bf16" else torch.float32  # PEFT's adapters are float32
    model: Any = transformers.LlamaForCausalLM.from_pretrained(home / "model", dtype=dtype)
    if tuning == "lora":
        import peft

        model = peft.get_peft_model(
            model,
            peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    with tempfile.TemporaryDirectory(dir=home) as output:
        arguments = transformers.TrainingArguments(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=ROWS,
            train_sampling_strategy="group_by_length" if _WORKER.value == "trainer grouped" else "random",
            learning_rate=2e-5,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            bf16=kind == "bf16",
            use_cpu=True,
            save_steps=steps,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=collate, callbacks=[Clock()]
        )
        trainer.train()
    measured = list(zip(seconds, batches, strict=False))[_drop(steps) :]  # one batch may be fetched ahead
    return {
        "tokens_per_second": statistics.median(tokens / spent for spent, (tokens, _) in measured),
        "useful": sum(tokens for tokens, _ in batches) / sum(positions for _, positions in batches),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "last_loss": next(line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line),
    }


def _drop(steps: int) -> int:
    """Updates at the beginning that are not counted: compilation, first allocations."""
    return min(_WARM_UP, steps - 1)


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(found: list[dict[str, Any]]) -> str:
    """Returns the figures, and this system's ratios beside their bars and goals."""
    lines = [f"{'tuning':6} {'shape':6} {'type':5} {'system':16} {'tokens/s':>9} {'useful':>7} {'peak MB':>8}"]
    lines += [
        f"{row['tuning']:6} {row['shape']:6} {row['type']:5} {row['system']:16} {row['tokens_per_second']:9,.0f} "
        f"{row['useful']:7.3f} {row['peak_mb']:8,.0f}"
        for row in found
    ]
    lines += [
        "",
        f"{'tuning':6} {'shape':6} {'type':5} {'medtune beside':16} {'speed':>6} {'bar':>5} {'goal':>5} {'':4} ",
    ]
    lines[-1] += f"{'memory':>6} {'bar':>5} {'goal':>5}"
    by_name = {(row["tuning"], row["shape"], row["type"], row["system"]): row for row in found}
    for tuning, shape, kind in dict.fromkeys((row["tuning"], row["shape"], row["type"]) for row in found):
        ours, most = by_name[tuning, shape, kind, "medtune"], MEMORY_BARS[tuning]
        bars = BARS.get((tuning, shape, kind), (None, None))
        for peer, bar, goal in zip(SYSTEMS[1:], bars, GOALS[tuning, shape], strict=True):
            theirs = by_name[tuning, shape, kind, peer]
            speed = ours["tokens_per_second"] / theirs["tokens_per_second"]
            memory = ours["peak_mb"] / theirs["peak_mb"]
            lines.append(
                f"{tuning:6} {shape:6} {kind:5} {peer:16} {speed:6.2f} {_bar(bar):>5} {_bar(goal):>5} "
                f"{_verdict(speed, bar):4} {memory:6.2f} {most:5.2f} {MEMORY_GOAL:5.2f} "
                f"{'held' if memory <= most else 'MISSED'}"
            )
    return "\n".join(lines)


def _bar(bar: float | None) -> str:
    return "none" if bar is None else f"{bar:.2f}"


def _verdict(ratio: float, bar: float | None) -> str:
    return "" if bar is None else "held" if ratio >= bar else "MISS"


if __name__ == "__main__":
    app.run(main)
