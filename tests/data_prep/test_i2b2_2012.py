"""The i2b2 2012 XML files, on an invented record, beside its token form."""

from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune_jax.data_prep.readers.conll import read_conll
from medtune_jax.data_prep.readers.i2b2_2012 import read_xml_folder
from medtune_jax.errors import UserError
from medtune_jax.tasks.registry import get_source

TASK = get_source("i2b2-2012").task
TEXT = """
Visit Date :
Blue cough and fern/moss syrup at Lab & Den .

Glass knee
pain eased .
"""
# (text, its type); the offsets are looked up in TEXT.
EVENTS = (
    ("Blue cough", "PROBLEM"),
    ("fern", "TREATMENT"),
    ("moss syrup", "TREATMENT"),
    ("Lab & Den", "CLINICAL_DEPT"),
    ("eased", "OCCURRENCE"),
)
TOKENS = """Visit\tO
Date\tO
:\tO

Blue\tB-PROBLEM
cough\tI-PROBLEM
and\tO
fern\tB-TREATMENT
/\tO
moss\tB-TREATMENT
syrup\tI-TREATMENT
at\tO
Lab\tB-CLINICAL_DEPT
&\tI-CLINICAL_DEPT
Den\tI-CLINICAL_DEPT
.\tO

Glass\tO
knee\tO

pain\tO
eased\tB-OCCURRENCE
.\tO
"""


def event(id, start, end, text, type):
    return (
        f'<EVENT id="E{id}" start="{start}" end="{end}" text={quoteattr(text)} modality="FACTUAL" '
        f'polarity="POS" type="{type}" />'
    )


def located(events=EVENTS, text=TEXT, shift=0):
    return [
        event(id, text.index(own) + shift, text.index(own) + len(own) + shift, own, type)
        for id, (own, type) in enumerate(events)
    ]


def document(events, text=TEXT):
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<ClinicalNarrativeTemporalAnnotation>\n'
        f"<TEXT><![CDATA[{text}]]></TEXT>\n<TAGS>\n" + "\n".join(events) + "\n"
        '<TIMEX3 id="T0" start="1" end="6" text="Visit" type="DATE" val="" mod="NA" />\n'
        "</TAGS>\n</ClinicalNarrativeTemporalAnnotation>\n"
    )


@pytest.fixture
def folder(tmp_path):
    def writer(**files):
        for name, text in files.items():
            path = tmp_path / "xml" / f"{name.lstrip('_')}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / "xml"

    return writer


def test_both_layouts_of_a_record_give_the_same_rows(folder, tmp_path):
    (tmp_path / "train.tsv").write_text(TOKENS)
    found = read_xml_folder(folder(_7=document(located())), TASK)
    assert found.annotations == read_conll(tmp_path / "train.tsv", TASK).annotations
    assert not found.dropped


def test_rows_know_their_record_and_line_and_records_come_in_order_of_number(folder):
    path = folder(_10=document([], "a\n"), _9=document([], "\nb\n\nc"))
    assert [(record.id, record.group, record.annotation[0]) for record in read_xml_folder(path, TASK).records] == [
        ("9.2", "9", ("b",)),
        ("9.4", "9", ("c",)),
        ("10.1", "10", ("a",)),
    ]


@pytest.mark.parametrize("shift", [-1, 1])
def test_offsets_of_either_count_are_understood_from_the_events_texts(folder, shift):
    moved = read_xml_folder(folder(_1=document(located(shift=shift))), TASK)
    assert moved.annotations == read_xml_folder(folder(_1=document(located())), TASK).annotations


def test_ampersands_that_are_no_entities_are_read_in_texts_and_attributes(folder):
    bare = document(located()).replace("Lab &amp; Den", "Lab & Den")
    assert bare != document(located())
    assert (
        read_xml_folder(folder(_1=bare), TASK).records == read_xml_folder(folder(_1=document(located())), TASK).records
    )
    escaped = document(located()).replace("<![CDATA[", "").replace("]]>", "").replace("Lab & Den", "Lab &amp; Den")
    assert read_xml_folder(folder(_1=escaped), TASK).records == read_xml_folder(folder(_1=bare), TASK).records


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("Blue cough", "PROBLEM"), "repeated event"),
        (("cough and", "PROBLEM"), "event that overlaps another"),
        (("Blue", "TEST"), "event that overlaps another"),
        (("knee\npain", "PROBLEM"), "event across lines"),
        (("Glass", ""), "event without a type"),
    ],
)
def test_events_that_cannot_be_tagged_are_dropped_and_counted(folder, extra, reason):
    whole = read_xml_folder(folder(_1=document(located())), TASK)
    found = read_xml_folder(folder(_1=document(located((extra, *EVENTS)))), TASK)
    assert found.annotations == whole.annotations
    assert found.dropped == {reason: 1}


def test_an_event_whose_text_stands_elsewhere_is_dropped_and_counted(folder):
    found = read_xml_folder(folder(_1=document([*located(), event(9, 1, 5, "moon", "TEST")])), TASK)
    assert found.dropped == {"event whose text is not at its offsets": 1}


@settings(deadline=None)
@given(st.text(" \nab/", min_size=1, max_size=30), st.data())
def test_kept_events_are_exactly_the_entities_of_the_rows(tmp_path_factory, text, data):
    edges = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    pairs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if text[a:b].strip()]
    events = [event(id, a + 2, b + 2, text[a:b], "TEST") for id, (a, b) in enumerate(pairs)]
    path = tmp_path_factory.mktemp("xml")
    (path / "1.xml").write_text(document(events, "x\n" + text), newline="")
    found = read_xml_folder(path, TASK)
    assert "".join(token for tokens, _ in found.annotations for token in tokens) == "x" + "".join(text.split())
    tagged = [
        "".join(tokens[first : last + 1])
        for tokens, tags in found.annotations
        for _, first, last in TASK.entities(tags, strict=True)
    ]
    kept = [text[a:b] for a, b in pairs if "\n" not in text[a:b].strip()]
    assert tagged == ["".join(own.split()) for own in kept]
    for annotation in found.annotations:
        input, output = TASK.render(annotation)
        assert TASK.parse(output, input).annotation == annotation


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (document(located())[:-60], r"1\.xml:\d+: not well-formed XML"),
        (document(located()).replace("TEXT>", "TXT>"), r"1\.xml: no TEXT element in <ClinicalNarr"),
        (document(located()).replace("TAGS>", "TAG>"), r"1\.xml: no TAGS element"),
        (document([event(0, 1, 9999, "x", "TEST")]), r"1\.xml:11: offsets 1 to 9999 are not in the \d+ characters"),
        (document([event(0, 5, 5, "x", "TEST")]), r"1\.xml:11: offsets 5 to 5 are not in"),
        (document([event(0, "a", 5, "x", "TEST")]), r"1\.xml:11: EVENT E0 needs whole numbers start and end"),
        (document(['<EVENT id="E0" text="x" type="TEST" />']), r"1\.xml:11: EVENT E0 needs whole numbers"),
        (document([event(0, 1, 6, "Visit", "TETS")]), r"1\.xml:11: unknown type 'TETS'\. Did you mean 'TEST'"),
        (document(located(text="xxx" + TEXT)), r"1\.xml: the text of 5 of 5 events is not at their offsets"),
        (document(located()).encode().replace(b"knee", b"kn\xe9e"), r"1\.xml:7: not UTF-8"),
        (document([], "\n \n"), r"xml: empty, no lines of TEXT"),
    ],
)
def test_a_malformed_file_is_named_with_its_line_and_what_was_expected(folder, text, said):
    with pytest.raises(UserError, match=said):
        read_xml_folder(folder(_1=text), TASK)


def test_a_folder_without_documents_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no \.xml files"):
        read_xml_folder(tmp_path, TASK)
