"""Result files are whole, and private ones are never open to others, not even while they are written."""

import os
import stat

import pytest

from medtune_jax.errors import UserError
from medtune_jax.evaluate.files import make_folder, write_file


@pytest.fixture(autouse=True)
def _open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_a_file_has_its_mode_from_its_first_byte(tmp_path, monkeypatch, private, mode):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(stat.S_IMODE(os.fstat(number).st_mode)))
    monkeypatch.setattr(os, "chmod", None)  # made so, not changed afterwards
    write_file(tmp_path / "a", b"text", private)
    assert seen == [mode] and _mode(tmp_path / "a") == mode and (tmp_path / "a").read_bytes() == b"text"


def test_what_an_interrupted_call_left_open_to_others_is_not_written_into(tmp_path):
    (tmp_path / "a.tmp").write_text("left")
    with open(tmp_path / "a.tmp") as reader:
        write_file(tmp_path / "a", b"text", private=True)
        assert reader.read() == "left"
    assert _mode(tmp_path / "a") == 0o600 and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_private_folder_is_closed_and_an_old_one_stays_as_its_owner_made_it(tmp_path):
    make_folder(tmp_path / "new", private=True)
    assert _mode(tmp_path / "new") == 0o700
    make_folder(tmp_path / "open")
    make_folder(tmp_path / "open", private=True)
    assert _mode(tmp_path / "open") == 0o755


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="/a cannot be written"):
        write_file(tmp_path / "a", b"")
