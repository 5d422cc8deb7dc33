#!/usr/bin/env bash
# Checks, training and decoding speed on one GPU, beside transformers and PEFT (scripts/bench/gpu.py says what and how):
#
#     bash scripts/bench/gpu.sh --out=DIR [--work=decoding] [--shape=tiny] [--parts=full,peer\ full] [--seconds=570]
#
# Without --out the figures go to $OUT, or to gpu_bench/. PYTHON names the interpreter; it needs jax with its CUDA
# plugin, optax, orbax-checkpoint, sentencepiece, pyarrow, torch, transformers and peft. Nothing is downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# one process at a time has the GPU, so it may take nearly all of it
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.94}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" scripts/bench/gpu.py --out="${OUT:-gpu_bench}" "$@"
