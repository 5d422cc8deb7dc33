"""`medtune prepare`: rows, manifest, card; the same bytes everywhere; nothing half-written."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medtune_jax.data_prep import output
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.data_prep.wordings import choose, wordings_of
from medtune_jax.errors import UserError
from medtune_jax.tasks import registry
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import gold_sha256, read_rows, rows_sha256

REPOSITORY = Path(__file__).resolve().parents[2]
NLI_LINE = json.dumps({"sentence1": "He is well.", "sentence2": "He is ill.", "gold_label": "contradiction"}) + "\n"


@pytest.fixture
def raw(tmp_path):
    """A raw folder with an NER, a relation and an inference source, some of their splits missing."""
    files = {
        "NCBI-disease/train.tsv": "lung\tB\ncancer\tI\n.\tO\n\nno\tO\n",
        "NCBI-disease/test.tsv": "-DOCSTART-\tO\n\nflu\tB-Disease\n",
        "sample-relation/train.tsv": "x cures y .\tTreats\nx and y .\tNo Relations\n",
        "sample-nli/train.jsonl": NLI_LINE,
    }
    for name, text in files.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text(text)
    return tmp_path / "raw"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_are_rendered_by_the_task_with_ids_and_recorded_wordings(raw, tmp_path):
    prepare(tmp_path / "rows", raw_dir=raw, seed=3)
    rows = read_rows(tmp_path / "rows", "train")
    assert [(row.id, row.input, row.output) for row in rows] == [
        ("NCBI-disease/train/0", "lung cancer .", "lung : B\ncancer : I\n. : O"),
        ("NCBI-disease/train/1", "no", "no : O"),
        ("sample-relation/train/0", "x cures y .", "Treats"),
        ("sample-relation/train/1", "x and y .", "No Relations"),
        ("sample-nli/train/0", "Sentence 1: He is well.\nSentence 2: He is ill.", "Contradiction"),
    ]
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())
    for row in rows:
        assert row.instruction == manifest["sources"][row.source]["wordings"][json.loads(row.meta)["wording"]]


def test_the_manifest_says_what_was_read_written_and_dropped(raw, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=raw, seed=3)
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())
    assert manifest["wording_seed"] == 3
    assert manifest["sources"] == result["sources"] and [*result["sources"]] == [
        "NCBI-disease",
        "sample-relation",
        "sample-nli",
    ]
    facts = manifest["sources"]["NCBI-disease"]
    assert facts["licence"] == "CC0-1.0" and facts["credentialed"] is False
    rows = read_rows(tmp_path / "rows", "test")
    assert facts["splits"]["test"] == {
        "rows": 1,
        "documents": 1,
        "mentions": 1,
        "file": "test.tsv",
        "format": "conll",
        "raw_sha256": hashlib.sha256((raw / "NCBI-disease" / "test.tsv").read_bytes()).hexdigest(),
        "rows_sha256": rows_sha256(rows),
        "gold_sha256": gold_sha256(rows),
        "official_split": None,
        "dropped": {"document marker": 1},
        "expected": {"rows": 940, "mentions": 960},
        "differs": {"rows": {"expected": 940, "found": 1}, "mentions": {"expected": 960, "found": 1}},
    }
    labels = manifest["sources"]["sample-relation"]["splits"]["train"]["labels"]
    assert labels == {"Treats": 1, "Causes": 0, "No Relations": 1}
    assert manifest["splits"]["test"] == {
        "rows": 1,
        "rows_sha256": rows_sha256(rows),
        "sources": {"NCBI-disease": {"rows": 1, "gold_sha256": gold_sha256(rows)}},
    }
    assert not (tmp_path / "rows" / "validation.parquet").exists()
    card = (tmp_path / "rows" / "README.md").read_text()
    assert (
        "| NCBI-disease | ner | test | 1 | 1 mentions | differs: rows 1, published 940; mentions 1, published 960 |"
        in card
    )
    assert "| not known | document marker: 1 | CC0-1.0 |" in card
    assert "path: train.parquet" in card and "path: validation.parquet" not in card


def test_what_is_missing_is_reported_with_where_to_get_it(raw, tmp_path):
    missing = {lack["source"]: lack for lack in prepare(tmp_path / "rows", raw_dir=raw)["missing"]}
    assert missing["NCBI-disease"]["files"] == ["devel.tsv"]
    assert missing["BC2GM"]["files"] == ["train.tsv", "devel.tsv", "test.tsv"]
    assert "MTL-Bioinformatics-2016" in missing["BC2GM"]["where"]


def test_a_sample_is_missing_only_where_it_was_asked_for(raw, tmp_path):
    missing = [lack["source"] for lack in prepare(tmp_path / "rows", raw_dir=raw)["missing"]]
    assert "MedNLI" in missing and not any(name.startswith("sample-") for name in missing)
    missing = prepare(tmp_path / "rows", raw_dir=raw, sources=["sample-nli"])["missing"]
    assert [(lack["source"], lack["files"]) for lack in missing] == [("sample-nli", ["dev.jsonl", "test.jsonl"])]


def test_what_is_missing_is_said_with_every_form_path_and_licence(raw, tmp_path):
    missing = {lack["source"]: lack for lack in prepare(tmp_path / "rows", raw_dir=raw)["missing"]}
    assert missing["NCBI-disease"]["paths"] == [str(raw / "NCBI-disease" / "devel.tsv")]
    assert missing["BC2GM"]["licence"] == "unknown" and missing["BC2GM"]["credentialed"] is False
    assert missing["MedNLI"]["credentialed"] is True
    assert {"format": "conll", "files": ["train.tsv", "devel.tsv", "test.tsv"]} in missing["BC2GM"]["formats"]


def test_a_count_that_is_not_the_published_one_is_reported_and_stops_nothing(raw, tmp_path, caplog):
    result = prepare(tmp_path / "rows", raw_dir=raw)
    told = "NCBI-disease train differs: rows 2, published 5424; mentions 1, published 5134."
    assert told in result["warnings"] and told in caplog.messages


def test_a_folder_that_no_source_is_named_as_is_named(raw, tmp_path):
    (raw / "BC2GMM").mkdir()
    (raw / ".git").mkdir()
    (warning,) = [said for said in prepare(tmp_path / "rows", raw_dir=raw)["warnings"] if "skipped" in said]
    assert "BC2GMM is skipped: no source has this name. Did you mean 'BC2GM'?" in warning
    assert "--source_file" in warning


def test_every_split_of_a_corpus_is_written_under_its_name(raw, tmp_path):
    note = "ID,section_header,section_text,dialogue\n0,PLAN,Rest.,Doctor: Rest.\n"
    (raw / "Conv2note").mkdir()
    for number, name in ((1, "MEDIQA-Chat-2023"), (2, "MEDIQA-Sum-2023")):
        (raw / "Conv2note" / f"MTS-Dialog-TestSet-{number}-{name}.csv").write_text(note)
    result = prepare(tmp_path / "rows", raw_dir=raw, sources=["Conv2note"])
    assert result["rows"] == {"test": 1, "test2": 1}
    assert [row.output for row in read_rows(tmp_path / "rows", "test2")] == ["Rest."]
    assert "split: test2" in (tmp_path / "rows" / "README.md").read_text()


@pytest.mark.parametrize(("polarity", "label"), [("association", "Positive"), ("legacy", "Negative")])
def test_the_polarity_of_gad_is_asked_for_and_recorded(raw, tmp_path, polarity, label):
    (raw / "GAD").mkdir()
    (raw / "GAD" / "train.tsv").write_text("@GENE$ goes with @DISEASE$ .\t1\n")
    result = prepare(tmp_path / "rows", raw_dir=raw, sources=["GAD"], gad_polarity=polarity)
    assert [row.output for row in read_rows(tmp_path / "rows", "train")] == [label]
    assert result["sources"]["GAD"]["splits"]["train"]["gad_polarity"] == polarity


@pytest.fixture
def own(tmp_path):
    """The definition of a user's source whose file lies beside it; no source of his is registered afterwards."""
    before = [(table, dict(table)) for table in (registry.SOURCES, registry._BY_ANY_NAME)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ward.tsv").write_text("input\tlabel\nA plaster helps.\tyes\n")
    (tmp_path / "mine" / "ward.toml").write_text(
        """name = "ward"
task = "label"
labels = ["yes", "no"]
licence = "my own"
credentialed = false
format = "table"
wordings = ["Does it help? Answer yes or no."]
[files]
train = "ward.tsv"
"""
    )
    yield tmp_path / "mine" / "ward.toml"
    for table, old in before:
        table.clear()
        table.update(old)


def test_a_users_source_is_prepared_beside_its_definition_which_the_manifest_carries(raw, own, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=raw, source_files=[own])
    assert [*result["sources"]][-1] == "ward" and "NCBI-disease" in result["sources"]
    assert result["sources"]["ward"]["definition"]["labels"] == ["yes", "no"]
    (row,) = read_rows(tmp_path / "rows", "train", ["ward"])
    assert (row.input, row.output) == ("A plaster helps.", "yes")
    assert [*prepare(tmp_path / "alone", source_files=[own])["sources"]] == ["ward"]


def test_a_users_source_lies_where_the_raw_folders_have_it(raw, own, tmp_path):
    (own.parent / "ward.tsv").rename(raw / "NCBI-disease" / "ward.tsv")
    with pytest.raises(UserError, match=r"ward is missing: no ward\.tsv in .*mine"):
        prepare(tmp_path / "rows", raw_dir=raw, source_files=[own])
    assert prepare(tmp_path / "rows", raw={"ward": raw / "NCBI-disease"}, source_files=[own])["rows"] == {"train": 1}
    (raw / "ward").mkdir()
    (raw / "NCBI-disease" / "ward.tsv").rename(raw / "ward" / "ward.tsv")
    assert prepare(tmp_path / "rows", raw_dir=raw, sources=["ward"], source_files=[own])["rows"] == {"train": 1}


def test_a_users_source_that_the_mixture_does_not_name_is_warned_of(raw, own, tmp_path):
    mixture = tmp_path / "mine.toml"
    mixture.write_text('[[train]]\nsource = "NCBI-disease"\n')
    result = prepare(tmp_path / "rows", raw_dir=raw, mixture=str(mixture), source_files=[own])
    assert [warning for warning in result["warnings"] if "ward" in warning] == [
        "--source_file: ward is not used, for mine has no ingredient of this source."
    ]
    mixture.write_text(mixture.read_text() + '[[train]]\nsource = "ward"\n')
    result = prepare(tmp_path / "rows", raw_dir=raw, mixture=str(mixture), source_files=[own])
    assert not any("ward" in warning for warning in result["warnings"])


def test_a_credentialed_source_of_the_users_own_is_gated_too(own, tmp_path):
    own.write_text(own.read_text().replace("credentialed = false", "credentialed = true"))
    with pytest.raises(UserError, match=r"ward is credentialed: .*--i_have_signed=ward"):
        prepare(tmp_path / "rows", source_files=[own])
    prepare(tmp_path / "rows", source_files=[own], signed=["ward"])
    assert (tmp_path / "rows").stat().st_mode & 0o077 == 0


def test_a_format_that_no_reader_reads_is_named(own, tmp_path):
    own.write_text(own.read_text().replace('"table"', '"conl"'))
    with pytest.raises(UserError, match=r"ward: unknown format 'conl'\. Did you mean 'conll'\?"):
        prepare(tmp_path / "rows", source_files=[own])


def test_bytes_are_the_same_under_any_hash_seed_and_whatever_order_is_asked(raw, tmp_path):
    outs = []
    for hash_seed, names in (("0", "sample-nli,NCBI-disease,sample-relation"), ("1", "")):
        out = tmp_path / f"rows{hash_seed}"
        command = [
            sys.executable,
            "-m",
            "medtune_jax",
            "prepare",
            f"--raw_dir={raw}",
            f"--out={out}",
            f"--sources={names}",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([*command, "--json"], check=True, env=environment, capture_output=True)
        outs.append(contents(out))
    assert outs[0] == outs[1] and "train.parquet" in outs[0]


def test_another_seed_changes_wordings_and_never_the_gold(raw, tmp_path):
    for seed in (0, 1):
        prepare(tmp_path / str(seed), raw_dir=raw, seed=seed)
    one, other = (read_rows(tmp_path / str(seed), "train") for seed in (0, 1))
    assert [row.instruction for row in one] != [row.instruction for row in other]
    assert gold_sha256(one) == gold_sha256(other)


def test_a_folder_elsewhere_and_a_folder_named_by_alias_are_found(raw, tmp_path):
    (raw / "NCBI-disease").rename(tmp_path / "elsewhere")
    result = prepare(tmp_path / "rows", raw_dir=raw, raw={"ncbi": tmp_path / "elsewhere"})
    assert result["sources"]["NCBI-disease"]["splits"]["train"]["rows"] == 2
    (tmp_path / "elsewhere").rename(raw / "ncbi_disease")
    assert prepare(tmp_path / "rows", raw_dir=raw, sources=["ncbi"])["rows"] == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"sources": ["BC2GM"]},
            r"BC2GM is missing: no train\.tsv, devel\.tsv, test\.tsv in .*raw/BC2GM\..* How to get it: CoNLL",
        ),
        ({"sources": ["NCBI"], "raw_dir": None}, "NCBI-disease is missing: .* in --raw_dir/NCBI-disease"),
        ({"sources": ["BC3GM"]}, "Unknown source 'BC3GM'.* Did you mean 'BC2GM'"),
        ({"raw": {"BC2GM": Path("nowhere")}}, "--raw=BC2GM=nowhere: no such folder"),
        ({"raw": {"BC2GM": Path()}}, r"BC2GM is missing: no train\.tsv, .* in \."),
        ({"raw_dir": Path("nowhere")}, "--raw_dir=nowhere: no such folder"),
        ({"raw_dir": Path(__file__).parent}, "No source found: --raw_dir must hold folders named as sources"),
    ],
)
def test_a_source_that_is_asked_for_and_missing_is_an_error(raw, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        prepare(tmp_path / "rows", **{"raw_dir": raw, **arguments})
    assert not (tmp_path / "rows").exists()


def test_an_earlier_result_is_replaced_and_anything_else_is_left_alone(raw, tmp_path):
    out = tmp_path / "rows"
    prepare(out, raw_dir=raw)
    first = contents(out)
    prepare(out, raw_dir=raw, sources=["sample-nli"])
    assert sorted(contents(out)) == ["README.md", "manifest.json", "train.parquet"] and contents(out) != first
    with pytest.raises(UserError, match=r"raw holds what `medtune prepare` did not write: NCBI-disease, "):
        prepare(raw, raw_dir=raw)
    with pytest.raises(UserError, match="is a file; give a folder"):
        prepare(raw / "NCBI-disease" / "train.tsv", raw_dir=raw)


@pytest.mark.parametrize("failing", ["card", "rename"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_earlier_result_and_no_debris(raw, tmp_path, monkeypatch, failing, failure):
    out = tmp_path / "rows"
    prepare(out, raw_dir=raw)
    before = contents(out)
    (raw / "NCBI-disease" / "train.tsv").write_text("other\tO\n")

    def full(*_):
        raise failure

    if failing == "card":
        monkeypatch.setattr(output.card, "render", full)
    else:
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, to: full() if "partial" in self.name else rename(self, to))
    told = "rows cannot be written: No space left on device" if isinstance(failure, OSError) else None
    with pytest.raises((UserError, KeyboardInterrupt), match=told):
        prepare(out, raw_dir=raw)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_malformed_file_leaves_nothing_behind(raw, tmp_path):
    (raw / "NCBI-disease" / "devel.tsv").write_text("a\tI\n")
    with pytest.raises(UserError, match=r"devel\.tsv:1: orphan 'I'"):
        prepare(tmp_path / "rows", raw_dir=raw)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_the_verb_says_what_is_wrong_with_its_flags(capsys):
    from medtune_jax.cli.main import dispatch

    for arguments, said in (
        (["--raw_dir=x"], "--out is needed"),
        (["--out=x"], "--raw_dir (one folder per source) or --raw=SOURCE=PATH is needed"),
        (["--out=x", "--raw=NCBI-disease"], "--raw=NCBI-disease: SOURCE=PATH is expected"),
    ):
        assert dispatch(["prepare", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_the_verb_prints_a_table_and_what_is_missing(raw, tmp_path, capsys):
    from medtune_jax.cli.main import dispatch

    assert dispatch(["prepare", f"--raw_dir={raw}", f"--raw=ncbi={raw}/NCBI-disease", f"--out={tmp_path}/rows"]) == 0
    printed = capsys.readouterr().out
    assert "NCBI-disease     train     2  -         differs: rows 2, published 5424; mentions 1, publi" in printed
    assert "missing: BC2GM: train.tsv, devel.tsv, test.tsv\n  how to get it: CoNLL files" in printed
    assert f"  put it at: {raw}/BC2GM/train.tsv, " in printed and "  read as: conll (train.tsv, " in printed


@pytest.mark.parametrize("source", [name for name, source in SOURCES.items() if wordings_of(source)])
def test_wordings_are_used_about_equally_and_fit_their_row_alone(source):
    wordings = wordings_of(SOURCES[source])
    used = Counter(choose(SOURCES[source], "train", row, seed=0) for row in range(10_000))
    expected = 10_000 / len(wordings)
    assert len(used) == len(wordings) and all(abs(n - expected) < 0.2 * expected for n in used.values())
    assert not any(re.search(r"\{\w*\}", wording) for wording in wordings)


def test_the_choice_of_wording_is_fixed_for_ever():
    assert [choose(SOURCES["NCBI-disease"], "test", row, seed=0) for row in range(8)] == [5, 5, 0, 0, 2, 2, 1, 2]
