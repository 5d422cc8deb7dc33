"""What `prepare --out` replaces, and what it never touches."""

import json
import os

import pytest

from medtune_jax.data_prep import output
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw" / "NCBI-disease").mkdir(parents=True)
    (tmp_path / "raw" / "NCBI-disease" / "train.tsv").write_text("lung\tB\n")
    return tmp_path / "raw"


def tree(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def put_file(out):
    (out / "notes.txt").write_text("mine")


def put_parquet(out):
    (out / "backup.parquet").write_bytes(b"mine")


def put_folder(out):
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "weights").write_text("mine")


def put_folder_named_as_a_split(out):
    (out / "train.parquet").unlink()
    (out / "train.parquet").mkdir()


def put_manifest(text):
    def put(out):
        (out / "manifest.json").write_text(text)

    return put


@pytest.mark.parametrize(
    ("put", "strangers"),
    [
        (put_file, "notes.txt"),
        (put_parquet, "backup.parquet"),
        (put_folder, "checkpoints"),
        (put_folder_named_as_a_split, "train.parquet"),
        (put_manifest('{"name": "a web app"}'), "README.md, manifest.json, train.parquet"),
        (put_manifest('{"format": 1, "wording_seed": 0, "splits": 3}'), "train.parquet"),
        (put_manifest("[1]"), "README.md, manifest.json, train.parquet"),
        (put_manifest("not JSON"), "README.md, manifest.json, train.parquet"),
        (put_manifest("[" * 100_000), "README.md, manifest.json, train.parquet"),
    ],
)
def test_a_folder_with_anything_that_no_prepare_wrote_is_left_as_it_is(raw, tmp_path, put, strangers):
    out = tmp_path / "rows"
    prepare(out, raw_dir=raw)
    put(out)
    before = tree(out)
    with pytest.raises(UserError, match=f"rows holds what `medtune prepare` did not write: {strangers}; give a new"):
        prepare(out, raw_dir=raw)
    assert tree(out) == before


def test_the_verb_exits_with_2_on_a_folder_that_is_not_its_own(raw, tmp_path, capsys):
    from medtune_jax.cli.main import dispatch

    (tmp_path / "app").mkdir()
    for name in ("manifest.json", *"abcdefg"):
        (tmp_path / "app" / name).write_text('{"name": "a web app"}')
    assert dispatch(["prepare", f"--raw_dir={raw}", f"--out={tmp_path / 'app'}"]) == 2
    assert "did not write: a, b, c, d, e and 3 more; give a new folder" in capsys.readouterr().err
    assert len(tree(tmp_path / "app")) == 8


def test_a_file_that_appears_while_the_rows_are_made_is_not_lost(raw, tmp_path, monkeypatch):
    out = tmp_path / "rows"
    prepare(out, raw_dir=raw)
    render = output.card.render
    monkeypatch.setattr(output.card, "render", lambda manifest: put_file(out) or render(manifest))
    with pytest.raises(UserError, match=r"did not write: notes\.txt"):
        prepare(out, raw_dir=raw)
    assert (out / "notes.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_link_is_followed_and_stays(raw, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "rows"
    link.symlink_to(tmp_path / "disk" / "real")
    for seed in (0, 1):  # a dangling link, then one to an earlier result
        prepare(link, raw_dir=raw, seed=seed)
        assert link.is_symlink() and os.listdir(tmp_path / "here") == ["rows"]
        assert os.listdir(tmp_path / "disk") == ["real"]
        assert json.loads((tmp_path / "disk" / "real" / "manifest.json").read_text())["wording_seed"] == seed


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file/rows", r"file/rows cannot be made: .*file is a file; give a folder elsewhere"),
        ("x" * 300, r"cannot be made: File name too long; give a folder elsewhere"),
        ("/proc/medtune/rows", r"--out=/proc/medtune/rows cannot be (made|written): .*[Gg]ive a folder "),
    ],
)
def test_a_place_where_nothing_can_be_written_is_said_with_what_to_do(raw, tmp_path, out, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=said):
        prepare(tmp_path / out, raw_dir=raw)


def test_a_folder_that_is_closed_to_the_user_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(output.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} is not writable for you; give a folder elsewhere"):
        prepare(tmp_path / "rows", raw_dir=tmp_path / "nowhere")
