"""Two real processes: one run, whichever of them is stopped, killed, or alone in seeing an error."""

import json
import logging
import math
import re
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from kills import final_arrays, has_logged, metric_lines, steps_logged
from tiny_run import ner_rows, settings, tiny_data
from together import free_port, log, running, start, until, wait

from medtune_jax import launchers, processes
from medtune_jax.cli.main import dispatch
from medtune_jax.config import MeshConfig
from medtune_jax.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.rows import write_rows
from medtune_jax.train import agreement
from medtune_jax.train.feed import put, put_rows

SLURM = dict.fromkeys(("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "0")
BOUND = 20  # seconds, --process_timeout in these tests


def small_run(model_folder, data_folder, **changes):
    """Checkpoints every 3 updates of 2 sequences, one on each process."""
    changes = {"train__steps": 12, "checkpoint__every_steps": 3, "evaluation__every_steps": 5, **changes}
    return settings(model_folder, data_folder, mesh__fsdp=2, **changes)


@pytest.fixture(scope="module")
def undisturbed(model_folder, data_folder, tmp_path_factory):
    """A run that SLURM's variables start."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    config = small_run(model_folder, data_folder)
    assert wait(start(config, workdir, slurm=True), workdir) == [0, 0], log(workdir, 0)
    return workdir


def test_slurm_starts_one_run_of_which_the_first_process_speaks_and_writes(undisturbed):
    first, second = log(undisturbed, 0), log(undisturbed, 1)
    for index, text in enumerate((first, second)):
        assert f"Process {index} of 2 on " in text and "1 of 2 devices; coordinator localhost:" in text
    assert "step 12/12  loss" in first and "12 steps in" in first and "on fsdp=2" in first
    assert "step " not in second and "steps in" not in second
    assert [line["step"] for line in metric_lines(undisturbed) if "loss" in line] == [*range(1, 13)]
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {"config.json", "model", "metrics.jsonl", "loss.png", "checkpoints", ".lock"}


@pytest.mark.parametrize("victim", [0, 1], ids=["the first, which coordinates", "the second"])
def test_the_death_of_a_process_ends_the_other_and_both_go_on(model_folder, data_folder, undisturbed, tmp_path, victim):
    config, workdir = small_run(model_folder, data_folder), tmp_path / "run"
    with running(config, workdir, timeout=BOUND) as pair:
        until(has_logged(workdir, 7), workdir, pair)
        pair[victim].kill()
        died = time.monotonic()
        statuses = wait(pair, workdir)
        took = time.monotonic() - died
    print(f"the survivor ended {took:.1f} s after the death of process {victim}")
    assert statuses[1 - victim] == EXIT_INTERRUPTED and took < BOUND, log(workdir, 1 - victim)
    told = log(workdir, 1 - victim)
    assert f"medtune train: process {victim} of 2 (counted from 0) was lost" in told
    assert "Checkpoint " in told and f"To go on, start all processes again: medtune train --workdir={workdir}" in told
    assert wait(start(config, workdir), workdir) == [0, 0], log(workdir, 0)
    assert "Going on after step" in log(workdir, 0)
    ours, theirs = final_arrays(workdir), final_arrays(undisturbed)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert metric_lines(workdir) == metric_lines(undisturbed)


@pytest.mark.slow
def test_what_one_process_cannot_read_none_reads(model_folder, data_folder, undisturbed, tmp_path):
    config, workdir = small_run(model_folder, data_folder), tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    newest = workdir / "checkpoints" / "12" / "params"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert wait(start(config, workdir), workdir) == [0, 0], log(workdir, 0)
    assert re.search("checkpoints/12 is unreadable, hence moved to .*/unreadable: ", log(workdir, 0))
    assert (workdir / "unreadable" / "12").is_dir()
    ours, theirs = final_arrays(workdir), final_arrays(undisturbed)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert metric_lines(workdir) == metric_lines(undisturbed)


def test_sigterm_to_one_stops_both_after_the_same_step(model_folder, data_folder, tmp_path):
    config = small_run(model_folder, data_folder, train__steps=3000, checkpoint__every_steps=3000)
    workdir = tmp_path / "run"
    with running(config, workdir) as pair:
        until(has_logged(workdir, 4), workdir, pair)
        pair[1].send_signal(signal.SIGTERM)
        assert wait(pair, workdir) == [EXIT_INTERRUPTED] * 2, log(workdir, 0)
    stopped = steps_logged(workdir)
    assert 4 <= stopped < 3000 and (workdir / "checkpoints" / str(stopped)).is_dir()
    assert f"SIGTERM after step {stopped} of 3,000; the state is saved." in log(workdir, 0).replace(
        f"{stopped:,}", str(stopped)
    )
    assert "SIGTERM after step" not in log(workdir, 1)


def test_an_error_that_all_see_is_told_once(model_folder, data_folder, tmp_path):
    config, workdir = small_run(model_folder, data_folder, optimizer__learning_rate=1e30), tmp_path / "run"
    assert wait(start(config, workdir), workdir) == [EXIT_USER_ERROR] * 2, log(workdir, 0)
    assert "medtune train: Step " in log(workdir, 0) and "not finite" in log(workdir, 0)
    assert "medtune train:" not in log(workdir, 1) and "Traceback" not in log(workdir, 0) + log(workdir, 1)


def test_an_error_that_one_sees_ends_all_with_its_message(model_folder, data_folder, tmp_path):
    """The second process is given another folder of rows, which is not there."""
    workdir, port = tmp_path / "run", free_port()
    pair = [
        *start(small_run(model_folder, data_folder), workdir, only=0, port=port),
        *start(small_run(model_folder, tmp_path / "absent"), workdir, only=1, port=port),
    ]
    assert wait(pair, workdir) == [EXIT_USER_ERROR] * 2, log(workdir, 0)
    assert "medtune train: process 1 of 2: " in log(workdir, 0) and "absent" in log(workdir, 0)


def other_rows(data_folder, folder):
    shutil.copytree(data_folder, folder)
    write_rows(folder / "train.parquet", ner_rows(200, 77))
    return {"data__path": str(folder)}


@pytest.mark.parametrize(
    "changes, told",
    [
        (other_rows, "process 1 has another rows (data.path)"),
        (lambda *_: {"train__seed": 1, "checkpoint__every_steps": 4}, "another train.seed, checkpoint.every_steps"),
    ],
    ids=["rows", "settings"],
)
def test_processes_that_hold_something_else_than_the_first_are_named(
    model_folder, data_folder, tmp_path, changes, told
):
    workdir, port = tmp_path / "run", free_port()
    other = small_run(model_folder, data_folder, **changes(data_folder, tmp_path / "other"))
    pair = [
        *start(small_run(model_folder, data_folder), workdir, only=0, port=port),
        *start(other, workdir, only=1, port=port),
    ]
    assert wait(pair, workdir) == [EXIT_USER_ERROR] * 2, log(workdir, 0)
    assert told in log(workdir, 0) and "do not hold the same as the first" in log(workdir, 0)
    assert "medtune train:" not in log(workdir, 1)


def test_other_weights_of_the_same_architecture_are_told(model_folder, tmp_path, monkeypatch):
    """Each hashes its share of the tensors alone, so the identity of the run would be the same for both."""
    shutil.copytree(model_folder, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    theirs = [json.dumps(agreement.edges_of_weights(folder)) for folder in (model_folder, tmp_path / "other")]
    assert theirs[0] != theirs[1]
    monkeypatch.setattr(agreement, "everyones", lambda name, own: [own, {**own, "weights": "another hash"}])
    with pytest.raises(UserError, match=r"The 2 processes .* process 1 has another weights\. Give all"):
        agreement.require_same({"weights": theirs[0], "rows": "a"})


def test_a_workdir_that_is_not_shared_is_named(model_folder, data_folder, tmp_path):
    workdir, port, config = tmp_path / "run", free_port(), small_run(model_folder, data_folder)
    (tmp_path / "elsewhere").mkdir()
    pair = [
        *start(config, workdir, only=0, port=port),
        *start(config, tmp_path / "elsewhere" / "run", only=1, port=port),
    ]
    assert wait(pair, workdir) == [EXIT_USER_ERROR] * 2, log(workdir, 0)
    told = "is not shared by all processes: process 1 does not see what process 0 wrote there"
    assert f"medtune train: --workdir={workdir} {told}" in log(workdir, 0)
    assert {path.name for path in workdir.iterdir()} <= {".lock"} and not (tmp_path / "elsewhere" / "run").exists()


def test_a_signal_before_the_first_update_ends_both_and_leaves_no_checkpoint(model_folder, data_folder, tmp_path):
    config = small_run(model_folder, data_folder, train__steps=3000, checkpoint__every_steps=3000)
    workdir = tmp_path / "run"
    with running(config, workdir) as pair:
        until(lambda: "parameters on fsdp=2" in log(workdir, 0), workdir, pair)  # it is to be compiled now
        pair[1].send_signal(signal.SIGTERM)
        assert wait(pair, workdir) == [EXIT_INTERRUPTED] * 2, log(workdir, 0)
    assert "interrupted. SIGTERM before the first update: nothing to save yet" in log(workdir, 0)
    assert not (workdir / "checkpoints").exists()


class Service:
    """Stands for the coordination service of two processes, of which this one is the second."""

    def __init__(self, failures: float):
        self.failures, self.beats, self.recovered = failures, 0, threading.Event()

    def blocking_key_value_get(self, key, milliseconds):
        self.failures -= 1
        raise RuntimeError("UNAVAILABLE: connection reset" if self.failures >= 0 else "DEADLINE_EXCEEDED")

    def key_value_set(self, key, value, allow_overwrite=False):
        self.beats += 1
        if self.beats == 3:
            self.recovered.set()


@pytest.mark.parametrize("failures, lost", [(3, False), (math.inf, True)], ids=["three calls", "all calls"])
def test_a_call_that_fails_is_tried_again_until_no_answer_came_for_long(monkeypatch, failures, lost):
    service, left = Service(failures), threading.Event()

    def lose(watch):
        left.set()
        watch.stop()

    monkeypatch.setattr(processes.distributed.global_state, "client", service)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes._Watch, "coordinator_lost", lose)
    watch = processes._Watch("test", 60 if not lost else 0.6)
    if not lost:
        watch._interval = 0.01
    began = watch.contact
    assert (left if lost else service.recovered).wait(60)
    assert left.is_set() == lost
    if lost:
        assert time.monotonic() - began >= 0.6 - 2 * 0.1  # not at the first
    watch.stop()


def test_a_process_that_was_silent_inside_speaks_again_afterwards(capsys):
    package = logging.getLogger("medtune_jax")
    level, stdout = package.level, sys.stdout
    with pytest.raises(ValueError, match="an error"), processes._silent():
        print("unheard")
        assert package.level == logging.ERROR
        raise ValueError("an error")
    assert (package.level, sys.stdout) == (level, stdout) and not capsys.readouterr().out


def test_a_process_that_never_comes_ends_the_other(model_folder, data_folder, tmp_path):
    workdir = tmp_path / "run"
    alone = start(small_run(model_folder, data_folder), workdir, only=0, join_timeout=3)
    assert wait(alone, workdir) == [EXIT_INTERRUPTED]
    assert "medtune train: not all 2 processes came to the coordinator 127.0.0.1:" in log(workdir, 0)
    assert "within 3 s" in log(workdir, 0) and not workdir.exists()


@pytest.mark.parametrize(
    "given, told",
    [
        (["--num_processes=2"], "--coordinator and --process_id missing"),
        (["--coordinator=host:1", "--process_id=0"], "--num_processes missing"),
        (["--coordinator=host", "--num_processes=2", "--process_id=0"], "it is HOST:PORT"),
        (["--coordinator=host:1", "--num_processes=2", "--process_id=2"], "not one of the 2"),
    ],
)
def test_flags_that_do_not_place_a_process_are_refused(model_folder, data_folder, tmp_path, capsys, given, told):
    assert dispatch(["train", f"--workdir={tmp_path / 'run'}", *given]) == EXIT_USER_ERROR
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "environment, name",
    [
        ({"SLURM_NTASKS": "4"}, "SLURM"),
        ({"SLURM_NTASKS": "1"}, ""),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU workers"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, ""),
    ],
)
def test_what_started_the_process_is_found(monkeypatch, environment, name):
    if "SLURM_NTASKS" in environment:
        environment = {**SLURM, **environment}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert launchers.launcher() == name


def test_open_mpi_from_5_on_asks_for_the_flags(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert dispatch(["train", f"--workdir={tmp_path / 'run'}"]) == EXIT_USER_ERROR
    assert "--coordinator=HOST:PORT --num_processes=N --process_id=I" in capsys.readouterr().err
    assert launchers.placed("host:1", 2, 1) is not None


@pytest.mark.parametrize(
    "name, package, several",
    [
        ("job-0.pods.default.svc.cluster.local", True, True),
        ("job-0.pods.default.svc.cluster.local", False, False),
        ("job-0", True, False),
    ],
)
def test_a_pod_is_one_of_several_only_where_it_was_set_up_so(monkeypatch, name, package, several):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr(launchers.socket, "getfqdn", lambda: name)
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda _: object() if package else None)
    assert (launchers.placed(None, None, None) == {}) == several
    launchers.refuse_several("evaluate")  # each pod may evaluate a model of its own


@pytest.mark.parametrize(
    "tasks, visible, per_task, all_of_them",
    [
        ("8", "0,1,2,3,4,5,6,7", "", False),  # each takes the one of its local index
        ("8", "5", "1", True),
        ("8", "0", "", True),  # --gpu-bind=single:1
        ("2", "0,1", "a100:2", True),
        ("2", "0,1", "1", False),  # --gpu-bind=none
        ("2", "", "", False),
    ],
)
def test_a_slurm_task_uses_all_gpus_that_are_its_own(monkeypatch, tasks, visible, per_task, all_of_them):
    node = {"SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x2)", "SLURM_NTASKS": str(2 * int(tasks))}
    gpus = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_GPUS_PER_TASK": per_task}
    for key, value in {**SLURM, **node, **gpus, "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(key, value)
    assert launchers.owns_visible_gpus() == all_of_them
    monkeypatch.setenv("SLURM_NTASKS", "2")  # alone on its node
    assert launchers.owns_visible_gpus()


def test_a_verb_for_one_process_refuses_several(monkeypatch, capsys):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert dispatch(["export", "--run=r", "--out=o"]) == EXIT_USER_ERROR
    assert "runs in one process, but TPU workers started several" in capsys.readouterr().err


@pytest.mark.parametrize("axes", [{"data": 8, "fsdp": 1}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_rows_made_for_the_devices_are_those_of_the_whole_batch(tokenizer, axes):
    config = settings(train__batch_size=8)
    data, mesh = tiny_data(tokenizer, config, count=60), make_mesh(MeshConfig(**axes))
    whole, own = put(data.batch(1), mesh), put_rows(lambda rows: data.batch(1, rows), 8, mesh)
    for name, array in whole.items():
        assert own[name].sharding == array.sharding
        np.testing.assert_array_equal(jax.device_get(own[name]), jax.device_get(array))


def test_an_abort_while_another_thread_leaves_waits_for_nothing(monkeypatch):
    """The coordinator goes when all know why; JAX then aborts, and that thread may hold what the other needs."""

    class Left(Exception):
        pass

    def leave(status: int):
        raise Left(status)

    monkeypatch.setattr(processes.os, "_exit", leave)
    on_abort = object.__new__(processes._Abort)
    on_abort.watch = SimpleNamespace(leaving=processes.Note(EXIT_USER_ERROR, "told", []))
    with pytest.raises(Left, match=str(EXIT_USER_ERROR)):
        on_abort._handle(signal.SIGABRT)
