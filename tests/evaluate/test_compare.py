"""Runs are compared as pairs over the same gold rows, or not at all."""

import json
from dataclasses import replace

import pytest
from evaluate_samples import NER, NLI, RELATION, flawed, perfect

from medtune_jax.cli import main
from medtune_jax.errors import UserError
from medtune_jax.evaluate.compare import compare
from medtune_jax.evaluate.score import score, write_scores


def _write(folder, predictions):
    write_scores(folder, score(predictions, resamples=20))
    return folder / "scores.json"


def test_identical_runs_differ_by_nothing(tmp_path):
    found = compare([_write(tmp_path / "a", flawed()), _write(tmp_path / "b", flawed())])
    for entry in found["sources"].values():
        for _, second in entry["metrics"].values():
            assert (second["difference"], second["difference_ci95"], second["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_a_better_run_is_shown_as_better(tmp_path):
    wrong = [replace(one, generated="Neutral") for one in perfect(NLI) * 25]
    better = [replace(one, generated=one.output if at % 5 else "Neutral") for at, one in enumerate(wrong)]
    found = compare([_write(tmp_path / "a", wrong), _write(tmp_path / "b", better).parent])
    first, second = found["sources"][NLI]["metrics"]["accuracy"]
    assert (first["value"], second["value"]) == (0.25, 0.85)
    assert second["difference"] == pytest.approx(0.6)
    low, high = second["difference_ci95"]
    assert 0.4 < low < 0.6 < high < 0.8
    assert second["p"] < 0.01


def test_the_paired_interval_is_narrower_than_the_difference_of_two_samples(tmp_path):
    base = [replace(one, generated=one.output if at % 2 else "") for at, one in enumerate(perfect(NLI) * 25)]
    nearly = [replace(one, generated="") if at == 1 else one for at, one in enumerate(base)]
    _, second = compare([_write(tmp_path / "a", base), _write(tmp_path / "b", nearly)])["sources"][NLI]["metrics"][
        "accuracy"
    ]
    alone = second["ci95"][1] - second["ci95"][0]
    assert second["difference_ci95"][1] - second["difference_ci95"][0] < alone / 3


def test_unequal_gold_is_refused_by_source_and_both_hashes(tmp_path):
    other = [
        replace(one, input=one.input + " Indeed .") if one.source == NLI else one for one in perfect(NLI, RELATION)
    ]
    paths = [_write(tmp_path / "a", perfect(NLI, RELATION)), _write(tmp_path / "b", other)]
    hashes = [json.loads(path.read_text())["sources"][NLI]["gold_sha256"] for path in paths]
    with pytest.raises(UserError) as caught:
        compare(paths)
    assert all(text in str(caught.value) for text in [NLI, *hashes, *map(str, paths)])


def test_a_source_of_only_one_run_is_named_and_left_out(tmp_path):
    found = compare([_write(tmp_path / "a", perfect()), _write(tmp_path / "b", perfect(NLI, NER))])
    assert list(found["sources"]) == [NER, NLI]
    assert found["not_in_all"] == {RELATION: ["a"]}


def test_runs_without_a_common_source_are_refused(tmp_path):
    with pytest.raises(UserError, match="share no source"):
        compare([_write(tmp_path / "a", perfect(NLI)), _write(tmp_path / "b", perfect(NER))])


def test_groups_known_to_one_run_serve_both(tmp_path):
    grouped = [replace(one, group="ab"[one.row % 2]) for one in perfect(NLI)]
    found = compare([_write(tmp_path / "a", perfect(NLI)), _write(tmp_path / "b", grouped)])
    assert found["sources"][NLI]["groups"] == 2
    regrouped = [replace(one, group="ab"[one.row // 2]) for one in perfect(NLI)]
    with pytest.raises(UserError, match="group the same rows differently"):
        compare([_write(tmp_path / "c", regrouped), tmp_path / "b"])


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    paths = [_write(tmp_path / one / "test", perfect(NLI)) for one in ("base", "tuned")]
    assert [run["name"] for run in compare(paths)["runs"]] == ["base/test", "tuned/test"]
    assert [run["name"] for run in compare([paths[0], paths[0]])["runs"]] == ["1: test", "2: test"]


def test_what_does_not_belong_together_is_refused(tmp_path):
    a, b = _write(tmp_path / "a", perfect(NLI)), _write(tmp_path / "b", flawed())
    with pytest.raises(UserError, match="at least two"):
        compare([a])
    with pytest.raises(UserError, match="does not exist"):
        compare([a, tmp_path / "nowhere"])
    (tmp_path / "b" / "scores.json").write_bytes(a.read_bytes())
    with pytest.raises(UserError, match="holds other sources"):
        compare([a, b])
    _write(tmp_path / "b", [replace(one, generated="") for one in perfect(NLI)])
    (tmp_path / "b" / "scores.json").write_bytes(a.read_bytes())
    with pytest.raises(UserError, match="does not give its figures"):
        compare([a, b])
    (tmp_path / "b" / "rows.parquet").write_bytes(b"PAR")
    with pytest.raises(UserError, match=r"rows\.parquet cannot be read"):
        compare([a, b])
    b.write_text("[]")
    with pytest.raises(UserError, match=r"is not a scores\.json"):
        compare([a, b])
    document = json.loads(a.read_bytes())
    _write(tmp_path / "b", perfect(NLI))
    b.write_text(json.dumps({**document, "protocol": "legacy_medtuned"}))
    with pytest.raises(UserError, match="by protocol aligned"):
        compare([a, b])


def test_the_command_writes_all_three_forms(tmp_path, capsys):
    _write(tmp_path / "a<b>", perfect())
    _write(tmp_path / "b", flawed())
    arguments = [str(tmp_path / "a<b>"), str(tmp_path / "b"), f"--out={tmp_path / 'out'}", "--json"]
    assert main.dispatch(["compare", "--scores", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "out" / "compare.json").read_bytes()) == printed
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "a&lt;b&gt;" in page and "a<b>" not in page
    leading = printed["sources"][NLI]["metrics"]["accuracy"][1]
    assert f"{100 * leading['difference']:+.2f}" in (tmp_path / "out" / "compare.md").read_text()


def test_the_command_names_a_mistake(tmp_path, capsys):
    assert main.dispatch(["compare", "--scores", str(tmp_path / "x"), str(tmp_path / "y")]) == 2
    assert "No scores" in capsys.readouterr().err
    _write(tmp_path / "a", perfect())
    (tmp_path / "out").write_text("")
    assert main.dispatch(["compare", "--scores", *[str(tmp_path / "a")] * 2, f"--out={tmp_path / 'out'}"]) == 2
    assert "/out cannot be written: File exists" in capsys.readouterr().err
