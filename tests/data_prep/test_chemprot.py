"""The BioCreative VI distribution of ChemProt, on an invented abstract, beside BLUE's TSV of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data_prep.readers.chemprot import read_distribution, sentences
from medtune_jax.data_prep.readers.indexed_tsv import read_blue
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source

TASK = get_source("ChemProt").task
TITLE = "Mossol and FRN1 in E. Coli"
ABSTRACT = "Mossol blocks FRN1 but not FRN2. Quarzin is near, e.g. In vitro. Quarzin wakes FRN1."
TEXT = f"{TITLE} {ABSTRACT}"


def entity(id, type, own, nth=0):
    start = -1
    for _ in range(nth + 1):
        start = TEXT.index(own, start + 1)
    return f"7\t{id}\t{type}\t{start}\t{start + len(own)}\t{own}\n"


FILES = {
    "chemprot_training_abstracts.tsv": f"7\t{TITLE}\t{ABSTRACT}\n",
    "chemprot_training_entities.tsv": entity("T1", "CHEMICAL", "Mossol")
    + entity("T2", "CHEMICAL", "Mossol", 1)
    + entity("T3", "CHEMICAL", "Quarzin", 1)
    + entity("T4", "GENE-Y", "FRN1")
    + entity("T5", "GENE-N", "FRN1", 1)
    + entity("T6", "GENE-Y", "FRN2")
    + entity("T7", "GENE-Y", "FRN1", 2),
    "chemprot_training_relations.tsv": "7\tCPR:4\tY \tINHIBITOR\tArg1:T2\tArg2:T5\n"
    "7\tCPR:4\tY \tDOWNREGULATOR\tArg1:T2\tArg2:T5\n"
    "7\tCPR:6\tY \tANTAGONIST\tArg1:T2\tArg2:T5\n"
    "7\tCPR:10\tN \tNOT\tArg1:T2\tArg2:T6\n"
    "7\tCPR:3\tY \tACTIVATOR\tArg1:T3\tArg2:T7\n"
    "7\tCPR:3\tY \tACTIVATOR\tArg1:T3\tArg2:T4\n",
}
ROWS = [
    ("7.T1.T4", "@CHEMICAL$ and @GENE$ in E. Coli", "No Relations"),
    ("7.T2.T5", "@CHEMICAL$ blocks @GENE$ but not FRN2.", "CPR:4"),
    ("7.T2.T5", "@CHEMICAL$ blocks @GENE$ but not FRN2.", "CPR:6"),
    ("7.T2.T6", "@CHEMICAL$ blocks FRN1 but not @GENE$.", "No Relations"),
    ("7.T3.T7", "@CHEMICAL$ wakes @GENE$.", "CPR:3"),
]


@pytest.fixture
def write(tmp_path):
    def writer(kind="", old="", new=""):
        folder = tmp_path / "chemprot_training"
        folder.mkdir(exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text.replace(old, new) if kind and kind in name else text)
        return folder

    return writer


def test_every_chemical_and_gene_of_a_sentence_is_a_row_for_each_evaluated_class(write):
    found = read_distribution(write(), TASK)
    assert [(record.id, *record.annotation) for record in found.records] == ROWS
    assert {record.group for record in found.records} == {"7"}
    assert found.dropped == {
        "relation of a class that is not evaluated, read as none": 1,
        "relation that joins no chemical and gene of one sentence": 1,
    }


def test_both_layouts_of_an_abstract_give_the_same_rows(write, tmp_path):
    lines = ["index\tsentence\tlabel"]
    lines += ["\t".join((id, text, "false" if label == "No Relations" else label)) for id, text, label in ROWS]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    assert read_blue(tmp_path / "train.tsv", TASK).records == read_distribution(write(), TASK).records


def test_the_names_of_the_test_set_are_read_too(write):
    folder = write()
    for name in FILES:
        (folder / name).rename(folder / name.replace("training", "test").replace(".tsv", "_gs.tsv"))
    (folder / "chemprot_test_gold_standard.tsv").write_text("")
    assert len(read_distribution(folder, TASK).records) == len(ROWS)


def test_every_class_is_read_back_from_an_answer():
    for label in TASK.labels:
        assert TASK.parse(*reversed(TASK.render(("x", label)))).annotation == ("x", label)


def test_a_misplaced_entity_is_in_no_pair_and_counted(write):
    found = read_distribution(write("entities", "FRN2\n", "FRN3\n"), TASK)
    assert found.dropped["entity whose text is not at its offsets"] == 1
    assert "7.T2.T6" not in {record.id for record in found.records}


def test_an_entity_holds_its_sentence_together():
    text = "Acid of Dr. No. Then vit. K is given."
    assert [text[a:b] for a, b in sentences(text, 0, [])] == ["Acid of Dr. No.", "Then vit.", "K is given."]
    assert [text[a:b] for a, b in sentences(text, 0, [(21, 27)])] == ["Acid of Dr. No.", "Then vit. K is given."]


@settings(deadline=None)
@given(st.text(" ab.A?", max_size=40), st.integers(0, 40))
def test_sentences_hold_all_of_the_text_in_order(text, title):
    found = sentences(text, min(title, len(text)), [])
    assert "".join(text[a:b] for a, b in found).replace(" ", "") == text.replace(" ", "")
    assert all(a < b for a, b in found) and found == sorted(found)


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        (
            "abstracts",
            "\tMossol and",
            " Mossol and",
            r"abstracts\.tsv:1: PMID<TAB>title<TAB>abstract is expected, found 2",
        ),
        ("entities", "GENE-N", "GENE-X", r"entities\.tsv:5: unknown type 'GENE-X'\. Did you mean 'GENE-[NY]'"),
        ("entities", "\tFRN2\n", "\n", r"entities\.tsv:6: PMID<TAB>id<TAB>type<TAB>start<TAB>end<TAB>text is expected"),
        ("entities", "7\tT3", "8\tT3", r"entities\.tsv:3: no abstract of PMID 8"),
        ("entities", "\t0\t6\t", "\t0\t6000\t", r"entities\.tsv:1: offsets 0 to 6000 are not in the \d+ characters"),
        ("entities", "\t0\t6\t", "\t-1\t6\t", r"entities\.tsv:1: offsets -1 to 6 are not in"),
        ("abstracts", TITLE, f"The {TITLE}", r"entities\.tsv: the text of 7 of 7 entities is not at their offsets"),
        ("relations", "CPR:10", "CPR", r"relations\.tsv:4: unknown class 'CPR'; CPR:1 to CPR:10 are expected"),
        ("relations", "Arg2:T6", "Arg2:T66", r"relations\.tsv:4: no entity 'T66' of PMID 7"),
        ("relations", "NOT\t", "", r"relations\.tsv:4: PMID<TAB>class<TAB>.* is expected, found 5 column"),
    ],
)
def test_a_malformed_file_is_named_with_its_line_and_what_was_expected(write, kind, old, new, said):
    with pytest.raises(UserError, match=said):
        read_distribution(write(kind, old, new), TASK)


def test_a_missing_file_is_named(write):
    folder = write()
    (folder / "chemprot_training_entities.tsv").unlink()
    with pytest.raises(UserError, match=r"one file \*_entities\.tsv is expected .*, found 0"):
        read_distribution(folder, TASK)


def test_an_abstract_in_another_encoding_is_named(write):
    folder = write()
    (folder / "chemprot_training_abstracts.tsv").write_bytes(b"7\tcaf\xe9\tx\n")
    with pytest.raises(UserError, match=r"abstracts\.tsv:1: not UTF-8"):
        read_distribution(folder, TASK)


def test_overlapping_entities_are_one_marker_as_in_blue(write):
    found = read_distribution(
        write("entities", entity("T6", "GENE-Y", "FRN2"), entity("T6", "GENE-Y", "ossol", 1)), TASK
    )
    assert ("7.T2.T6", "@CHEM-GENE$ blocks FRN1 but not FRN2.") in {(r.id, r.annotation[0]) for r in found.records}
