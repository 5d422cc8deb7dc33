"""Two real processes: one run, whichever of them is stopped, killed, or alone in seeing an error."""

import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from kills import final_arrays, has_logged, metric_lines, steps_logged
from tiny_run import settings, tiny_data
from together import free_port, log, running, start, until, wait

from medtune_jax import processes
from medtune_jax.cli.main import dispatch
from medtune_jax.config import MeshConfig
from medtune_jax.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR
from medtune_jax.sharding import make_mesh
from medtune_jax.train.feed import put, put_rows

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
    assert names <= {"config.json", "model", "metrics.jsonl", "loss.png", "checkpoints", ".lock"}


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
    assert statuses[1 - victim] == EXIT_INTERRUPTED and took < BOUND + 5, log(workdir, 1 - victim)
    told = log(workdir, 1 - victim)
    assert f"medtune train: process {victim} of 2 (counted from 0) was lost" in told
    assert "Checkpoint " in told and f"To go on, start all processes again: medtune train --workdir={workdir}" in told
    assert wait(start(config, workdir), workdir) == [0, 0], log(workdir, 0)
    ours, theirs = final_arrays(workdir), final_arrays(undisturbed)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert metric_lines(workdir) == metric_lines(undisturbed)


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
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU workers"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "an indexed Job of Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
    ],
)
def test_what_started_the_process_is_found(monkeypatch, environment, name):
    if "SLURM_NTASKS" in environment:
        environment |= dict.fromkeys(("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "0")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert processes.launcher() == name


@pytest.mark.parametrize("verb", ["generate --prompt=a", "evaluate --data=d", "export --run=r --out=o"])
def test_verbs_for_one_process_refuse_several(monkeypatch, capsys, tmp_path, verb):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    words = verb.split() + ([] if "export" in verb else ["--model=m"])
    assert dispatch(words) == EXIT_USER_ERROR
    assert "runs in one process, but TPU workers started several" in capsys.readouterr().err


@pytest.mark.parametrize("axes", [{"data": 8, "fsdp": 1}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_rows_made_for_the_devices_are_those_of_the_whole_batch(tokenizer, axes):
    config = settings(train__batch_size=8)
    data, mesh = tiny_data(tokenizer, config, count=60), make_mesh(MeshConfig(**axes))
    whole, own = put(data.batch(1), mesh), put_rows(lambda rows: data.batch(1, rows), 8, mesh)
    for name, array in whole.items():
        assert own[name].sharding == array.sharding
        np.testing.assert_array_equal(jax.device_get(own[name]), jax.device_get(array))
