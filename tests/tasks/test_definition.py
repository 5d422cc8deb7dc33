"""A user's own source: what its definition says is what the source is, and every mistake is named with file and key."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune_jax.errors import UserError
from medtune_jax.tasks import registry
from medtune_jax.tasks.definition import definition_of, read_source_file, register_definitions, source_of
from medtune_jax.tasks.rows import Row, read_rows, write_rows

MINIMAL = {
    "name": "ward-notes",
    "task": "relation",
    "labels": ["Treats", "Causes", "No Relations"],
    "licence": "CC0-1.0",
    "credentialed": False,
    "wordings": ["Name the relation."],
    "format": "table",
    "files": {"train": "train.tsv"},
}
OF_TASK = {
    "ner": {"types": ["Drug", "Dose"], "separator": "|", "label_names": {"0": "O", "1": "B-Drug"}},
    "relation": {"labels": ["Treats", "None"], "negative": "None", "metric": "accuracy"},
    "label": {"labels": ["yes", "no"], "label_names": {"1": "yes"}},
    "nli": {"label_names": {"e": "Entailment"}},
    "labels": {"labels": ["Heart", "Lung"], "separator": "|"},
    "choice": {"answer_form": "index1", "columns": {"A": "opa", "B": "opb"}},
    "extract": {"fields": ["active", "stopped"], "columns": {"active": "taken"}},
    "text": {"metric": "rouge1"},
}
COMMON = {
    "description": st.text(max_size=9),
    "where": st.text(max_size=9),
    "category": st.sampled_from(["QA", "IE", "GEN", "other"]),
    "aliases": st.lists(st.from_regex(r"my-[A-Za-z0-9_.-]{1,5}", fullmatch=True), max_size=2),
    "wordings": st.lists(st.text(min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=3),
    "also": st.lists(st.text(max_size=5), max_size=2),
    "gold_sha256": st.dictionaries(st.sampled_from(["train", "test"]), st.from_regex(r"[0-9a-f]{64}", fullmatch=True)),
    "published": st.lists(
        st.fixed_dictionaries(
            {"model": st.text(), "metric": st.text(), "value": st.floats(0, 1), "cited": st.text()},
            optional={"split": st.text(), "n": st.integers(0)},
        ),
        max_size=2,
    ),
}


def of_task(kind):
    return {key: value for key, value in MINIMAL.items() if key != "labels"} | {"task": kind} | OF_TASK[kind]


@pytest.fixture
def registered():
    """Takes away what a test registers."""
    before = dict(registry.SOURCES), dict(registry._BY_ANY_NAME)
    yield
    for table, old in zip((registry.SOURCES, registry._BY_ANY_NAME), before, strict=True):
        table.clear()
        table.update(old)


@given(st.sampled_from(sorted(OF_TASK)), st.fixed_dictionaries({}, optional=COMMON))
def test_a_definition_survives_source_json_and_source_again(kind, more):
    definition = of_task(kind) | more
    source = source_of(definition)
    carried = json.loads(json.dumps(definition_of(source)))
    assert carried == definition
    again = source_of(carried)
    assert (again.task.kind, again.task.labels, again.task.metric) == (kind, source.task.labels, source.task.metric)
    assert again.layouts == source.layouts
    assert definition_of(again) == definition


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*MINIMAL, "types", "columns", "published"]), VALUES, max_size=4))
def test_any_value_under_any_key_gives_a_source_or_names_the_definition(values):
    try:
        source_of(MINIMAL | values, "own.toml")
    except UserError as error:
        assert str(error).startswith("own.toml: ")


def test_a_built_in_source_has_no_definition():
    assert definition_of(registry.SOURCES["NCBI-disease"]) is None


def test_every_key_reaches_the_source(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        """
        name = "chemistry"
        task = "relation"
        labels = ["Up", "No"]
        negative = "No"
        metric = "accuracy"
        licence = "CC-BY-4.0"
        credentialed = true
        description = "Made up."
        where = "ask Jo"
        category = "other"
        aliases = ["chem"]
        wordings = ["Up or No?", "Is it Up or No?"]
        format = "table"
        also = ["ids.txt"]
        [files]
        train = "a/train.tsv"
        test = "a/test.tsv"
        [columns]
        input = "sentence"
        id = "index"
        [label_names]
        "CPR:3" = "Up"
        [gold_sha256]
        test = "%s"
        [[published]]
        model = "BERT"
        metric = "accuracy"
        value = 0.75
        split = "test"
        n = 10
        cited = "Table 1"
        """
        % ("0" * 64)
    )
    source = read_source_file(path)
    (layout,) = source.layouts
    assert (source.name, source.task.kind, source.task.labels) == ("chemistry", "relation", ("Up", "No"))
    assert (source.task.negative, source.task.metric) == ("No", "accuracy")
    assert (source.licence, source.credentialed, source.category) == ("CC-BY-4.0", True, "other")
    assert (source.description, source.where, source.aliases) == ("Made up.", "ask Jo", ("chem",))
    assert source.wordings == ("Up or No?", "Is it Up or No?")
    assert (layout.format, layout.also) == ("table", ("ids.txt",))
    assert layout.files == {"train": "a/train.tsv", "test": "a/test.tsv"}
    assert layout.columns == {"input": "sentence", "id": "index"}
    assert layout.label_names == {"CPR:3": "Up"}
    assert source.splits == {"0" * 64: "test"}
    assert [(figure.model, figure.value, figure.n) for figure in source.published] == [("BERT", 0.75, 10)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lables": ["a"]}, "own.toml: lables: unknown key. Did you mean 'labels'"),
        ({"licence": None}, "own.toml: licence: is missing: as its owners state it"),
        ({"licence": " "}, "licence: is blank"),
        ({"credentialed": None}, "credentialed: is missing: true where"),
        ({"credentialed": "no"}, "credentialed: must be true or false, found str"),
        ({"name": None}, "name: is missing"),
        ({"name": "my corpus"}, "name: 'my corpus' must start with a letter"),
        ({"aliases": ["a/b"]}, "aliases: 'a/b' must start with"),
        ({"task": "realtion"}, "task: unknown task 'realtion'. Did you mean 'relation'"),
        ({"labels": None}, "labels: a relation task needs its labels"),
        ({"labels": ["Up", "up"], "negative": None}, "labels: labels must be"),
        ({"labels": ["Up", "Up"]}, "labels: a name stands there twice"),
        ({"negative": "Down"}, "negative: negative label 'Down' is none of"),
        ({"types": ["Drug"]}, "types: is for task ner; the task here is relation"),
        ({"metric": "f1_postive"}, "metric: .*f1_postive.*f1_positive"),
        ({"category": "QI"}, "category: unknown category 'QI'. Known: GEN, IE, QA, other"),
        ({"wordings": []}, "wordings: at least one instruction"),
        ({"wordings": [""]}, "wordings: one of them is blank"),
        ({"wordings": "Name it."}, "wordings: must be a list of strings, found str"),
        ({"files": {}}, "files: is empty"),
        ({"files": {"trian": "a.tsv"}}, "files.trian: unknown split. Did you mean 'train'"),
        ({"files": {"train": "/a.tsv"}}, "files.train: '/a.tsv' must be a path relative"),
        ({"columns": {"lable": "y"}}, "columns.lable: a relation table has no such column. Did you mean 'label'"),
        ({"columns": {"wordings": ["Do."]}}, "columns.wordings: .*'wordings' must stand above the first"),
        ({"label_names": {"1": "Upp"}}, "label_names.1: 'Upp' is no label of the task. Did you mean 'Up'"),
        ({"format": "conll", "label_names": {"1": "Up"}}, "label_names: is for format 'table' only"),
        ({"gold_sha256": {"test": "ab"}}, "gold_sha256.test: must be the 64 hex digits"),
        (
            {"published": [{"model": "BERT", "metric": "f1", "value": 87.2, "cited": "x"}]},
            "value: 87.2 is not",
        ),
        ({"published": [{"model": "BERT", "metric": "f1", "value": 0.8}]}, "published.cited: is missing"),
        ({"published": [{"model": "BERT", "metrik": "f1"}]}, "published.*"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(change, said):
    definition = MINIMAL | {"labels": ["Up", "No"], "negative": "No"} | change
    with pytest.raises(UserError, match=said):
        source_of({key: value for key, value in definition.items() if value is not None}, "own.toml")


def test_a_choice_is_given_in_a_known_form():
    with pytest.raises(UserError, match=r"answer_form: unknown form 'index'\. Did you mean 'index"):
        source_of(of_task("choice") | {"answer_form": "index"})


def test_instructions_of_the_rows_stand_in_for_wordings():
    own = of_task("text") | {"wordings": [], "columns": {"instruction": "question"}}
    assert source_of(own).layouts[0].columns == {"instruction": "question"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"name = 'a'\ntask = relation", "own.toml: not TOML: .*line 2"),
        (b"name = '\xe9'", "own.toml: not UTF-8"),
        (None, "own.toml cannot be read"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path, raw, said):
    if raw is not None:
        (tmp_path / "own.toml").write_bytes(raw)
    with pytest.raises(UserError, match=said):
        read_source_file(tmp_path / "own.toml")


def test_a_manifest_cannot_redefine_a_built_in_source_or_hide_under_another_name(registered):
    with pytest.raises(UserError, match="is the built-in source NCBI-disease"):
        register_definitions({"ncbi": MINIMAL | {"name": "ncbi"}})
    with pytest.raises(UserError, match="under 'x' is of source 'ward-notes'"):
        register_definitions({"x": MINIMAL})
    with pytest.raises(UserError, match="The definition of source 'x' must be an object"):
        register_definitions({"x": [MINIMAL]})


def test_rows_of_a_prepared_folder_bring_the_users_sources(tmp_path, registered):
    write_rows(tmp_path / "train.parquet", [Row("i", "a", "Treats", "ward-notes")])
    described = {"ward-notes": {"definition": MINIMAL}, "NCBI-disease": {"definition": None}, "old": {"rows": 1}}
    (tmp_path / "manifest.json").write_text(json.dumps({"sources": described}))
    assert registry.find_source("ward-notes") is None
    assert read_rows(tmp_path, "train", ["WARD-notes"])
    assert registry.get_source("ward-notes").task.labels == tuple(MINIMAL["labels"])


def test_a_damaged_manifest_is_named_and_a_foreign_one_is_left_alone(tmp_path):
    write_rows(tmp_path / "train.parquet", [Row("i", "a", "b", "s")])
    (tmp_path / "manifest.json").write_text('["x"]')
    assert read_rows(tmp_path, "train")
    (tmp_path / "manifest.json").write_text('{\n"sources": ')
    with pytest.raises(UserError, match=r"manifest\.json:2: not JSON"):
        read_rows(tmp_path, "train")
