"""Readers by format: every format that a source names exists, and a user's source gets one that fits its task."""

import pytest

from medtune_jax.data_prep.native import ANY
from medtune_jax.data_prep.readers import READERS, reader_for
from medtune_jax.errors import UserError
from medtune_jax.tasks.definition import source_of
from medtune_jax.tasks.registry import SOURCES


def own(task, **keys):
    common = {"name": "own", "licence": "CC0-1.0", "credentialed": False, "wordings": ["Do."], "format": "conll"}
    return source_of(common | {"task": task, "files": {"train": "x"}} | keys)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_format_of_a_built_in_source_has_a_reader(source):
    for layout in source.layouts:
        assert reader_for(source, layout.format) is READERS[layout.format]


def test_a_source_of_a_user_is_read_in_a_format_of_its_task_only():
    labelled = own("label", labels=["yes", "no"])
    assert reader_for(own("ner"), "conll") is READERS["conll"]
    assert reader_for(labelled, "relation_tsv") is READERS["relation_tsv"]
    assert reader_for(own("text"), "table") is READERS["table"]
    with pytest.raises(UserError, match=r"own: unknown format 'conl'\. Did you mean 'conll'"):
        reader_for(own("ner"), "conl")
    with pytest.raises(UserError, match="own: format 'conll' is for task ner; its own is label"):
        reader_for(labelled, "conll")


def test_a_format_with_pairs_without_a_relation_needs_a_negative_label(tmp_path):
    (tmp_path / "x").write_text("index\tsentence\tlabel\n1.a\ta b\tfalse\n")
    source = own("relation", labels=["Up", "No"])
    with pytest.raises(UserError, match="needs a `negative` label"):
        reader_for(source, "blue_tsv")(tmp_path / "x", source.task, ANY)
    source = own("relation", labels=["Up", "No"], negative="No")
    assert reader_for(source, "blue_tsv")(tmp_path / "x", source.task, ANY).annotations == [("a b", "No")]
