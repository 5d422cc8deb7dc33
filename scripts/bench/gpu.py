"""Checks, training and decoding speed on one GPU, beside transformers and PEFT, each call under ten minutes.

    bash scripts/bench/gpu.sh --out=DIR                    # checks and training: DIR/gpu.json, a table at the end
    bash scripts/bench/gpu.sh --out=DIR2 --work=decoding   # gpu_generate.py and its peer

Llama2-7B's shape, random weights made on the device, packs of 4,096 positions. The parts, each a process of its own
with the GPU to itself, the most valuable first: each attention backend's correctness and time (the fastest right one is
used from there on); full fine-tuning, here and there; LoRA of rank 16 on all projections, here and there; tiny runs of
`medtune train`, one resumed; the other side's full fine-tuning in this side's precision; QLoRA. What a part may take is
in PARTS; one that would begin after --seconds is left out, and the report says so. On a GPU too small for 7B's full
fine-tuning both sides have fewer layers there: the table says how many, and tokens per second have no bar then.
Speed is tokens without padding over the median time of an update. This process needs neither jax nor torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from gpu_work import SHAPES, parameters

_SHAPE = flags.DEFINE_enum("shape", "llama2_7b", list(SHAPES), "The model; tiny is for a CPU.")
_WORK = flags.DEFINE_enum("work", "training", ["training", "decoding"], "Which parts, where --parts does not say.")
_PARTS = flags.DEFINE_list("parts", None, "Some of the parts by name.")
_STEPS = flags.DEFINE_integer("steps", 8, "Updates that are timed.", lower_bound=1)
_WAYS = flags.DEFINE_integer("ways", 2, "Ways of saving memory that are measured, of each work.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 570.0, "In all.")
_OUT = flags.DEFINE_string("out", None, "Folder for gpu.json.", required=True)

HERE = Path(__file__).resolve().parent
# What a weight takes while all are tuned: float32 weight and second moment, bfloat16 first moment, float32 gradient,
# bfloat16 copy for the products; and room for activations.
BYTES_PER_WEIGHT, BYTES_BESIDE = 4 + 4 + 2 + 4 + 2, 14e9
MEMORY_SHARE = 0.94  # of the device, for JAX
# (medtune part) -> tokens/s least and wanted; ratio to the peer least and wanted.
BARS = {"full": (11_000, 13_500, 1.3, 1.5), "lora": (None, 19_000, None, 1.5)}
PEERS = {"full": ("peer full", "peer full f32"), "lora": ("peer lora",)}


@dataclasses.dataclass(frozen=True)
class Part:
    """A program of this folder, its arguments, and the most seconds that it may take."""

    program: str
    words: tuple[str, ...]
    most: float

    @property
    def is_check(self) -> bool:
        return self.program == "gpu_check.py"

    @property
    def is_decoding(self) -> bool:
        return self.program.startswith("gpu_generate")


PARTS = {
    "cudnn": Part("gpu_check.py", ("--check=cudnn",), 45),
    "triton": Part("gpu_check.py", ("--check=triton",), 45),
    "xla": Part("gpu_check.py", ("--check=xla",), 45),
    "full": Part("gpu_medtune.py", ("--tuning=full",), 150),
    "peer full": Part("gpu_peer.py", ("--tuning=full",), 100),
    "lora": Part("gpu_medtune.py", ("--tuning=lora",), 110),
    "peer lora": Part("gpu_peer.py", ("--tuning=lora",), 90),
    "runs": Part("gpu_check.py", ("--check=runs",), 90),
    "peer full f32": Part("gpu_peer.py", ("--tuning=full_f32",), 80),
    "qlora": Part("gpu_medtune.py", ("--tuning=qlora",), 80),
    "decode": Part("gpu_generate.py", (), 180),
    "decode int8": Part("gpu_generate.py", ("--cache_dtype=int8", "--prefill_tokens="), 120),
    "peer decode": Part("gpu_generate_peer.py", (), 240),
}
_LEAST = 25.0  # seconds: with less left no part is begun


def main(_: list[str]) -> None:
    end = time.monotonic() + _SECONDS.value
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    name, memory = gpu()
    layers = layers_that_fit(memory)
    report: dict[str, Any] = {"gpu": name, "memory_bytes": memory, "shape": _SHAPE.value, "parts": {}}
    if layers < SHAPES[_SHAPE.value].layers:
        report["note"] = (
            f"full fine-tuning with {layers} of {SHAPES[_SHAPE.value].layers} layers: {name} has "
            f"{memory / 2**30:.0f} GiB"
        )
        print(report["note"], file=sys.stderr)
    for part in _PARTS.value or [name for name in PARTS if PARTS[name].is_decoding == (_WORK.value == "decoding")]:
        left = end - time.monotonic()
        if left < _LEAST:
            report["parts"][part] = {"error": "no time was left for it"}
        else:
            words = arguments(part, layers, report["parts"])
            most = min(left, PARTS[part].most) if _SHAPE.value != "tiny" else left
            report["parts"][part] = in_a_process(PARTS[part], words, most)
        (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
        print(f"{part}: {report['parts'][part]}", file=sys.stderr, flush=True)
    print(table(report))


def gpu() -> tuple[str, float]:
    """Returns the first GPU's name and bytes of memory, as the driver tells; ("cpu", infinity) without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "cpu", float("inf")
    name, mebibytes = told.rsplit(",", 1)
    return name.strip(), float(mebibytes) * 2**20


def layers_that_fit(memory: float) -> int:
    """Returns how many layers of the shape can be tuned as a whole with so many bytes."""
    shape = SHAPES[_SHAPE.value]
    if memory == float("inf"):
        return shape.layers
    weights = (memory * MEMORY_SHARE - BYTES_BESIDE) / BYTES_PER_WEIGHT
    none, one = (parameters(dataclasses.replace(shape, layers=count)) for count in (0, 1))
    return max(1, min(shape.layers, int((weights - none) / (one - none))))


def arguments(part: str, layers: int, done: dict[str, Any]) -> list[str]:
    """Returns what a part is told beside its own words."""
    words = [f"--shape={_SHAPE.value}"]
    if PARTS[part].is_check or PARTS[part].is_decoding:
        return words
    words += [f"--steps={_STEPS.value}", f"--ways={_WAYS.value}"]
    if part in ("full", *PEERS["full"]):
        words.append(f"--layers={layers}")
    if not part.startswith("peer"):
        words.append(f"--attention={fastest_attention(done)}")
    return words


def fastest_attention(done: dict[str, Any]) -> str:
    """Returns the backend to use: of those found right, the fastest; xla where none was, "auto" where none was checked.

    "auto" could be one that was found wrong.
    """
    checks = {name for name in done if PARTS[name].is_check and name != "runs"}
    right = {name: found["seconds"] for name, found in done.items() if found.get("right") and "seconds" in found}
    return min(right, key=lambda name: right[name], default="xla" if checks else "auto")


def in_a_process(part: Part, words: list[str], most: float) -> dict[str, Any]:
    """Runs a part for at most so many seconds; returns what it had written by then."""
    path = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        written, log = Path(folder) / "out.json", Path(folder) / "log"
        command = [sys.executable, str(HERE / part.program), *part.words, *words, f"--out={written}"]
        if not part.is_check:
            command.append(f"--seconds={most}")
        with log.open("w") as file:
            try:
                status = subprocess.run(command, env=environment, stdout=file, stderr=file, timeout=most).returncode
            except subprocess.TimeoutExpired:
                status = None
        found = json.loads(written.read_text()) if written.is_file() else {}
        if status is None:
            found["stopped"] = f"after {most:.0f} s"
        if status or not found.keys() - {"stopped"}:
            error = "it had found nothing yet" if status is None else f"exit status {status}"
            found = {"error": error, "log": log.read_text()[-2000:], **found}
    return {**found, "took_seconds": round(time.monotonic() - began, 1)}


def table(report: dict[str, Any]) -> str:
    """Returns the findings as text: checks, speeds, ratios beside their bars."""
    lines = [f"{report['gpu']}, {report['shape']}. {report.get('note', '')}", ""]
    lines.append(f"{'part':14} {'tokens/s':>9} {'padded':>9} {'MFU':>6} {'GiB':>6} {'layers':>6}  how")
    for name, found in report["parts"].items():
        if "tokens_per_second" in found:
            mfu = "" if found.get("mfu") is None else f"{found['mfu']:.1%}"
            taken = found.get("bytes_by_compiler", found.get("bytes_by_allocator"))
            memory = "" if taken is None else f"{taken / 2**30:.1f}"
            lines.append(
                f"{name:14} {found['tokens_per_second']:9,.0f} {found['padded_tokens_per_second']:9,.0f} {mfu:>6} "
                f"{memory:>6} {found['layers']:6}  {found['saving']}, {found['packs']} packs, {found['attention']}"
            )
        elif "decode" in found:
            lines += decoded(name, found)
        else:
            lines.append(f"{name:14} {told_of(found)}")
    lines += ["", "GiB at the highest: of this side as the compiler plans an update, of the peer's as torch allocated."]
    whole = "note" not in report and report["shape"] == "llama2_7b"
    return "\n".join([*lines, "", *verdicts(report["parts"], whole)])


def decoded(name: str, found: dict[str, Any]) -> list[str]:
    """Returns the lines of a decoding part: each batch's tokens per second and shares of the limits, and prefill."""
    lines = []
    for batch, one in found["decode"].items():
        if "error" in one:
            lines.append(f"{name:14} batch {batch}: FAILED: {one['error']}")
            continue
        shares = [f"{key.replace('_', ' ')} {value:.1%}" for key, value in one.items() if key.startswith("share")]
        how = ", ".join([*shares, one.get("cache", "")]).strip(", ")
        lines.append(
            f"{name:14} {one['tokens_per_second']:9,.0f} batch {batch}, {one['step_seconds'] * 1e3:.2f} ms; {how}"
        )
    for tokens, one in found.get("prefill", {}).items():
        if "error" in one:
            lines.append(f"{name:14} prefill of {tokens}: FAILED: {one['error']}")
        else:
            mfu = "" if one["mfu"] is None else f", MFU {one['mfu']:.1%}"
            lines.append(f"{name:14} {one['tokens_per_second']:9,.0f} prefill of {tokens}{mfu}")
    return lines


def told_of(found: dict[str, Any]) -> str:
    """Returns a check's findings, or what went wrong, in a line."""
    if "error" in found:
        return f"FAILED: {found['error']}"
    if "seconds" in found:
        verdict = "right" if found["right"] else "WRONG"
        return f"{verdict}, {found['seconds'] * 1e3:.2f} ms forward and backward of {found['packs']} packs"
    checks = {name: one["right"] for name, one in found.items() if isinstance(one, dict)}
    stopped = f" {found['stopped']}" if "stopped" in found else ""
    return ", ".join(f"{name} {'right' if right else 'WRONG'}" for name, right in checks.items()) + stopped


def verdicts(parts: dict[str, Any], whole: bool) -> list[str]:
    """Returns the lines that lay speeds and ratios beside their bars; tokens per second count for the whole model."""
    lines = []
    for name, (least, wanted, least_ratio, wanted_ratio) in BARS.items():
        speed = parts.get(name, {}).get("tokens_per_second")
        if speed is None:
            continue
        if whole:
            lines.append(f"{name}: {speed:,.0f} tokens/s; bar {_held(speed, least)}, goal {_held(speed, wanted)}")
        for peer in PEERS[name]:
            theirs = parts.get(peer, {}).get("tokens_per_second")
            if theirs:
                ratio = speed / theirs
                lines.append(
                    f"{name} beside {peer}: {ratio:.2f}; bar {_held(ratio, least_ratio)}, "
                    f"goal {_held(ratio, wanted_ratio)}"
                )
    return lines


def _held(value: float, bar: float | None) -> str:
    return "none" if bar is None else f"{bar:,} {'held' if value >= bar else 'MISSED'}"


if __name__ == "__main__":
    app.run(main)
