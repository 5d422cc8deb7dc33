"""A new user's trial of docs/your_own_corpus.md: its definitions, sample files and commands, as they stand."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from medtune_jax.cli.main import dispatch
from medtune_jax.convert.tiny import write_tiny_model
from medtune_jax.tasks import registry
from medtune_jax.tasks.definition import read_source_file, source_of
from medtune_jax.tasks.rows import read_rows

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "your_own_corpus.md").read_text(encoding="utf-8")
# The files of a block stand in the line above it: `a/train.tsv`, `a/test.tsv`:
FILES = {
    name: text
    for names, text in re.findall(r"^((?:`\S+`,? ?)+):\n```\w+\n(.*?)```", DOCUMENT, re.S | re.M)
    for name in re.findall(r"`(\S+)`", names)
}
DEFINITIONS = sorted(name for name in FILES if name.endswith(".toml"))
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S) for line in block.splitlines()
]
# Added so that a command takes seconds; the model and the compiled programs are the same in every test here.
SHORTER = {
    "train": "--config.train.batch_size=8 --config.data.max_length=256 --config.model.remat=none",
    "evaluate": "--limit=2 --batch_size=4",
}
FREE = ("my-letters", "my-names", "my-status")  # their tasks allow any text
ROWS = 20
ONSETS = ("morv", "talg", "brell", "quen", "sarn", "velt", "dorm", "fisk", "grav", "lund")


TABLES = (registry.SOURCES, registry._BY_ANY_NAME)
BUILT_IN = [dict(table) for table in TABLES]


def forget():
    """Takes away the sources that were defined so far, as if another process went on."""
    for table, before in zip(TABLES, BUILT_IN, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(autouse=True)
def nothing_defined():
    yield
    forget()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, list(FILES.values()), max_positions=512)
    return folder


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with the files that the document shows, as the working directory."""
    monkeypatch.chdir(tmp_path)
    write(FILES)
    return tmp_path


def write(files):
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def medtune(*words):
    """Runs a command as a process of its own would, which knows of a definition only what it reads."""
    forget()
    status = dispatch([*words, *SHORTER.get(words[0], "").split()])
    assert status == 0, words


def enlarged(name, text):
    """Returns a corpus of ROWS rows in the form of a sample: its rows in turn, each about another invented word."""
    head, tail, between = "", "\n", "\n"
    if name.startswith("genes"):
        between = "\n\n"
    elif name.endswith((".tsv", ".csv")):
        head, text = text.split("\n", 1)
        head += "\n"
    elif name.endswith(".json"):
        head, text, tail, between = "[\n", text.strip()[1:-1].replace("},", "}"), "\n]\n", ",\n"
    rows = text.strip("\n").split(between.lstrip(","))
    made = [rows[i % len(rows)].replace("morv", ONSETS[i % len(ONSETS)]) for i in range(ROWS)]
    return head + between.join(made) + tail


def scores(folder):
    return json.loads((Path(folder) / "scores.json").read_text())["sources"]


def definition_in(name):
    return tomllib.loads(FILES[name])


def test_the_document_defines_a_corpus_of_every_task():
    defined = [source_of(definition_in(name)) for name in DEFINITIONS]
    assert {source.task.kind for source in defined} == {
        *("ner", "relation", "nli", "label", "labels", "choice", "extract", "text")
    }
    assert {source.task.labels for source in defined if source.task.kind == "ner"} == {(), ("Drug", "Dose")}
    assert {len(source.task.fields) for source in defined if source.task.kind == "extract"} == {0, 2}


def test_every_block_of_the_document_is_a_file_that_is_tried_or_commands():
    blocks = re.findall(r"^```(\w+)\n(.*?)```", DOCUMENT, re.M | re.S)
    assert {text for language, text in blocks if language != "sh"} == set(FILES.values())


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_each_definition_is_prepared_from_the_sample_that_stands_under_it(reader, definition):
    medtune("prepare", f"--source_file={definition}", "--out=rows")
    source = read_source_file(definition)
    described = json.loads(Path("rows/manifest.json").read_text())["sources"][source.name]
    assert described["definition"] == definition_in(definition)
    assert described["licence"] == source.licence
    for split in source.layouts[0].files:
        rows = read_rows("rows", split)
        assert len(rows) == described["splits"][split]["rows"] >= 2
        for row in rows:
            assert source.task.gold(row.output, row.input, json.loads(row.meta)).status == "exact"


def test_credentialed_text_is_read_only_by_who_has_signed(reader, capsys):
    Path("notes.toml").write_text(FILES["letters/letters.toml"].replace("credentialed = false", "credentialed = true"))
    for name in ("train", "test"):
        Path(f"{name}.jsonl").write_text(FILES[f"letters/{name}.jsonl"])
    words = ["prepare", "--source_file=notes.toml", "--out=rows"]
    assert dispatch(words) == 2
    assert "--i_have_signed=my-letters" in capsys.readouterr().err
    medtune(*words, "--i_have_signed=my-letters")
    assert Path("rows").stat().st_mode & 0o077 == 0


def test_a_split_is_named_by_its_hash_once_the_definition_holds_it(reader):
    def official(definition):
        medtune("prepare", f"--source_file={definition}", "--out=rows")
        return json.loads(Path("rows/manifest.json").read_text())["sources"]["my-topics"]["splits"]["test"]

    found = official("topics/topics.toml")
    assert found["official_split"] is None
    pinned = f'{FILES["topics/topics.toml"]}\n[gold_sha256]\ntest = "{found["gold_sha256"]}"\n'
    Path("topics/pinned.toml").write_text(pinned)
    assert official("topics/pinned.toml")["official_split"] == "test"


def test_what_the_samples_say_is_what_the_rows_say(reader):
    for words in COMMANDS:
        if words[1] == "prepare":
            medtune(*words[1:])
    rows = [row for folder in ("rows", "all") for row in read_rows(folder, "test")]
    answers = {}
    for row in rows:
        answers.setdefault(row.source, []).append(row.output)
    assert answers == {
        "my-chemprot": ["Upregulator", "Downregulator", "No Relations"],
        "my-drugs": ["morvolol : B-Drug\n5 : B-Dose\nmg : I-Dose\ndaily : O", "stop : O\ntalgmycin : B-Drug"],
        "my-exam": ["B", "A"],
        "my-genes": ["BRK4 : B\nkinase : I\nrose : O", "TNX1 : B\nfell : O"],
        "my-letters": ["Please rest and drink enough.", "A quenoma is a small lump."],
        "my-names": ['["morvolol", "sarnazole"]', "[]"],
        "my-pairs": ["Entailment", "Contradiction", "Neutral"],
        "my-questions": ["yes", "no", "maybe"],
        "my-status": [
            '{"active": ["morvolol", "pellazole"], "stopped": ["trinmycin"]}',
            '{"active": [], "stopped": []}',
        ],
        "my-topics": ["Heart, Lung", "None", "Kidney"],
    }
    assert [row.group for row in rows if row.source == "my-topics"] == ["11", "12", "13"]
    assert {row.instruction for row in rows if row.source == "my-letters"} == {
        "Answer the patient.",
        "Explain the word to a child.",
    }


@pytest.mark.slow  # a second training run; the fast tests have the same files and verbs
def test_the_commands_run_as_they_stand(reader, model):
    for words in COMMANDS:
        assert words[0] == "medtune"
        medtune(*(word.replace("MODEL", str(model)) for word in words[1:]))
    assert set(scores("scores")) == {"my-chemprot"}
    assert scores("scores")["my-chemprot"]["metrics"] == scores("run/evaluation/test")["my-chemprot"]["metrics"]


def test_a_corpus_of_every_task_is_prepared_trained_answered_and_scored(reader, model):
    write({name: enlarged(name, text) for name, text in FILES.items() if not name.endswith(".toml")})
    medtune("prepare", *(f"--source_file={definition}" for definition in DEFINITIONS), "--out=all")
    rows = read_rows("all", "test")
    names = {read_source_file(definition).name for definition in DEFINITIONS}
    assert {row.source for row in rows} == names
    assert len(rows) == ROWS * len(names)

    medtune(
        "train", "--workdir=run", f"--config.model.path={model}", "--config.data.path=all", "--config.train.steps=3"
    )
    asked = ("--model=run", "--data=all", "--split=test")
    medtune("evaluate", *asked, f"--sources={','.join(sorted(names - set(FREE)))}", "--out=template")
    medtune(
        *("evaluate", *asked, f"--sources={','.join(FREE)}", "--decode=greedy", "--max_new_tokens=4", "--out=greedy")
    )
    answered = scores("template") | scores("greedy")
    assert set(answered) == names
    assert all(entry["parse"]["unparsable"] == 0 for entry in scores("template").values())

    perfect = [
        {"source": row.source, "input": row.input, "output": row.output, "meta": row.meta, "generated": row.output}
        for row in rows
    ]
    Path("perfect.jsonl").write_text("".join(json.dumps(line) + "\n" for line in perfect))
    medtune("score", "--predictions=perfect.jsonl", "--data=all", "--out=perfect")
    for name, entry in scores("perfect").items():
        assert entry["metrics"][entry["metric"]] == 1.0, name
        assert entry["definition"]["name"] == name


def test_predictions_are_scored_without_the_rows_by_the_definition(reader):
    line = {"source": "my-questions", "input": "Is it?", "output": "yes", "generated": "Yes."}
    Path("theirs.jsonl").write_text(json.dumps(line) + "\n")
    medtune("score", "--predictions=theirs.jsonl", "--source_file=questions/questions.toml", "--out=scores")
    assert scores("scores")["my-questions"]["metrics"]["accuracy"] == 1.0
