"""Comparisons put runs side by side by family, with what is missing where."""

from dataclasses import replace

import pytest
from evaluate_page import Page
from evaluate_samples import NER, NLI, RELATION, flawed, perfect, prediction

from medtune_jax.cli import main
from medtune_jax.evaluate.compare import compare
from medtune_jax.evaluate.report.comparison import console, markdown, page, write_comparison
from medtune_jax.evaluate.report.text import percent
from medtune_jax.evaluate.score import score, write_scores

ATTACK = "</script><b>run"
HALLMARK = "Resisting cell death (CD)"
FEW = {"resamples": 20}


def _compare(tmp_path, *runs, **arguments):
    """Returns the comparison of (name, predictions) pairs."""
    for name, predictions in runs:
        write_scores(tmp_path / name, score(predictions, **FEW, **arguments))
    return compare([tmp_path / name for name, _ in runs], **FEW)


@pytest.fixture(name="two")
def _two(tmp_path):
    return _compare(tmp_path, ("first", perfect()), ("second", flawed()))


def test_a_family_table_has_a_column_per_run_and_the_differences(two):
    (head, *rows) = Page(page(two)).table("Relations and inference: one row")
    assert head == ["source", "metric", "first", "second", "difference", "p"]
    assert [row[0].split()[0] for row in rows] == [NLI, RELATION]
    first, second = two["sources"][NLI]["metrics"]["accuracy"]
    low, high = second["difference_ci95"]
    assert rows[0][2].startswith(percent(first["value"])) and rows[0][3].startswith(percent(second["value"]))
    assert rows[0][4] == f"{100 * second['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    assert rows[0][5] == f"{second['p']:.3f}"


def test_every_run_but_the_first_is_held_against_the_first(tmp_path):
    found = _compare(tmp_path, ("a", perfect()), ("b", flawed()), ("c", flawed()))
    table = Page(page(found)).table("Entities: one row")
    assert table[0] == ["source", "metric", "a", "b", "difference", "p", "c", "difference", "p"]
    assert {len(row) for row in table} == {9}
    assert table[1][4:6] == table[1][7:9]


def test_all_metrics_of_a_source_are_in_page_and_markdown(two):
    text, shown = markdown(two), Page(page(two))
    for name, entry in two["sources"].items():
        rows = shown.table(f"{name}: all metrics")[1:]
        assert rows[0][0] == entry["metric"]
        assert {row[0] for row in rows} == set(entry["metrics"])
        assert all(f"| {metric} |" in text for metric in entry["metrics"])


def test_documents_are_compared_beside_the_rows(tmp_path):
    rows = [replace(prediction("hoc", f"{row} .", HALLMARK, row), group=f"{row // 2}") for row in range(4)]
    found = _compare(tmp_path, ("a", rows), ("b", [replace(one, generated="None") for one in rows]))
    names = [row[0] for row in Page(page(found)).table("hoc: all metrics")]
    assert names[1] == "micro_f1" and "document_micro_f1" in names
    assert "2 documents" in markdown(found)


def test_sources_missing_in_a_run_are_named_with_the_run(tmp_path):
    found = _compare(tmp_path, ("a", perfect()), ("b", perfect(NLI, NER)))
    table = Page(page(found)).table("Sources missing in a run")
    assert table == [["source", "a", "b"], [RELATION, "yes", "missing"]]
    assert f"| {RELATION} | a | b |" in markdown(found)
    assert f"not compared: {RELATION}, missing in b" in console(found)


def test_a_stopped_script_is_said_with_its_run(tmp_path):
    wrong = [replace(one, generated="Perhaps") for one in perfect(NLI)]
    found = _compare(tmp_path, ("a", perfect(NLI)), ("b", wrong), protocol="legacy_medtuned")
    for text in (Page(page(found)).text, markdown(found), console(found)):
        assert "The authors' script stops on: b (KeyError: 4 answers" in text.replace("\\", "")
    assert "defects included" in Page(page(found)).text


def test_nothing_in_a_comparison_is_read_as_markup(two):
    two["runs"][1] |= {"name": ATTACK, "path": ATTACK, "model": ATTACK}
    two["sources"][ATTACK] = two["sources"][NLI] | {"split": ATTACK, "crashes": {ATTACK: ATTACK}}
    two["not_in_all"] = {ATTACK: [ATTACK]}
    text = page(two)
    assert "<b>" not in text and "<script" not in text
    shown = Page(text)
    assert shown.open == []
    assert not [value for _, name, value in shown.attributes if name in ("src", "href") or "url(" in value]


def test_the_console_prints_each_source_under_its_family(two):
    lines = console(two).split("\n")
    assert lines[0].split() == ["source", "n", "metric", "first", "second", "difference", "p"]
    assert [line.split()[0] for line in lines[1:6]] == ["Entities", NER, "Relations", NLI, RELATION]


def test_the_command_prints_the_leading_metrics_by_family(tmp_path, capsys):
    for name, predictions in (("a", perfect()), ("b", flawed())):
        write_scores(tmp_path / name, score(predictions, **FEW))
    assert main.dispatch(["compare", "--scores", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "\nRelations and inference\n" in capsys.readouterr().out


def test_the_same_comparison_is_written_the_same(tmp_path, two):
    for name in ("one", "two"):
        write_comparison(tmp_path / name, two)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
