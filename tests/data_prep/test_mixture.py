"""Mixtures: what a TOML file may say, the two published ones, and what `prepare` makes of them."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from medtune_jax.data_prep.mixtures.mixture import built_in, load_mixture, mixture_of
from medtune_jax.data_prep.prepare import prepare
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import Row, gold_sha256, read_rows, write_rows

REPOSITORY = Path(__file__).resolve().parents[2]


def expected_rows(name, split):
    return [part.rows for part in load_mixture(name).ingredients if part.into == split]


def test_medtuned_is_the_published_composition():
    assert sum(expected_rows("medtuned", "train")) == 200_252
    assert sum(expected_rows("medtuned", "validation")) == 70_066
    assert sum(expected_rows("medtuned", "test")) == 940 + 2 * 4_797 + 5_038 + 3_856 + 1_422
    mixture = load_mixture("medtuned")
    assert len([part for part in mixture.ingredients if part.into == "train"]) == 11
    assert not mixture.dedup and mixture.shuffle == ("train",) and mixture.contamination == "report"


def test_bioinstruct_trains_on_its_rows_and_tests_on_nine_sets():
    mixture = load_mixture("bioinstruct")
    assert expected_rows("bioinstruct", "train") == [25_005]
    assert len([part for part in mixture.ingredients if part.into == "test"]) == 9


@pytest.mark.parametrize("name", built_in())
def test_a_built_in_mixture_names_splits_that_its_sources_have(name):
    for part in load_mixture(name).ingredients:
        assert any(part.split in layout.files for layout in SOURCES[part.source].layouts), part


@pytest.fixture
def raw(tmp_path):
    """Two corpora with a repeated sentence."""
    for name, text in (
        ("NCBI-disease/train.tsv", "".join(f"flu{number % 9}\tB\n\n" for number in range(10))),
        ("NCBI-disease/devel.tsv", "ache\tB\n"),
        ("sample-relation/train.tsv", "".join(f"x{number} cures y .\tTreats\n" for number in range(6))),
    ):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text(text)
    return tmp_path / "raw"


def mixed(tmp_path, text, **more):
    (tmp_path / "mine.toml").write_text(text)
    return prepare(tmp_path / "rows", mixture=str(tmp_path / "mine.toml"), **more)


FULL = """
description = "a try"
shuffle = ["train"]

[[train]]
source = "ncbi"
rows = 9

[[train]]
source = "sample-relation"
cap = 3

[[train]]
source = "BC2GM"

[[test]]
source = "NCBI-disease"
split = "validation"
"""


def test_a_mixture_says_of_each_ingredient_what_was_asked_found_kept_and_dropped(raw, tmp_path):
    result = mixed(tmp_path, FULL, raw_dir=raw, seed=5)
    assert result["rows"] == {"train": 12, "test": 1}
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())
    assert manifest["mixture"] == result["mixture"] and manifest["mixture"]["seed"] == 5
    facts = {(part["into"], part["source"]): part for part in result["mixture"]["ingredients"]}
    ncbi = facts["train", "NCBI-disease"]
    assert (ncbi["found"], ncbi["kept"], ncbi["differs"], ncbi["dropped"]) == (10, 9, False, {"duplicate": 1})
    relation = facts["train", "sample-relation"]
    assert (relation["found"], relation["kept"], relation["dropped"]) == (6, 3, {"over the cap": 3})
    gene = facts["train", "BC2GM"]
    assert (gene["missing"], gene["found"], gene["kept"]) == ("no train.tsv", 0, 0)
    assert [lack["source"] for lack in result["missing"]] == ["BC2GM"]
    assert "| train | BC2GM | train | 0 | 0 |  | 0 | no train.tsv |" in (tmp_path / "rows" / "README.md").read_text()


def test_a_split_that_the_form_at_hand_has_not_is_missing_with_the_form_that_has_it(raw, tmp_path):
    (raw / "i2b2-2012" / "ground_truth" / "merged_xml").mkdir(parents=True)
    text = "[[train]]\nsource = 'NCBI-disease'\n[[validation]]\nsource = 'i2b2-2012'\n"
    result = mixed(tmp_path, text, raw_dir=raw)
    assert result["mixture"]["ingredients"][1]["missing"] == "no devel.tsv"
    assert result["missing"][0]["paths"] == [str(raw / "i2b2-2012" / "devel.tsv")]


def test_the_verb_prints_what_was_mixed_what_is_missing_and_what_is_shared(raw, tmp_path, capsys):
    from medtune_jax.cli.main import dispatch

    (raw / "NCBI-disease" / "devel.tsv").write_text("flu3\tB\n")
    (tmp_path / "mine.toml").write_text(FULL)
    arguments = [f"--mixture={tmp_path / 'mine.toml'}", f"--raw_dir={raw}", f"--out={tmp_path / 'rows'}"]
    assert dispatch(["prepare", *arguments]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train +NCBI-disease +train +10 +9 +9 +duplicate: 1\n", printed)
    assert re.search(r"train +BC2GM +train +0 +0 +- +MISSING: no train\.tsv\n", printed)
    assert "1 of 12 training rows share 13 words in a row (or a shorter text) with one; 0 dropped." in printed
    assert re.search(r"NCBI-disease +NCBI-disease validation +test +1 +1 +100\.00 % +1\n", printed)
    assert "missing: BC2GM: train.tsv\n" in printed
    assert dispatch(["prepare", *arguments, "--json", "--contamination=drop"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["contamination"]["dropped_rows"] == 1 and result["rows"] == {"train": 11, "test": 1}


def test_an_ingredient_that_is_not_what_is_expected_is_a_warning(raw, tmp_path):
    result = mixed(tmp_path, FULL.replace("rows = 9", "rows = 10"), raw_dir=raw)
    assert "mine: train has 9 rows of NCBI-disease train, 10 are expected." in result["warnings"]
    assert result["mixture"]["ingredients"][0]["differs"] is True


def test_the_rows_of_a_split_that_is_not_shuffled_keep_the_order_and_the_gold_of_the_corpus(raw, tmp_path):
    mixed(tmp_path, "dedup = false\n[[train]]\nsource = 'NCBI-disease'\n", raw_dir=raw)
    as_mixed = read_rows(tmp_path / "rows", "train")
    prepare(tmp_path / "plain", raw_dir=raw, sources=["NCBI-disease"])
    assert as_mixed == read_rows(tmp_path / "plain", "train")
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["sources"]["NCBI-disease"]["gold_sha256"] == gold_sha256(as_mixed)


def test_weights_share_out_the_training_rows(raw, tmp_path):
    weighted = "[[train]]\nsource = '{}'\nweight = {}\n"
    text = "train_rows = 8\n" + weighted.format("NCBI-disease", 3) + weighted.format("sample-relation", 1)
    assert mixed(tmp_path, text, raw_dir=raw)["rows"] == {"train": 8}
    assert Counter(row.source for row in read_rows(tmp_path / "rows", "train")) == {
        "NCBI-disease": 6,
        "sample-relation": 2,
    }


def test_a_training_split_that_is_smaller_than_asked_is_a_warning_and_in_the_manifest(raw, tmp_path):
    text = "temperature = 1\ntrain_rows = {}\n[[train]]\nsource = 'sample-relation'\n"
    result = mixed(tmp_path, text.format(7), raw_dir=raw)
    assert "mine: train has 6 rows, train_rows = 7 are asked: " in " ".join(result["warnings"])
    manifest = json.loads((tmp_path / "rows" / "manifest.json").read_text())["mixture"]
    assert (manifest["train_rows"], manifest["train_rows_kept"], manifest["train_rows_differ"]) == (7, 6, True)
    result = mixed(tmp_path, text.format(6), raw_dir=raw)
    assert not result["mixture"]["train_rows_differ"] and "train_rows" not in " ".join(result["warnings"])


def test_the_same_rows_are_drawn_however_their_path_is_spelled(raw, tmp_path):
    prepare(tmp_path / "earlier", raw_dir=raw, sources=["NCBI-disease"])
    drawn = []
    for path in ("earlier", "./raw/../earlier", tmp_path / "earlier" / "train.parquet"):
        mixed(tmp_path, f"shuffle = ['train']\ndedup = false\n[[train]]\npath = '{path}'\ncap = 4\n")
        drawn.append(read_rows(tmp_path / "rows", "train"))
    mixed(tmp_path, "shuffle = ['train']\ndedup = false\n[[train]]\nsource = 'ncbi'\ncap = 4\n", raw_dir=raw)
    assert drawn[0] == drawn[1] == drawn[2] == read_rows(tmp_path / "rows", "train")


def test_balance_by_task_is_a_line(raw, tmp_path):
    text = "balance = 'task'\n[[train]]\nsource = 'NCBI-disease'\n[[train]]\nsource = 'sample-relation'\n"
    assert mixed(tmp_path, text, raw_dir=raw)["rows"] == {"train": 12}


def test_training_text_in_the_mixtures_own_test_rows_is_found(raw, tmp_path):
    (raw / "NCBI-disease" / "devel.tsv").write_text("flu3\tB\n")
    text = FULL.replace("description", "contamination = 'drop'\ndescription")
    result = mixed(tmp_path, text, raw_dir=raw)
    (pair,) = result["contamination"]["pairs"]
    assert (pair["test_source"], pair["test_split"], pair["test_rows"]) == ("NCBI-disease", "validation", 1)
    assert result["mixture"]["ingredients"][0]["dropped"] == {"duplicate": 1, "shares text with a test set": 1}


def test_rows_that_lie_somewhere_are_an_ingredient_read_beside_the_mixture(tmp_path):
    rows = [Row("do", "a", "b", "my-notes", "own"), Row("do", "c", "d", "NCBI-disease")]
    write_rows(tmp_path / "some.parquet", rows)
    result = mixed(
        tmp_path, "[[train]]\npath = 'some.parquet'\n[[validation]]\npath = 'some.parquet'\nsource = 'ncbi'\n"
    )
    assert result["rows"] == {"train": 2, "validation": 1}
    assert [row.id for row in read_rows(tmp_path / "rows", "train")] == ["own", "NCBI-disease/train/1"]
    assert result["sources"]["my-notes"]["licence"] == "unknown"
    assert result["licences"]["unknown"] == ["my-notes"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[train]]\nsource = 'NCBI-diseas'", "Unknown source 'NCBI-diseas'.* Did you mean 'NCBI-disease'"),
        ("[[train]]\nsource = 'GAD'\ncaps = 3", r"\[\[train\]\] 1: caps: unknown key. Did you mean 'cap'"),
        ("[[train]]\nsource = 'GAD'\ncap = 0", r"cap: must be above 0, found 0"),
        ("[[train]]\nsource = 'GAD'\ncap = true", r"cap: must be a whole number, found True"),
        ("[[train]]\nsource = 'GAD'\ncap = 3\nfraction = 0.5", "cap and fraction exclude each other"),
        ("[[train]]\nsource = 'GAD'\nfraction = 1.5", "fraction: must be at most 1"),
        ("[[train]]\nsource = 'GAD'\ncategories = ['qa']", "categories: unknown 'qa'.* Did you mean 'QA'|Known"),
        ("[[train]]\ncap = 3", "source: name a source, or a path to rows"),
        ("[train]\nsource = 'GAD'", r"train: must be a list of tables: write \[\[train\]\]"),
        ("shuffel = ['train']\n[[train]]\nsource = 'GAD'", "shuffel: unknown key. Did you mean 'shuffle'"),
        ("shuffle = ['dev']\n[[train]]\nsource = 'GAD'", "shuffle: unknown split 'dev'"),
        ("[[trian]]\nsource = 'GAD'", r"mine\.toml: trian: unknown key. Did you mean 'train'"),
        (
            "[[train]]\nsource = 'GAD'\nweight = inf",
            r"mine\.toml: \[\[train\]\] 1: weight: must be a finite number, found inf",
        ),
        ("[[train]]\nsource = 'GAD'\nfraction = nan", "fraction: must be a finite number, found nan"),
        ("temperature = inf\n[[train]]\nsource = 'GAD'", r"mine\.toml: temperature: must be a finite number"),
        (f"[[train]]\nsource = 'GAD'\ncap = {'9' * 5000}", r"mine\.toml: not TOML"),
        ("dedup = 'no'\n[[train]]\nsource = 'GAD'", "dedup: must be true or false, found 'no'"),
        ("contamination = 'no'\n[[train]]\nsource = 'GAD'", "contamination: unknown 'no'"),
        ("balance = 'source'\n[[train]]\nsource = 'GAD'", "balance: unknown 'source'"),
        ("temperature = 2\n[[train]]\nsource = 'GAD'", "train_rows: the size of the training split goes with"),
        ("temperature = 0.5\ntrain_rows = 2\n[[train]]\nsource = 'GAD'", "temperature: must be at least 1"),
        ("train_rows = 2\n[[train]]\nsource = 'GAD'", "train_rows: the size"),
        ("[[test]]\nsource = 'GAD'\nweight = 2", r"weight: is for \[\[train\]\] only"),
        ("description = 'none'", "train: no ingredient"),
        ("[[train]\n", "mine.toml: not TOML"),
        (
            "[[train]]\nsource = 'GAD'\nsplit = 'fold 3'",
            "mine: GAD has no split 'fold 3'; it has train, validation, test",
        ),
        ("[[train]]\nsource = 'BC2GM'", r"No rows of mine\. BC2GM is missing: no train\.tsv in .*raw/BC2GM"),
        ("[[train]]\npath = 'nowhere.parquet'", "No data at .*nowhere.parquet"),
    ],
)
def test_a_mistake_in_a_mixture_is_named_and_nothing_is_written(raw, tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        mixed(tmp_path, text, raw_dir=raw)
    assert not (tmp_path / "rows").exists()


def test_an_unknown_mixture_is_told_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"Unknown mixture 'medtune'\. Did you mean 'medtuned'\?"):
        prepare(tmp_path / "rows", mixture="medtune")
    with pytest.raises(UserError, match="no such file"):
        prepare(tmp_path / "rows", mixture="medtune.toml")
    with pytest.raises(UserError, match="--sources and --mixture exclude each other"):
        prepare(tmp_path / "rows", mixture="medtuned", sources=["GAD"])


def test_medtuned_on_what_is_at_hand_checks_every_count_and_names_what_is_missing(shared_data, tmp_path):
    result = prepare(tmp_path / "rows", raw_dir=shared_data / "raw", mixture="medtuned", contamination="off")
    at_hand = {"NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "JNLPBA", "hoc"}
    for part in result["mixture"]["ingredients"]:
        if part["source"] in at_hand:
            assert not part["differs"] and not part["missing"], part
    assert result["sources"]["JNLPBA"]["splits"]["validation"]["mentions"] == 8575
    missing = {lack["source"]: lack for lack in result["missing"]}
    assert {"BC2GM", "MedNLI", "i2b2-2010", "i2b2-2012", "pmc_llama"} <= {*missing}
    assert missing["MedNLI"]["credentialed"] and "physionet" in missing["MedNLI"]["where"].lower()
    validation = read_rows(tmp_path / "rows", "validation")
    assert [*dict.fromkeys(row.source for row in validation)] == [
        *("NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "JNLPBA", "hoc")
    ]
    jnlpba = [row for row in validation if row.source == "JNLPBA"]
    assert SOURCES["JNLPBA"].splits[gold_sha256(jnlpba)] == "validation"


def test_the_documented_example_is_a_mixture():
    text = (REPOSITORY / "docs" / "mixtures.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    mixture = mixture_of(tomllib.loads(example), "my_mixture", "docs/mixtures.md")
    assert len(mixture.ingredients) == 8 and mixture.train_rows == 60_000 and mixture.contamination == "drop"


def test_a_mixtures_bytes_are_the_same_under_any_hash_seed(raw, tmp_path):
    (tmp_path / "mine.toml").write_text(FULL)
    written = []
    for hash_seed in ("0", "1"):
        command = [sys.executable, "-m", "medtune_jax", "prepare", f"--mixture={tmp_path / 'mine.toml'}", "--json"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        out = tmp_path / f"rows{hash_seed}"
        subprocess.run([*command, f"--raw_dir={raw}", f"--out={out}"], check=True, env=environment, capture_output=True)
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1] and len(written[0]) == 4
