"""Many rows: encoded in several processes, kept on disk, read back memory-mapped."""

import dataclasses
import logging
import os
import threading
import time

import numpy as np
import pytest
from data_samples import ner_row

from medtune_jax.data import cache, workers
from medtune_jax.data.encode import encode_rows
from medtune_jax.data.prompts import get_template
from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import Row

TEMPLATE = get_template("medtuned_train")
ROWS = [
    ner_row("breast/B and/O ovarian/B cancer/I in/O 1,234/O patients/O"),
    ner_row("Familial/B Mediterranean/I fever/I is/O caused/O by/O mutations/O"),
    ner_row("no/O names/O here/O", source="unheard-of"),
    dataclasses.replace(ner_row("cancer/B"), output="prose that its task would not write"),
]
FIELDS = ("tokens", "weights", "starts", "prompt_lengths", "rows")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Chunks of 4 rows, and no number of rows too small to keep."""
    monkeypatch.setattr("medtune_jax.data.encode.CHUNK", 4)
    monkeypatch.setattr(workers, "CHUNK", 4)
    monkeypatch.setattr(cache, "_FROM", 1)


def rows(count: int = 11) -> list[Row]:
    return [dataclasses.replace(ROWS[i % len(ROWS)], id=str(i)) for i in range(count)]


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in FIELDS
    )


def entries(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


@pytest.mark.parametrize("weight", [1.0, 5.0])
@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_processes_gives_the_same_rows(tokenizer, tmp_path, weight, count):
    expected, told = encode_rows(tokenizer, TEMPLATE, rows(), decision_weight=weight)
    found, report = cache.encode_cached(
        tokenizer, TEMPLATE, rows(), folder=tmp_path, decision_weight=weight, workers=count
    )
    assert same(found, expected)
    assert report == told
    assert isinstance(found.tokens, np.memmap)


def test_what_was_encoded_once_is_read(pieces, tmp_path, monkeypatch):
    first, report = cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)
    monkeypatch.setattr(cache, "_make", lambda *_: pytest.fail("encoded again"))
    again, told = cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)
    assert same(again, first)
    assert told == report


@pytest.mark.parametrize(
    "change",
    [{"max_length": 500}, {"overlong": "drop"}, {"decision_weight": 2.0}, {"rows": rows(12)}, {"code": "edited"}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_content_makes_another_entry(pieces, tmp_path, monkeypatch, change):
    cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)
    options = dict(change)
    code = options.pop("code", cache._code_sha256())
    monkeypatch.setattr(cache, "_code_sha256", lambda: code)
    cache.encode_cached(pieces, TEMPLATE, options.pop("rows", rows()), folder=tmp_path, **options)
    assert len(entries(tmp_path)) == 2


def test_another_template_makes_another_entry(pieces, tmp_path):
    for name in ("medtuned_train", "alpaca"):
        cache.encode_cached(pieces, get_template(name), rows(), folder=tmp_path)
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "not JSON"])
def test_a_damaged_entry_is_made_again(pieces, tmp_path, caplog, damage):
    first, _ = cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)
    expected = {name: np.array(getattr(first, name)) for name in FIELDS}
    (entry,) = tmp_path.glob("[!.]*")
    content = bytearray((entry / "tokens").read_bytes())
    content[8] ^= 1
    if damage == "missing":
        (entry / "weights").unlink()
    elif damage == "not JSON":
        (entry / "entry.json").write_text("{")
    else:
        (entry / "tokens").write_bytes(content if damage == "bit" else content[:-4])
    with caplog.at_level(logging.WARNING):
        again, _ = cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)
    assert all(np.array_equal(getattr(again, name), expected[name]) for name in FIELDS)
    assert ("damaged" in caplog.text) == (damage != "missing")


@pytest.mark.parametrize("count", [1, 2])
def test_a_bad_row_is_named_and_nothing_is_left(pieces, tmp_path, count):
    bad = [*rows(9), dataclasses.replace(ROWS[0], output=" ", id="blank")]
    with pytest.raises(UserError, match=r"Row 9 \(source '.*', id blank\) has an empty output"):
        cache.encode_cached(pieces, TEMPLATE, bad, folder=tmp_path, workers=count)
    assert [path.name[:6] for path in tmp_path.iterdir()] == [".lock-"]


def test_overlong_rows_are_counted_over_all_chunks(pieces, tmp_path):
    with pytest.raises(UserError, match="11 of 11 rows are too long"):
        cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path, max_length=4)
    assert entries(tmp_path) == []


def test_a_worker_that_dies_is_an_error_and_no_wait(pieces, tmp_path, monkeypatch):
    start = workers._start

    def killed(setup):
        worker = start(setup)
        worker.kill()
        return worker

    monkeypatch.setattr(workers, "_start", killed)
    with pytest.raises(RuntimeError, match="ended with status -9"):
        cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path, workers=2)
    assert entries(tmp_path) == []


def test_where_nothing_can_be_kept_rows_stay_in_memory(pieces, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found, _ = cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path / "file")
    assert same(found, encode_rows(pieces, TEMPLATE, rows())[0])
    assert "Encoded rows are not kept" in caplog.text


def test_entries_are_their_owners_only_and_few(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_KEPT", 1)
    monkeypatch.setattr(cache, "_IN_USE", time.time() - 5500)  # an entry of second 5,000 of 1970 is old, of 6,000 not
    folder = tmp_path / "rows"
    for count in (5, 6, 7):
        cache.encode_cached(pieces, TEMPLATE, rows(count), folder=folder)
        (made,) = [path for path in folder.glob("[!.]*") if path.stat().st_mtime > 1e9]
        assert made.stat().st_mode & 0o077 == 0
        os.utime(made, (1000 * count, 1000 * count))  # so that the order does not hang on the clock's grain
    assert folder.stat().st_mode & 0o077 == 0
    assert sorted(path.stat().st_mtime for path in folder.glob("[!.]*")) == [6000, 7000]


def test_one_of_two_at_a_time_encodes_and_the_other_reads(pieces, tmp_path, monkeypatch):
    make, made, found = cache._make, [], []

    def counted(entry, *rest):
        made.append(entry)
        make(entry, *rest)

    monkeypatch.setattr(cache, "_make", counted)
    both = [
        threading.Thread(target=lambda: found.append(cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)[0]))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(made) == 1
    assert same(*found)


def test_few_rows_are_not_kept(pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_FROM", 12)
    cache.encode_cached(pieces, TEMPLATE, rows(), folder=tmp_path)
    assert entries(tmp_path) == []
