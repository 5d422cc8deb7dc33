"""preview shows the ids and the mask that training uses, and counts what would be cut."""

import json
import re

import pytest
from data_samples import ner_row

from medtune_jax.cli.main import dispatch
from medtune_jax.data.encode import encode_row
from medtune_jax.data.prompts import get_template
from medtune_jax.tasks.rows import Row, write_rows

ROWS = [
    ner_row("Familial/B fever/I 🎉/O"),
    ner_row("caused/O by/O mutations/O in/O MEFV/O"),
    Row("Answer.", "MEFV ?", "A gene .", "other"),
]


@pytest.fixture
def arguments(tmp_path, sentencepiece_folder):
    write_rows(tmp_path / "train.parquet", ROWS)
    return ["preview", f"--data={tmp_path}", f"--model={sentencepiece_folder}"]


def preview(capsys, *arguments):
    assert dispatch([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_object_holds_the_ids_the_text_and_the_marks_of_training(capsys, arguments, pieces):
    result = preview(capsys, *arguments)
    template = get_template("medtuned_train")
    assert [row["row"] for row in result["rows"]] == [0, 2, 1]  # sources in turn
    for shown in result["rows"]:
        row = ROWS[shown["row"]]
        encoded = encode_row(pieces, template, row, 2.0)
        assert shown["ids"] == encoded.tokens.tolist()
        assert [".LD".index(mark) for mark in shown["marks"]] == encoded.weights.tolist()
        text = template.prompt(row.instruction, row.input) + template.completion(row.output)
        assert "".join(shown["pieces"]) == f"<BOS>{text}<EOS>"
        assert shown["marks"][-1] == "L"
        bearing = [piece for piece, mark in zip(shown["pieces"], shown["marks"], strict=True) if mark != "."]
        assert "".join(bearing) == template.completion(row.output) + "<EOS>"
        assert shown["loss_tokens"] == len(bearing)
    assert [row["decision_tokens"] for row in result["rows"]] == [3, 0, 5]


def test_lengths_are_counted_by_source_with_what_exceeds_the_limit(capsys, arguments, pieces):
    lengths = [len(encode_row(pieces, get_template("alpaca"), row).tokens) for row in ROWS]
    limit = max(lengths[0], lengths[2])
    result = preview(capsys, *arguments, "--template=alpaca", f"--max_length={limit}", "--rows=0")
    assert result["rows"] == []
    assert list(result["lengths"]) == ["all", "other", "sample-disease"]
    found = result["lengths"]["all"]
    assert (found["rows"], found["max"], found["tokens"]) == (3, max(lengths), sum(lengths))
    assert (found["p50"], found["p99"]) == (sorted(lengths)[1], max(lengths))
    over = [length for length in lengths if length > limit]
    assert (found["overlong"], found["cut_tokens"]) == (len(over), sum(over) - limit * len(over))
    assert result["lengths"]["other"]["rows"] == 1


def test_without_a_terminal_the_loss_is_bracketed_and_nothing_is_coloured(capsys, arguments):
    assert dispatch([*arguments, "--sources=other", "--max_length=8"]) == 0
    text = capsys.readouterr().out
    assert "\033" not in text
    assert "### Output:⟦ A gene . ⏎\n<EOS>⟧" in text
    assert "TOO LONG for 8" in text
    assert "1 rows exceed max_length=8" in text


def test_on_a_terminal_the_loss_is_coloured_unless_no_color_is_set(capsys, arguments, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert dispatch([*arguments, "--rows=1"]) == 0
    coloured = capsys.readouterr().out
    assert "\033[1;33m B\033[0m" in coloured
    assert re.search(r"\033\[32m ⏎\n<EOS>\033\[0m", coloured)
    assert "⟦" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert dispatch([*arguments, "--rows=1"]) == 0
    assert "\033" not in capsys.readouterr().out


def test_a_tokenizer_that_does_not_fit_the_models_config_is_refused(capsys, arguments, pieces, tmp_path):
    pieces.copy_to(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"vocab_size": 32000}')
    assert dispatch([*arguments[:2], f"--model={tmp_path / 'model'}"]) == 2
    assert "Wrong tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--split=test", "no split 'test'"), ("--template=alpacca", "'alpaca'"), ("--sources=NCBI", "no rows of source")],
)
def test_mistakes_are_named(capsys, arguments, flag, said):
    assert dispatch([*arguments, flag]) == 2
    assert said in capsys.readouterr().err
