"""The scripts: the choice of a Python, the folder that quickstart may clear, the quickstart, the GPU benchmark."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def bash(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)


def quickstart(out: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    command = [sys.executable, "scripts/quickstart.py", str(out)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "venv.sh", "bench/gpu.sh"])
def test_scripts_are_valid_bash(script):
    assert bash(f"bash -n scripts/{script}").returncode == 0


def test_the_first_python_that_is_new_enough_is_chosen(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    found = bash(f". scripts/venv.sh; find_python {tmp_path}/absent {old} {sys.executable} python3")
    assert found.stdout.strip() == sys.executable


def test_without_a_python_the_message_says_what_to_install(tmp_path):
    found = bash(f". scripts/venv.sh; find_python {tmp_path}/absent")
    assert found.returncode == 1 and not found.stdout
    assert "Python 3.11 or newer" in found.stderr and "PYTHON=" in found.stderr


def test_test_sh_refuses_an_unknown_option():
    assert bash("bash scripts/test.sh --fast").returncode == 2


def test_quickstart_never_clears_a_folder_that_it_did_not_write(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = quickstart(tmp_path)
    assert done.returncode == 1 and "holds other files" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_quickstart_runs_twice_and_every_task_is_learned(tmp_path):
    for _ in range(2):
        done = quickstart(tmp_path)
        assert done.returncode == 0, done.stderr
        assert "largest difference of a logit between run and export: 0.0" in done.stdout


# ------------------------------------------------------------------------------------------------ the GPU benchmark

BENCH = REPOSITORY / "scripts" / "bench"


def module(name: str, monkeypatch, *flags: str):
    """Imports scripts/bench/<name>.py, its flags parsed."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"bench_{name}", loaded)
    from absl import flags as absl_flags

    own = absl_flags.FlagValues()
    monkeypatch.setattr(absl_flags, "FLAGS", own)
    for define in ("DEFINE_enum", "DEFINE_list", "DEFINE_integer", "DEFINE_float", "DEFINE_string"):
        plain = getattr(absl_flags, define)
        monkeypatch.setattr(absl_flags, define, lambda *a, plain=plain, **k: plain(*a, **k, flag_values=own))
    spec.loader.exec_module(loaded)
    own([name, *flags])
    return loaded


def test_seven_billion_weights_are_tuned_whole_on_an_h200_and_in_part_on_an_h100(monkeypatch):
    gpu = module("gpu", monkeypatch, "--out=x")
    assert gpu.parameters(gpu.SHAPES["llama2_7b"]) == 6_738_415_616
    assert gpu.layers_that_fit(143771 * 2**20) == 32
    assert 16 <= gpu.layers_that_fit(81559 * 2**20) < 32
    assert gpu.layers_that_fit(float("inf")) == 32


def test_the_fastest_backend_that_was_found_right_is_used(monkeypatch):
    gpu = module("gpu", monkeypatch, "--out=x")
    checks = {
        "cudnn": {"right": False, "seconds": 0.01},
        "triton": {"right": True, "seconds": 0.02},
        "xla": {"right": True, "seconds": 0.2},
    }
    assert gpu.fastest_attention(checks) == "triton"
    assert gpu.fastest_attention({"cudnn": {"right": False}, "triton": {"error": "x"}, "xla": {"error": "x"}}) == "xla"
    assert gpu.fastest_attention({"full": {"tokens_per_second": 1.0}, "runs": {}}) == "auto"  # nothing was checked
    assert "--attention=triton" in gpu.arguments("lora", 20, checks)
    assert "--layers=20" in gpu.arguments("peer full", 20, checks)
    assert not any(word.startswith("--layers") for word in gpu.arguments("lora", 20, checks))


def test_bars_are_printed_with_their_verdict_and_not_for_a_part_of_the_model(monkeypatch):
    gpu = module("gpu", monkeypatch, "--out=x")
    parts = {"full": {"tokens_per_second": 12000.0}, "peer full": {"tokens_per_second": 10000.0}}
    assert gpu.verdicts(parts, whole=True) == [
        "full: 12,000 tokens/s; bar 11,000 held, goal 13,500 MISSED",
        "full beside peer full: 1.20; bar 1.3 MISSED, goal 1.5 MISSED",
    ]
    assert len(gpu.verdicts(parts, whole=False)) == 1


def test_memory_is_of_the_way_that_is_told_and_not_the_highest_of_all_ways(monkeypatch):
    gpu = module("gpu", monkeypatch, "--out=x")
    rest = {"layers": 2, "saving": "full", "packs": 1, "attention": "xla"}
    figures = {"tokens_per_second": 9.0, "padded_tokens_per_second": 10.0, **rest}
    ours = {**figures, "bytes_by_compiler": 3 * 2**30, "highest_bytes_of_process": 7 * 2**30}
    theirs = {**figures, "bytes_by_allocator": 5 * 2**30}
    told = gpu.table({"gpu": "cpu", "shape": "tiny", "parts": {"full": ours, "peer full": theirs}})
    assert " 3.0 " in told and " 5.0 " in told and " 7.0 " not in told


def test_ways_that_do_not_fit_are_told_and_passed_over(monkeypatch):
    work = module("gpu_work", monkeypatch)
    told = []

    def measure(saving, packs):
        if packs == 8:
            raise MemoryError("needs 150 GiB of 131")
        return {"tokens_per_second": 100.0 / packs, "losses": [1.0]}

    ways = [("none", 8), ("none", 4), ("full", 2), ("full", 1)]
    work.best_of(ways, measure, told.append, most=2, until=float("inf"), enough=1.0)
    assert told[0]["error"] == "no way of computing ran"
    assert (told[-1]["packs"], len(told[-1]["ways"])) == (2, 3)  # the faster of two; the fourth was not begun
    assert "150 GiB" in told[-1]["ways"][0]["error"]
    late = []
    work.best_of(ways[1:], measure, late.append, most=2, until=float("-inf"), enough=1.0)
    assert len(late) == 1  # one is measured however late it is


def test_a_part_that_hangs_or_fails_leaves_what_it_had_found(monkeypatch, tmp_path):
    gpu = module("gpu", monkeypatch, "--out=x")
    found = "import json,sys,time; open(sys.argv[-2].split('=')[1], 'w').write(json.dumps({'tokens_per_second': 5.0}));"
    for name, then in (("hangs", "time.sleep(60)"), ("fails", "sys.exit('CUDA error')")):
        (tmp_path / f"{name}.py").write_text(found + then)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    stopped = gpu.in_a_process(gpu.Part("hangs.py", (), 3), [], 3.0)
    assert (stopped["tokens_per_second"], stopped["stopped"]) == (5.0, "after 3 s")
    failed = gpu.in_a_process(gpu.Part("fails.py", (), 9), [], 9.0)
    assert failed["tokens_per_second"] == 5.0 and "CUDA error" in failed["log"] and failed["error"] == "exit status 1"


def run_gpu_bench(out: Path, *words: str) -> dict:
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}
    command = ["bash", "scripts/bench/gpu.sh", f"--out={out}", "--shape=tiny", "--steps=1", "--ways=1", *words]
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "how" in ran.stdout
    return json.loads((out / "gpu.json").read_text())["parts"]


def test_the_gpu_benchmark_runs_from_end_to_end_on_a_cpu(tmp_path):
    pytest.importorskip("torch")
    parts = run_gpu_bench(tmp_path, "--parts=full,peer full")
    ours, theirs = parts["full"], parts["peer full"]
    assert "error" not in ours and "error" not in theirs
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], abs=0.2)  # random weights: about log(vocabulary)


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    pytest.importorskip("peft")
    parts = run_gpu_bench(tmp_path, "--seconds=1500")
    assert {name for name, found in parts.items() if "error" in found} == {"cudnn", "triton"}  # kernels for GPUs
    assert parts["xla"]["right"] and all(found["right"] for found in parts["runs"].values() if isinstance(found, dict))
