"""Damaged checkpoints give way to the one before; those of other versions are upgraded or refused, never misread."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from kills import metric_lines
from resumable import arrays, restore, run_settings

import medtune_jax
from medtune_jax.config import MeshConfig
from medtune_jax.errors import UserError
from medtune_jax.sharding import make_mesh
from medtune_jax.train.load import load_model
from medtune_jax.train.loop import train
from medtune_jax.train.saved import checkpoints as checkpoints_module
from medtune_jax.train.saved.checkpoints import Checkpoints
from medtune_jax.train.saved.checksum import checksum


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bits(item: str) -> Callable[[Path], None]:
    """Flips bytes in the middle of the largest file of one item."""

    def damage(checkpoint: Path) -> None:
        path = largest(checkpoint / item)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
        path.write_bytes(content)

    return damage


def cut_off(checkpoint: Path) -> None:
    path = largest(checkpoint / "params")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_file(checkpoint: Path) -> None:
    largest(checkpoint / "optimizer").write_bytes(b"")


def lose(*names: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        for name in names:
            shutil.rmtree(checkpoint / name)

    return damage


def empty_folder(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def file_in_its_place(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.write_text("")


def meta_of(checkpoint: Path) -> Path:
    return checkpoint / "meta" / "metadata"


def say(checkpoint: Path, **changes) -> None:
    """Changes what a checkpoint says of itself."""
    meta_of(checkpoint).write_text(json.dumps({**json.loads(meta_of(checkpoint).read_text()), **changes}))


def empty_meta(checkpoint: Path) -> None:
    meta_of(checkpoint).write_text("{}")


DAMAGES = {
    "bits of params": flip_bits("params"),
    "bits of optimizer": flip_bits("optimizer"),
    "truncated array": cut_off,
    "empty array": empty_file,
    "no params": lose("params"),
    "no optimizer": lose("optimizer"),
    "no meta": lose("meta"),
    "meta says nothing": empty_meta,
    "half removed": lose("params", "optimizer"),
    "empty folder": empty_folder,
    "a file": file_in_its_place,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_and_is_moved_aside(home, run, caplog, name):
    DAMAGES[name](run / "checkpoints" / "6")
    with caplog.at_level(logging.WARNING):
        assert int(restore(run_settings(home), run).step) == 4
    assert re.search(r"checkpoints/6 is unreadable, hence moved to .*/unreadable: \S", caplog.text)
    assert (run / "unreadable" / "6").exists()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["4"]


@pytest.mark.parametrize("name", ["bits of params", "a file"])
def test_a_run_goes_on_from_the_one_before_and_ends_the_same(home, finished, run, name):
    DAMAGES[name](run / "checkpoints" / "6")
    assert train(run_settings(home), run).resumed_from == 4
    assert metric_lines(run) == metric_lines(finished)
    with Checkpoints(finished / "checkpoints") as before, Checkpoints(run / "checkpoints") as after:
        assert before.steps() == after.steps() == [4, 6]
    for ours, theirs in zip(*(arrays(restore(run_settings(home), folder)) for folder in (run, finished)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_readable_checkpoint_is_an_error_and_nothing_is_moved(home, run):
    flip_bits("params")(run / "checkpoints" / "4")
    empty_folder(run / "checkpoints" / "6")
    with pytest.raises(UserError, match=r"No checkpoint in .*/run/checkpoints is readable \(6: .*; 4: "):
        train(run_settings(home), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


def test_a_file_where_the_checkpoints_should_be_is_named(home, run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"run/checkpoints is a file; it should be the folder of checkpoints"):
        train(run_settings(home), run)


@pytest.mark.parametrize("name", ["data", "model"])
def test_a_data_or_model_folder_that_vanished_is_named_on_resumption(home, run, tmp_path, name):
    for kind in ("data", "model"):
        shutil.copytree(home / kind, tmp_path / kind)
    shutil.rmtree(tmp_path / name)
    with pytest.raises(UserError, match=f"No {name}.* {tmp_path}/{name}"):
        train(run_settings(tmp_path), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


def test_bits_that_changed_in_place_are_found_by_the_checksum(home, run, monkeypatch):
    plain = checkpoints_module.restore_item

    def restore_with_one_bit_flipped(folder, arguments):
        found = plain(folder, arguments)
        if folder.parts[-2:] == ("6", "params") and found["norm"]["scale"] is not ...:  # leaf by leaf in bfloat16
            scale = np.array(found["norm"]["scale"])
            scale.view(np.uint32)[3] ^= 1
            found["norm"]["scale"] = jax.device_put(scale, found["norm"]["scale"].sharding)
        return found

    monkeypatch.setattr(checkpoints_module, "restore_item", restore_with_one_bit_flipped)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(UserError, match="checkpoints/6 is unreadable: the checksum of its params is wrong"):
            load_model(run, dtype)
    assert int(restore(run_settings(home), run).step) == 4


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_what_is_not_the_fault_of_a_checkpoint_does_not_condemn_it(home, run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints_module, "restore_item", fail)
    with pytest.raises(error):
        restore(run_settings(home), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


def test_a_file_system_that_fails_once_does_not_condemn_a_checkpoint(home, run, monkeypatch):
    plain, calls = checkpoints_module.restore_item, []

    def restore_once_failing(folder, arguments):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return plain(folder, arguments)

    monkeypatch.setattr(checkpoints_module, "restore_item", restore_once_failing)
    assert int(restore(run_settings(home), run).step) == 6


# ---------------------------------------------------------------------------------------------------------- versions


def written_by_version_1(checkpoint: Path, home: Path) -> None:
    """Writes a checkpoint again in the form of version 1: no `guard`, a configuration without inner groups."""
    meta = json.loads(meta_of(checkpoint).read_text())
    config = run_settings(home)
    arrays_now = restore(config, checkpoint.parent.parent)
    items = {
        "params": arrays_now.params,
        "optimizer": {"step": arrays_now.step, "state": arrays_now.opt_state},
    }
    old = {
        "model": {"path": config.model.path, "attention": "xla", "remat": "none", "max_positions": None},
        "data": {
            **{"path": config.data.path, "sources": [], "template": "medtuned_train", "max_length": 160},
            **{"packing": True, "overlong": "error"},
        },
        "train": {
            **{"steps": 6, "epochs": None, "batch_size": 8, "accumulation": 1, "seed": 0, "precision": "float32"},
            **{"decision_weight": 1.0},
        },
        "optimizer": {
            **{"learning_rate": 0.003, "warmup_steps": 2, "schedule": "cosine", "end_factor": 0.0},
            **{"weight_decay": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0},
            **{"first_moment_dtype": "float32"},
        },
        "mesh": {"dcn_data": 1, "data": 1, "fsdp": 8, "tensor": 1},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "evaluation": {"every_steps": 0, "split": "validation", "max_rows": 512},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    said = {"format": 1, "step": meta["step"], "config": old, "identity": meta["identity"]}
    said["checksums"] = {name: checksum(item) for name, item in items.items()}
    shutil.rmtree(checkpoint)
    with ocp.CheckpointManager(checkpoint.parent.absolute(), item_names=("params", "optimizer", "meta")) as manager:
        saves = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        manager.save(meta["step"], args=ocp.args.Composite(meta=ocp.args.JsonSave(said), **saves))


def test_a_checkpoint_of_version_1_is_upgraded_to_the_same_bits(home, finished, run):
    written_by_version_1(run / "checkpoints" / "6", home)
    now, then = (restore(run_settings(home), folder) for folder in (finished, run))
    for ours, theirs in zip(arrays(now[:3]), arrays(then[:3]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert arrays(then.guard) == [0, 0, 0, 0, 0]
    assert train(run_settings(home), run).resumed_from == 6
    np.testing.assert_array_equal(*(load_model(folder).params["norm"]["scale"] for folder in (run, finished)))
    with pytest.raises(UserError, match=r"model.lora.rank: 0 -> 4"):
        restore(run_settings(home, model__lora={"rank": 4}), run)


def test_a_run_of_version_1_goes_on_and_ends_with_the_same_bits(home, finished, run):
    shutil.rmtree(run / "checkpoints" / "6")
    written_by_version_1(run / "checkpoints" / "4", home)
    assert train(run_settings(home), run).resumed_from == 4
    now, then = (restore(run_settings(home), folder) for folder in (finished, run))
    for ours, theirs in zip(arrays(now[:3]), arrays(then[:3]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("version", [0, 99, "2"])
def test_an_unknown_version_is_refused_by_name(home, run, version):
    say(run / "checkpoints" / "6", format=version, program="7.1")
    told = f"checkpoints/6 has format version {version}, written by medtune_jax 7.1; this program, .*, reads 1 to 2"
    for reader in (lambda: train(run_settings(home), run), lambda: load_model(run)):
        with pytest.raises(UserError, match=told):
            reader()


@pytest.mark.parametrize("path", ["train.label_smoothing", "model.lora.per_layer", "future.thing"])
def test_a_setting_that_this_version_does_not_know_is_refused_by_name(home, run, path):
    meta = json.loads(meta_of(run / "checkpoints" / "6").read_text())
    *above, key = path.split(".")
    node = meta["config"]
    for name in above:
        node = node.setdefault(name, {})
    node[key] = 0.1
    say(run / "checkpoints" / "6", config=meta["config"], program="7.1")
    with pytest.raises(UserError, match=r"written by medtune_jax 7\.1\) was made with a configuration") as refusal:
        train(run_settings(home), run)
    assert f"'{path if path != 'future.thing' else 'future'}'" in str(refusal.value)
    assert f"medtune_jax {medtune_jax.__version__} does not know" in str(refusal.value)


def test_a_run_of_all_weights_and_one_of_adapters_are_not_mistaken_for_one_another(home, run):
    with pytest.raises(UserError, match=r"model\.lora\.rank: 0 -> 4"):
        train(run_settings(home, model__lora={"rank": 4}), run)
    meta = json.loads(meta_of(run / "checkpoints" / "6").read_text())
    meta["config"]["model"]["lora"] |= {"rank": 4}
    say(run / "checkpoints" / "6", config=meta["config"])
    with pytest.raises(UserError, match=r"model\.lora\.rank: 4 -> 0"):
        train(run_settings(home), run)
    with pytest.raises(UserError, match=r"model\.lora\.alpha: 16\.0 -> 8\.0"):
        train(run_settings(home, model__lora={"rank": 4, "alpha": 8.0}), run)


# ---------------------------------------------------------------------------------------------------------- checksum


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "uint8", "int32", "int4", "uint4", "bool"])
def test_the_checksum_sees_any_element_of_any_dtype(dtype):
    values = (np.arange(12) % 2).astype(np.int8)
    sums = set()
    for place in (None, *range(12)):
        changed = values.copy()
        if place is not None:
            changed[place] ^= 1
        sums.add(checksum({"a": jnp.asarray(changed.reshape(3, 4)).astype(dtype)}))
    assert len(sums) == 13


def test_the_checksum_does_not_depend_on_the_layout_and_does_on_the_place():
    values = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(values, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")))
    assert checksum(sharded) == checksum(values)
    assert len({checksum([values, values[::-1]]), checksum([values[::-1], values]), checksum([values, values])}) == 3
