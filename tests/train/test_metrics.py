"""The numbers of a run: arithmetic per token, clocks, boards, the log, the picture."""

import errno
import io
import json
import logging
import math
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from tiny_run import settings

from medtune_jax.config import LoraConfig, MeshConfig, TrainConfig
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.model.lora import abstract_adapter
from medtune_jax.sharding import make_mesh
from medtune_jax.train.bad_step import bad_step_policy
from medtune_jax.train.optimizer import make_optimizer
from medtune_jax.train.records import throughput
from medtune_jax.train.records.boards import Wandb, check_boards, open_boards
from medtune_jax.train.records.metrics import MetricsLog, Recorder, read_lines
from medtune_jax.train.records.plot import plot
from medtune_jax.train.records.progress import Progress, Spent, spent_before
from medtune_jax.train.records.throughput import Work, flops_per_token, matmul_parameters, peak_flops
from medtune_jax.train.state import abstract_state
from medtune_jax.train.step import make_train_step
from medtune_jax.train.trainable import abstract_frozen

LLAMA2_7B = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, 4096, 1e-5, 1e4)
WIDE = LlamaConfig(512, 256, 704, 3, 4, 2, 64, 512, 1e-5, 1e4)  # wide enough that matrix products are nearly all
ALL = LoraConfig(rank=8)
SEQUENCE = 512


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("time.perf_counter", lambda: now.seconds)
    return now


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_the_arithmetic_of_llama2_7b_is_that_of_its_published_shape():
    assert matmul_parameters(LLAMA2_7B) == 6_738_415_616 - 32000 * 4096 - (2 * 32 + 1) * 4096
    attention = 6 * 32 * 4096 * 4096
    assert flops_per_token(LLAMA2_7B, LoraConfig(), 4096) == 6 * matmul_parameters(LLAMA2_7B) + attention
    adapters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_adapter(LLAMA2_7B, LoraConfig(rank=16))))
    assert adapters == 39_976_960
    adapted = flops_per_token(LLAMA2_7B, LoraConfig(rank=16), 4096)
    assert adapted == 4 * matmul_parameters(LLAMA2_7B) + 6 * adapters + attention


@pytest.mark.parametrize("lora", [LoraConfig(), ALL, LoraConfig(rank=8, targets=("q_proj",))], ids=str)
def test_the_formula_counts_the_matrix_products_of_the_step_that_runs(lora):
    """Every product in the traced update, each loop as often as it runs; all positions bear loss, none is recomputed.

    The XLA path attends by blocks of 64 queries: half a block more than the triangle, as if packs were 64 longer.
    """
    rows = 2
    config = settings(data__max_length=SEQUENCE, train__batch_size=rows, model__lora=vars(lora))
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, 1)
    ids, weights = (jax.ShapeDtypeStruct((rows, SEQUENCE), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = dict.fromkeys(("tokens", "positions", "segment_ids", "loss_positions", "targets"), ids)
    with jax.set_mesh(mesh):
        update = make_train_step(config, WIDE, optimizer, mesh)
        state, frozen = abstract_state(config, WIDE, optimizer, mesh), abstract_frozen(config, WIDE, mesh)
        traced = update.trace(state, frozen, batch | {"weights": weights})
    live, _ = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.jaxpr.outvars))  # as XLA will: unused, not done
    counted = product_flops(live) / (rows * SEQUENCE)
    assert counted == flops_per_token(WIDE, lora, SEQUENCE + 64)
    assert counted == pytest.approx(flops_per_token(WIDE, lora, SEQUENCE), rel=0.03)


def product_flops(jaxpr) -> int:
    """Twice the multiply-adds of every dot_general; the body of a loop counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                total += times * product_flops(getattr(inner, "jaxpr", inner))
    return total


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
        ("NVIDIA L400", None),
    ],
)
def test_a_device_has_the_peak_of_its_own_kind(kind, peak):
    assert peak_flops(kind) == peak


def test_utilisation_is_of_all_devices_and_unknown_where_the_peak_is():
    work = Work(flops_per_token(LLAMA2_7B, LoraConfig(), 4096), devices=1, peak_flops=peak_flops("NVIDIA H200"))
    assert work.mfu(11_000) == pytest.approx(0.477, abs=5e-4)  # the bar of the GPU benchmark
    assert Work(2.0, devices=8, peak_flops=100.0).mfu(200.0) == 0.5
    assert Work(2.0, devices=8, peak_flops=None).mfu(200.0) is None


def test_device_memory_is_the_highest_of_this_process_and_absent_on_a_cpu(monkeypatch):
    assert throughput.device_memory() is None
    devices = [types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (3, 5)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert throughput.device_memory() == 5


# ----------------------------------------------------------------------------------------------------------- clocks


def test_rates_count_only_the_time_between_resume_and_pause(clock):
    progress = Progress(0, 10, work=Work(3.0, devices=2, peak_flops=240.0))
    progress.resume()
    progress.count((80, 60, 20))
    clock.seconds += 2
    progress.pause()
    clock.seconds += 6  # evaluation
    progress.resume()
    progress.count((80, 60, 20))
    clock.seconds += 2
    rates = progress.rates(2)
    assert rates["step_seconds"] == 2.0
    assert (rates["padded_tokens_per_second"], rates["tokens_per_second"]) == (40.0, 30.0)
    assert rates["padded_tokens_per_second_per_device"] == 20.0
    assert rates["mfu"] == 40.0 * 3.0 / (2 * 240.0)
    assert rates["seconds_left"] == 8 * 2.0 * 10 / 4  # what is left is evaluated as often as what was done
    progress.pause()
    totals = progress.totals()
    assert (totals["loss_tokens_per_second"], totals["loss_tokens_per_second_per_device"]) == (10.0, 5.0)


def test_goodput_counts_loading_evaluation_and_lost_updates_over_all_resumptions(clock):
    began = clock.seconds
    clock.seconds += 10  # loading and compiling
    progress = Progress(0, 100, began=began)
    progress.resume()
    lines = []
    for step in (1, 2, 3):
        clock.seconds += 10
        lines.append({"step": step, **progress.rates(step)})
    assert [line["goodput"] for line in lines] == pytest.approx([10 / 20, 20 / 30, 30 / 40])

    before = spent_before([*lines, {"step": 3, "eval_loss": 1.0}], step=2)  # killed after step 3, resumed from 2
    assert before == Spent(updating=20.0, running=40.0)
    began = clock.seconds
    clock.seconds += 5
    progress = Progress(2, 100, began=began, before=before)
    progress.resume()
    clock.seconds += 15
    assert progress.rates(3)["goodput"] == pytest.approx((20 + 15) / (40 + 20))
    progress.pause()
    assert progress.totals()["goodput"] == pytest.approx(35 / 60)
    assert spent_before([], step=0) == Spent()


LINE = {"step": 2, "loss": 1.5, "seconds_left": 3725.0, "step_seconds": 0.25, "goodput": 0.9}
LINE |= {f"{kind}tokens_per_second": 1234.0 for kind in ("padded_", "", "loss_")}


class Screen(io.StringIO):
    def __init__(self, live: bool):
        super().__init__()
        self.live = live

    def isatty(self) -> bool:
        return self.live


def shown(line, monkeypatch, live: bool) -> str:
    screen = Screen(live)
    monkeypatch.setattr("sys.stderr", screen)
    Progress(0, 4).show(line)
    return screen.getvalue()


class Closed(io.StringIO):
    """A terminal that was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_closed_terminal_ends_no_run(monkeypatch):
    closed = Closed()
    monkeypatch.setattr("sys.stderr", closed)
    progress = Progress(0, 4)
    progress.show(LINE)
    progress.say("Gone on.")
    assert sys.stderr is not closed


def test_progress_overwrites_its_line_on_a_terminal_only(monkeypatch):
    for live in (True, False):
        text = shown(LINE, monkeypatch, live)
        assert text.startswith("\r") == live and text.endswith("\n") != live
        assert "step 2/4  loss 1.5000  ETA 1:02:05  0.25 s/step" in text and "1,234 padded" in text
        assert "MFU" not in text and "device memory" not in text


def test_the_line_never_wraps_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert shown(LINE, monkeypatch, live=True) == "\r\x1b[K" + "step 2/4  loss 1.5000  ETA 1:02:05  0.2"


def test_the_line_tells_utilisation_memory_and_a_skipped_update(monkeypatch):
    line = {**LINE, "mfu": 0.4321, "device_memory_bytes": 3 * 2**30, "skipped": 1.0}
    text = shown(line, monkeypatch, live=False)
    assert "step 2/4  skipped  ETA" in text and "MFU 43.2%  device memory 3.0 GiB  goodput 90%" in text


# --------------------------------------------------------------------------------------------------------- the log


def recorder(log, every: int, policy: str) -> Recorder:
    data = types.SimpleNamespace(
        total_steps=9, tokens_in=lambda _: (8, 6, 2), locate=lambda _: (0, 0), rows_in=lambda _: [4]
    )
    inputs = types.SimpleNamespace(data=data, row_numbers={4: 4}, row_ids={4: "r4"})
    progress = Progress(0, 9)
    progress.resume()
    bad_step = bad_step_policy(TrainConfig(bad_step=policy), inputs)  # type: ignore[arg-type]
    return Recorder(every, inputs, log, progress, bad_step)  # type: ignore[arg-type]


def metrics(**values):
    named = {"loss": 1.0, "weighted_loss": 1.0, "grad_norm": 1.0, "skipped": 0.0} | values
    return named | {"skipped_in_a_row": named["skipped"]}


def test_a_skipped_update_has_a_line_of_its_own_without_what_is_not_finite(tmp_path):
    with MetricsLog(tmp_path, step=0) as log:
        record = recorder(log, every=5, policy="skip")
        record.push(1, metrics(skipped=0.0))
        record.push(2, metrics(loss=math.nan, grad_norm=math.inf, skipped=1.0))
        record.push(3, metrics(skipped=0.0))
        record.flush()
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert (line["step"], line["skipped"], line["weighted_loss"]) == (2, 1.0, 1.0)
    assert "loss" not in line and "grad_norm" not in line


def test_a_bad_step_that_stops_the_run_names_step_and_rows(tmp_path):
    with MetricsLog(tmp_path, step=0) as log:
        record = recorder(log, every=5, policy="stop")
        record.push(1, metrics(loss=math.nan, skipped=1.0))
        assert not record.ends
        record.push(2, metrics(loss=math.nan, skipped=1.0))
        record.flush()
    assert re.match(r"Step 1: the loss \(nan\).*4 \(r4\)", record.ends)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl") if line["skipped"]] == [1, 2]


def test_reopening_the_log_never_leaves_it_shorter_than_it_must_be(tmp_path):
    with MetricsLog(tmp_path, step=0) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    with MetricsLog(tmp_path, step=2) as log:
        assert [line["step"] for line in log.lines] == [1, 2]
        assert log.last("loss") == 2.0 and log.last("eval_loss") is None
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


# ------------------------------------------------------------------------------------------------------------ boards


class FakeWandb(types.ModuleType):
    """What of wandb is used; `online=False`: no key or no network."""

    def __init__(self, online: bool = True, logs: bool = True):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
        self.online, self.logs = online, logs
        self.begun: list[dict] = []
        self.logged: list[dict] = []
        self.finished = 0

    def Settings(self, **settings):
        return settings

    def init(self, **told):
        self.begun.append(told)
        if not self.online and told.get("mode") != "offline":
            raise RuntimeError("api_key not configured")
        return self

    def log(self, scalars):
        if not self.logs:
            raise OSError("connection lost")
        self.logged.append(scalars)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    def install(**how):
        fake = FakeWandb(**how)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


WITH_WANDB = settings(log__wandb="medtune")


def test_wandb_is_given_the_configuration_and_scalars_and_no_text(wandb, tmp_path):
    fake = wandb()
    check_boards(WITH_WANDB.log)
    (tmp_path / "run").mkdir()
    boards = open_boards(WITH_WANDB, tmp_path / "run", 0)
    with MetricsLog(tmp_path / "run", step=0, boards=boards) as log:
        log.write({"step": 1, "loss": 2.0, "tokens": 5, "note": "a patient's name"})
        log.write({"step": 1, "split": "validation", "eval_loss": 3.0})
    (told,) = fake.begun
    assert (told["project"], told["name"], told["resume"]) == ("medtune", "run", "allow")
    assert told["config"]["train"]["steps"] == 6
    assert told["settings"] == {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
    }
    assert fake.logged == [{"train/loss": 2.0, "step": 1}, {"validation/eval_loss": 3.0, "step": 1}]
    assert fake.finished == 1
    Wandb(WITH_WANDB, tmp_path / "run")
    assert fake.begun[1]["id"] == told["id"]  # a resumed run goes on in the same one


def test_without_a_network_wandb_writes_offline_and_a_lost_one_ends_nothing(wandb, tmp_path, caplog):
    fake = wandb(online=False, logs=False)
    (board,) = open_boards(WITH_WANDB, tmp_path, 0)
    assert [told.get("mode") for told in fake.begun] == [None, "offline"]
    assert "wandb sync" in caplog.text
    board.write(1, {"train/loss": 1.0})
    board.write(2, {"train/loss": 1.0})
    assert caplog.text.count("training goes on") == 1


@pytest.mark.parametrize("package, change", [("wandb", "log.wandb="), ("tensorboardX", "log.tensorboard=false")])
def test_a_board_whose_package_is_absent_is_refused_before_anything_is_loaded(package, change, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    both = settings(log__wandb="medtune", log__tensorboard=True)
    with pytest.raises(UserError, match=f"{package} is not installed: pip install {package}.*--config.{change}"):
        check_boards(both.log)


def test_no_board_is_the_default_of_wandb():
    assert settings().log.wandb == ""


# ------------------------------------------------------------------------------------------------------- the picture


def test_the_picture_shows_losses_learning_rate_skipped_updates_and_scores(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    lines = [{"step": s, "loss": 2.0 / s, "learning_rate": 1e-5} for s in range(1, 201)]
    lines[9] = {"step": 10, "skipped": 1.0, "learning_rate": 1e-5}
    lines += [{"step": s, "split": "validation", "eval_loss": 1.0} for s in (100, 200)]
    lines += [{"step": s, "split": "validation", "samples": {}, "samples_NCBI-disease": 0.5} for s in (100, 200)]
    plot(lines, tmp_path / "loss.png")
    losses, rate, scores = drawn[0].axes
    names = [text.get_text() for text in losses.get_legend().get_texts()]
    assert names == ["training, mean of 4 lines", "evaluation", "skipped updates"]
    smooth = losses.lines[1].get_ydata()
    assert len(smooth) == 199 and smooth[-1] == pytest.approx(np.mean([2.0 / s for s in (197, 198, 199, 200)]))
    assert losses.lines[3].get_xdata().tolist() == [10]
    assert len(rate.lines[0].get_xdata()) == 200
    assert scores.lines[0].get_label() == "NCBI-disease"
    monkeypatch.undo()
    plt.close(drawn[0])


def test_a_picture_needs_no_lines(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        plot([], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0 and not caplog.text


# ------------------------------------------------------------------------------------------------- what is imported


def test_the_training_path_needs_no_package_that_only_other_work_needs():
    """Data sets of the hub, scorers, boards and optional kernels are imported where they are used."""
    blocked = ["datasets", "seqeval", "rouge_score", "sklearn", "tensorboardX", "wandb", "qwix", "tokamax", "torch"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({json.dumps(blocked)}))
import medtune_jax.train.loop, medtune_jax.train.step
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
