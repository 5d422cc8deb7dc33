"""A run folder that is full, closed, gone or in use: named, nothing lost, nothing half-written."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import REPOSITORY, metric_lines
from resumable import restore, run_settings
from tiny_run import settings

from medtune_jax.cli.main import dispatch
from medtune_jax.config import Config
from medtune_jax.errors import EXIT_USER_ERROR, Interrupted, UserError
from medtune_jax.train import loop
from medtune_jax.train.loop import train
from medtune_jax.train.saved import disk, run_folder
from medtune_jax.train.saved.disk import one_writer, storage_errors_named


def one_device(model: Path, data: Path, **changes) -> Config:
    return settings(model, data, train__batch_size=8, mesh__fsdp=8, evaluation__every_steps=0, **changes)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_call(owner: object, name: str, count: int, monkeypatch: pytest.MonkeyPatch, act: Callable[..., None]) -> None:
    """Lets act() happen before the count-th call of `owner.name`."""
    plain, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            act(*args, **kwargs)
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


WRITES = {  # what is written, and at which of its writes the disk is full
    "config.json": (run_folder, "write_whole", 1),
    "model": (run_folder, "write_whole", 2),
    "metrics.jsonl, opened": (loop, "MetricsLog", 1),
    "metrics.jsonl": (loop.MetricsLog, "write", 4),
    "loss.png": (loop, "plot", 2),
    "checkpoint": (loop.Checkpoints, "save", 2),
}


@pytest.fixture(scope="module")
def undisturbed(model_folder, data_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(one_device(model_folder, data_folder), workdir)
    return workdir


@pytest.mark.parametrize("what", WRITES)
def test_a_disk_that_is_full_at_any_write_is_named_and_the_run_goes_on_after_it(
    model_folder, data_folder, tmp_path, undisturbed, what, monkeypatch
):
    config, workdir = one_device(model_folder, data_folder), tmp_path / "run"
    with monkeypatch.context() as patch:
        at_call(*WRITES[what], patch, no_space)
        with pytest.raises(UserError, match=rf"The disk is full: {workdir} could not be written to \(.*No space left"):
            train(config, workdir)
    leftovers = [path for path in workdir.rglob("*") if ".orbax-checkpoint-tmp" in path.name]
    assert not leftovers
    if WRITES[what][0] is run_folder:
        return  # it had not begun
    train(config, workdir)
    assert metric_lines(workdir) == metric_lines(undisturbed)
    assert not [path for path in workdir.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("call", ["write", "save"])
def test_a_run_folder_that_vanishes_is_named_and_not_made_anew(model_folder, data_folder, tmp_path, monkeypatch, call):
    owner = loop.MetricsLog if call == "write" else loop.Checkpoints
    at_call(owner, call, 2, monkeypatch, lambda *_: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(UserError, match=f"The run folder {tmp_path}/run vanished while the run was writing to it"):
        train(one_device(model_folder, data_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_run_folder_that_is_closed_is_named(tmp_path, number):
    told = rf"The run folder {tmp_path} can no longer be written \(.*mend it"
    error = OSError(number, os.strerror(number), str(tmp_path / "metrics.jsonl"))
    with pytest.raises(UserError, match=told), storage_errors_named(tmp_path):
        raise ValueError("Writing failed") from error


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG])
def test_a_quota_and_a_limit_of_size_are_a_full_disk(tmp_path, number):
    with pytest.raises(UserError, match="The disk is full"), storage_errors_named(tmp_path):
        raise ValueError(f"UNKNOWN: Error writing: [OS error {number}: {os.strerror(number)}]")


def test_a_really_read_only_folder_is_named(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=100k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        with pytest.raises(UserError, match="cannot be written: Read-only file system"), one_writer(tmp_path / "run"):
            pass
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("error", [UserError("No model"), Interrupted("SIGTERM")])
def test_what_others_say_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as seen, storage_errors_named(tmp_path / "run"):
        raise error from FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "run"))
    assert seen.value is error


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--workdir=gs://bucket/run"],
        ["train", "--workdir=run", "--config.data.cache_dir=s3://bucket/rows"],
        ["evaluate", "--model=m", "--data=d", "--out=gs://bucket/out"],
        ["export", "--run=r", "--out=gs://bucket/out"],
    ],
    ids=lambda words: words[-1],
)
def test_object_stores_are_refused_and_no_folder_of_that_name_is_made(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert dispatch(words) == EXIT_USER_ERROR
    assert f"{words[-1]}: object stores are not written to. Mount the bucket" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_is_on_disk_before_it_has_its_name_and_then_its_folder(tmp_path, monkeypatch):
    synced, path = [], tmp_path / "best.json"
    (plain, replace) = (os.fsync, Path.replace)
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), plain(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda *a: (synced.append("named"), replace(*a))[1])
    run_folder.write_whole(path, "{}")
    assert synced == [f"{path}.tmp", "named", str(tmp_path)]


def test_lines_are_on_disk_before_the_checkpoint_that_follows_them(model_folder, data_folder, tmp_path, monkeypatch):
    order = []
    for owner, name in ((loop.MetricsLog, "sync"), (loop.Checkpoints, "save")):
        plain = getattr(owner, name)

        def call(*args, name=name, plain=plain):
            order.append(name)
            return plain(*args)

        monkeypatch.setattr(owner, name, call)
    train(one_device(model_folder, data_folder, train__steps=2, checkpoint__every_steps=1), tmp_path / "run")
    assert order == ["sync", "save"] * 2


def test_a_checkpoint_may_take_hours_to_be_written(tmp_path):
    assert loop.Checkpoints(tmp_path)._options.async_options.timeout_secs == 4 * 3600


def test_the_checkpoints_that_the_first_process_lists_are_those_of_all(home, run, monkeypatch):
    from medtune_jax.train.saved import checkpoints

    assert int(restore(run_settings(home), run).step) == 6
    monkeypatch.setattr(checkpoints, "everyones", lambda name, own: [[4], own])
    assert int(restore(run_settings(home), run).step) == 4


@pytest.mark.parametrize("phase", ["read_inputs", "load_frozen", "lower_step"])
def test_a_signal_before_the_first_update_ends_the_run_without_one(
    model_folder, data_folder, tmp_path, monkeypatch, phase
):
    at_call(loop, phase, 1, monkeypatch, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM before the first update: nothing to save yet"):
        train(one_device(model_folder, data_folder), tmp_path / "run")
    if phase == "lower_step":
        assert not metric_lines(tmp_path / "run") and not (tmp_path / "run" / "checkpoints").exists()
    else:
        assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------------- one writer


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    told = rf"{tmp_path}/run is being written by process {os.getpid()} on .*--out"
    with (
        one_writer(tmp_path / "run"),
        pytest.raises(UserError, match=told),
        one_writer(tmp_path / "run", "--out"),
    ):
        pass
    with one_writer(tmp_path / "run"):
        pass


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    (tmp_path / "mine").mkdir()
    with one_writer(tmp_path / "mine" / "a" / "b"):
        pass
    assert not (tmp_path / "mine" / "a").exists() and (tmp_path / "mine").is_dir()
    with one_writer(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    assert (tmp_path / "run" / "config.json").is_file()


def test_a_second_train_is_refused_and_changes_nothing(model_folder, data_folder, tmp_path):
    (tmp_path / "run").mkdir()
    with one_writer(tmp_path / "run"), pytest.raises(UserError, match="is being written by process"):
        train(one_device(model_folder, data_folder), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_the_lock_of_another_machine_is_waited_for(tmp_path, monkeypatch):
    def release(seconds):
        held.close()
        monkeypatch.undo()

    with contextlib.ExitStack() as held:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(disk, "_machine", lambda: "another")
            held.enter_context(one_writer(tmp_path / "run"))
        (tmp_path / "run" / "config.json").write_text("{}")
        monkeypatch.setattr(disk.time, "sleep", release)
        with one_writer(tmp_path / "run"):
            assert "another" not in (tmp_path / "run" / ".lock").read_text()


def test_a_lock_that_another_machine_keeps_ends_resumable(tmp_path, monkeypatch):
    with contextlib.ExitStack() as held:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(disk, "_machine", lambda: "another")
            held.enter_context(one_writer(tmp_path / "run"))
        monkeypatch.setattr(disk, "_PATIENCE", -1.0)
        told = f"run is being written by process {os.getpid()} on "
        with pytest.raises(Interrupted, match=told), one_writer(tmp_path / "run"):
            pass


def test_the_lock_is_held_before_anything_is_read(model_folder, data_folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(loop, "read_inputs", None)
    with one_writer(tmp_path / "run"), pytest.raises(UserError, match="is being written by process"):
        train(one_device(model_folder, data_folder), tmp_path / "run")


def test_the_kernel_releases_the_lock_of_a_killed_process(tmp_path):
    program = """
        import sys, time
        from pathlib import Path
        from medtune_jax.train.saved.disk import one_writer
        with one_writer(Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on"), one_writer(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with one_writer(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
