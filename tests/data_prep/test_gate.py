"""Credentialed text: read only by those who say that they signed, written for its owner only. All rows are invented."""

import json
import os
import stat

import pytest

from medtune_jax.data_prep import output
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.errors import UserError
from medtune_jax.tasks.rows import Row, read_rows, write_rows

PAIR = {"sentence1": "Zorblax was given.", "sentence2": "Nothing was given.", "gold_label": "contradiction"}


@pytest.fixture
def raw(tmp_path):
    """An open corpus and a credentialed one."""
    for name, text in (
        ("NCBI-disease/train.tsv", "lung\tB\ncancer\tI\n"),
        ("MedNLI/mli_train_v1.jsonl", json.dumps(PAIR) + "\n"),
        ("MedNLI/mli_test_v1.jsonl", json.dumps(PAIR) + "\n"),
    ):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text(text)
    return tmp_path / "raw"


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


@pytest.mark.parametrize("how", ["sources", "raw"])
def test_a_credentialed_source_is_refused_to_whoever_does_not_say_that_they_signed(raw, tmp_path, how):
    asked = {"sources": ["mednli"]} if how == "sources" else {"raw": {"MedNLI": raw / "MedNLI"}}
    with pytest.raises(UserError, match=r"MedNLI is credentialed: .*PhysioNet.*--i_have_signed=MedNLI"):
        prepare(tmp_path / "rows", raw_dir=raw, **asked)
    assert not (tmp_path / "rows").exists()


def test_a_credentialed_source_that_was_found_and_not_asked_for_is_skipped_by_name(raw, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=raw)
    assert [*result["sources"]] == ["NCBI-disease"] and result["credentialed"] == []
    (skipped,) = result["skipped"]
    assert skipped["source"] == "MedNLI" and "--i_have_signed=MedNLI" in skipped["reason"]
    assert result["contamination"]["not_compared"] == [
        {"source": "MedNLI", "split": "test", "reason": "credentialed, not signed for"}
    ]
    assert "Zorblax" not in "".join(path.read_bytes().decode("latin-1") for path in (tmp_path / "rows").iterdir())


def test_where_all_that_was_found_is_credentialed_the_error_says_so(raw, tmp_path):
    (raw / "NCBI-disease" / "train.tsv").unlink()
    with pytest.raises(UserError, match="MedNLI is credentialed"):
        prepare(tmp_path / "rows", raw_dir=raw)


def test_a_signature_for_an_unknown_source_is_a_mistake(raw, tmp_path):
    with pytest.raises(UserError, match=r"Unknown source 'MedNLY'.* Did you mean 'MedNLI'"):
        prepare(tmp_path / "rows", raw_dir=raw, signed=["MedNLY"])


def test_a_folder_with_credentialed_rows_is_its_owners_alone_and_says_why(raw, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=raw, signed=["MedNLI"])
    assert result["credentialed"] == ["MedNLI"]
    assert modes(tmp_path / "rows") == {
        "rows": 0o700,
        **dict.fromkeys(("train.parquet", "test.parquet", "manifest.json", "README.md"), 0o600),
    }
    assert json.loads((tmp_path / "rows" / "manifest.json").read_text())["credentialed"] == ["MedNLI"]
    card = (tmp_path / "rows" / "README.md").read_text()
    assert "Credentialed sources are among them: MedNLI." in card


def test_files_of_credentialed_rows_are_closed_from_their_creation(raw, tmp_path, monkeypatch):
    seen = []

    def watched(path, rows):
        seen.append((stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)))
        write_rows(path, rows)

    monkeypatch.setattr(output, "write_rows", watched)
    prepare(tmp_path / "rows", raw_dir=raw, signed=["MedNLI"])
    assert seen == [(0o700, 0o600)] * 2


def test_open_rows_get_the_usual_mode_and_a_replaced_folder_keeps_a_tighter_one(raw, tmp_path):
    before = os.umask(0o022)
    try:
        prepare(tmp_path / "rows", raw_dir=raw)
        assert set(modes(tmp_path / "rows").values()) == {0o755, 0o644}
        prepare(tmp_path / "rows", raw_dir=raw, signed=["MedNLI"])
        prepare(tmp_path / "rows", raw_dir=raw)
    finally:
        os.umask(before)
    assert set(modes(tmp_path / "rows").values()) == {0o700, 0o600}


def test_the_gate_keys_on_the_rows_source_whatever_file_they_come_in(raw, tmp_path):
    rows = [Row("decide", "Zorblax", "yes", "mednli"), Row("decide", "open text", "no", "my-notes")]
    write_rows(tmp_path / "train.parquet", rows)
    (tmp_path / "mine.toml").write_text("[[train]]\npath = 'train.parquet'\n")
    result = prepare(tmp_path / "rows", mixture=str(tmp_path / "mine.toml"))
    assert [row.source for row in read_rows(tmp_path / "rows", "train")] == ["my-notes"]
    assert result["mixture"]["ingredients"][0]["dropped"] == {"credentialed, not signed for": 1}
    assert [skipped["source"] for skipped in result["skipped"]] == ["MedNLI"]
    result = prepare(tmp_path / "rows", mixture=str(tmp_path / "mine.toml"), signed=["MedNLI"])
    assert result["rows"] == {"train": 2} and result["credentialed"] == ["MedNLI"]
    assert modes(tmp_path / "rows")["train.parquet"] == 0o600


def test_a_mixture_takes_an_unsigned_source_as_missing_with_the_reason(raw, tmp_path):
    (tmp_path / "mine.toml").write_text("[[train]]\nsource = 'MedNLI'\n[[train]]\nsource = 'NCBI-disease'\n")
    result = prepare(tmp_path / "rows", raw_dir=raw, mixture=str(tmp_path / "mine.toml"))
    assert result["mixture"]["ingredients"][0]["missing"] == "credentialed, not signed for"
    assert result["rows"] == {"train": 1} and result["skipped"][0]["source"] == "MedNLI"


def test_the_licence_is_composed_of_all_and_an_unknown_one_is_said(raw, tmp_path):
    (raw / "BC2GM").mkdir()
    (raw / "BC2GM" / "train.tsv").write_text("BRCA1\tB\n")
    result = prepare(tmp_path / "rows", raw_dir=raw)
    assert result["licences"] == {"all": ["CC0-1.0", "unknown"], "unknown": ["BC2GM"]}
    card = (tmp_path / "rows" / "README.md").read_text()
    assert 'license_name: "CC0-1.0 AND unknown"' in card and "The licence is not known of: BC2GM." in card


@pytest.fixture
def closed_rows(tmp_path):
    """A copy of closed rows of a source that no one here knows, without its manifest; a mixture reads it."""
    (tmp_path / "copy").mkdir()
    write_rows(tmp_path / "copy" / "train.parquet", [Row("decide", "Zorblax", "yes", "ward-notes")])
    (tmp_path / "mine.toml").write_text("[[train]]\npath = 'copy/train.parquet'\n")
    (tmp_path / "folder.toml").write_text("[[train]]\npath = 'copy'\n")
    before = os.umask(0o022)
    yield tmp_path / "copy"
    os.umask(before)


@pytest.mark.parametrize(
    ("mixture", "file_mode", "folder_mode", "expected"),
    [
        ("mine", 0o600, 0o755, {0o700, 0o600}),
        ("mine", 0o640, 0o755, {0o750, 0o640}),
        ("mine", 0o644, 0o755, {0o755, 0o644}),
        ("folder", 0o600, 0o755, {0o700, 0o600}),
        ("folder", 0o644, 0o700, {0o700, 0o600}),
        ("folder", 0o644, 0o755, {0o755, 0o644}),
    ],
)
def test_rows_of_an_unknown_source_are_not_opened_to_more_people(
    closed_rows, tmp_path, mixture, file_mode, folder_mode, expected
):
    (closed_rows / "train.parquet").chmod(file_mode)
    closed_rows.chmod(folder_mode)
    result = prepare(tmp_path / "rows", mixture=str(tmp_path / f"{mixture}.toml"))
    assert set(modes(tmp_path / "rows").values()) == expected
    told = " ".join(result["warnings"])
    assert "source 'ward-notes' is not known: taken as not credentialed." in told
    assert ("The folder is closed to others, as files are that it was made of." in told) == (0o755 not in expected)


@pytest.mark.parametrize("closed", ["NCBI-disease", "NCBI-disease/train.tsv"])
def test_what_is_made_of_a_closed_corpus_is_closed(raw, tmp_path, closed):
    (raw / closed).chmod(0o700)
    prepare(tmp_path / "rows", raw_dir=raw, sources=["NCBI-disease"])
    assert set(modes(tmp_path / "rows").values()) == {0o700, 0o600}
