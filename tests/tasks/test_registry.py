"""The registry is consistent, and tells users what they may have meant."""

import re
from dataclasses import replace

import pytest

from medtune_jax.data_prep.readers import READERS
from medtune_jax.data_prep.wordings import WORDINGS
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import SOURCES, find_source, get_source, register
from medtune_jax.tasks.rows import registered_name
from medtune_jax.tasks.source import SPLITS, UNSTATED

# The names of DESIGN.md, section 4; BioASQ is three sources in one folder.
NAMES = {
    *("NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "BC2GM", "JNLPBA", "i2b2-2012", "i2b2-2010", "GAD", "ChemProt"),
    *("MedNLI", "hoc", "chatdoctor", "pmc_llama", "bioinstruct", "MedQA", "MedMCQA", "PubMedQA", "BioASQ-yesno"),
    *("BioASQ-factoid", "BioASQ-list", "medication_status", "coreference", "Conv2note", "aci-bench", "iCliniq"),
}
OWN_INSTRUCTIONS = {"pmc_llama", "bioinstruct"}  # every row of these brings one


def test_sources_of_the_papers_and_the_quickstart_are_there():
    assert {*SOURCES} >= NAMES | {"sample-disease", "sample-relation", "sample-nli"}
    assert [SOURCES[name].task.kind for name in ("BC2GM", "sample-relation", "sample-nli")] == [
        "ner",
        "relation",
        "nli",
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_complete(name):
    source = SOURCES[name]
    assert source.name == name and source.licence and source.where and source.description
    assert len(set(WORDINGS.get(name, ()))) >= 5 or name in OWN_INSTRUCTIONS
    for layout in source.layouts:
        assert layout.format in READERS and {*layout.files} <= {*SPLITS}
    assert all(re.fullmatch("[0-9a-f]{64}", gold) for gold in source.splits)
    for figure in source.published:
        leading = "example_f1" if name == "hoc-document" else source.task.metric  # BLUE scores HoC by example
        assert 0 < figure.value <= 1 and figure.metric == leading
        assert (figure.split == UNSTATED) == (figure.n == 0)


def test_no_two_sources_share_a_name_or_an_official_split():
    names = [
        name
        for source in SOURCES.values()
        for name in {re.sub(r"[\s_-]+", "", name).casefold() for name in (source.name, *source.aliases)}
    ]
    hashes = [gold for source in SOURCES.values() for gold in source.splits]
    assert len(names) == len(set(names)) and len(hashes) == len(set(hashes))


def test_aliases_and_case_find_a_source():
    assert get_source("ncbi") is get_source("ncbi-DISEASE") is SOURCES["NCBI-disease"]
    assert find_source("never") is None


@pytest.mark.parametrize(
    "name", ["MedNLI ", "Med-NLI", "med nli", "\tMED_NLI\n", "i2b2 2010", "i2b2_2012", "I2B2-2010"]
)
def test_white_space_and_separators_do_not_hide_a_corpus_under_agreement(name):
    assert get_source(name).credentialed
    assert registered_name(name) == get_source(name).name


def test_a_users_source_cannot_take_a_built_in_name_by_its_separators():
    with pytest.raises(UserError, match="is the built-in source MedNLI"):
        register(replace(SOURCES["sample-nli"], name="Med_NLI", aliases=()))


def test_an_unknown_source_is_answered_with_a_close_one():
    with pytest.raises(UserError, match=r"Unknown source 'BC5CDR-chm'\. Did you mean 'BC5CDR-chem'"):
        get_source("BC5CDR-chm")
