"""A BERT run is scored on the rows that `prepare` writes, so that it stands in a paired test with ours."""

import json

import pytest
from evaluate_samples import NER, NLI, RELATION, perfect

from medtune_jax.cli import main
from medtune_jax.data_prep.other_systems import read_conll_pair, read_label_pair
from medtune_jax.errors import UserError
from medtune_jax.evaluate.score import score, write_scores
from medtune_jax.tasks.registry import get_source
from medtune_jax.tasks.rows import Row, write_rows

GOLD = "Patients\tO\nwith\tO\ngout\tB\n\nataxia\tB\nwas\tO\nseen\tO\n"


def _conll(folder, predicted, gold=GOLD, source=NER):
    (folder / "gold.tsv").write_text(gold)
    (folder / "pred.tsv").write_text(predicted)
    return read_conll_pair(folder / "gold.tsv", folder / "pred.tsv", get_source(source))


def test_a_tag_per_token_becomes_a_row_as_prepare_renders_it(tmp_path):
    predicted = GOLD.replace("with\tO", "with\tI").replace("ataxia\tB", "ataxia\tO")  # an I without its B stays one
    assert _conll(tmp_path, predicted) == [
        (Row("", "Patients with gout", "Patients : O\nwith : O\ngout : B", NER), "Patients : O\nwith : I\ngout : B"),
        (Row("", "ataxia was seen", "ataxia : B\nwas : O\nseen : O", NER), "ataxia : O\nwas : O\nseen : O"),
    ]


def test_typed_tags_serve_a_source_without_types(tmp_path):
    (first, _) = _conll(tmp_path, GOLD.replace("\tB", "\tB-Disease"))
    assert first[0].output == first[1]


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (GOLD.replace("gout", "Gout"), r"pred\.tsv:3: token 'Gout', but .*gold\.tsv:3 has 'gout'"),
        (GOLD.replace("gout\tB\n", ""), r"pred\.tsv:2: the sentence ends, but .*gold\.tsv:3 goes on with 'gout'"),
        (GOLD.replace("seen\tO\n", "seen\tO\n.\tO\n"), r"pred\.tsv:8: token '\.', but .*gold\.tsv:7 ends the sentence"),
        (GOLD[: GOLD.index("ataxia")], r"pred\.tsv has 1 sentences, but .*gold\.tsv:5 begins another"),
        (GOLD + "\nmore\tO\n", r"gold\.tsv has 2 sentences, but .*pred\.tsv:9 begins another"),
        (GOLD.replace("was\tO", "was\tX"), r"pred\.tsv:6: bad tag 'X'; expected one of O, B, I"),
        ("O\nO\nB\n", r"pred\.tsv:1: token<TAB>tag is expected, found 1 column"),
    ],
)
def test_what_is_not_aligned_is_named_by_file_and_line(tmp_path, predicted, message):
    with pytest.raises(UserError, match=message):
        _conll(tmp_path, predicted)


def test_conll_files_are_of_entities(tmp_path):
    with pytest.raises(UserError, match="give --labels"):
        _conll(tmp_path, GOLD, source=NLI)


def _rows(source, ids=True):
    return [
        Row("Do it.", one.input, one.output, source, id=f"id-{at}" if ids else "")
        for at, one in enumerate(perfect(source))
    ]


def _labels(folder, rows, predicted):
    write_rows(folder / "gold.parquet", rows)
    (folder / "pred.tsv").write_text(predicted)
    source = get_source(rows[0].source)
    return [text for _, text in read_label_pair(folder / "gold.parquet", folder / "pred.tsv", source)]


def test_labels_are_found_by_id_in_any_order(tmp_path):
    rows = _rows(NLI)
    assert _labels(tmp_path, rows, "id-3\tNeutral\nid-0\tContradiction\nid-1\tEntailment\nid-2\tNeutral\n") == [
        *("Contradiction", "Entailment", "Neutral", "Neutral")
    ]


def test_labels_are_found_by_sentence_and_a_repeated_sentence_in_order(tmp_path):
    rows = _rows(RELATION, ids=False)
    rows = [*rows, rows[0]]
    lines = [
        f"{row.input}\t{label}\n" for row, label in zip(rows, ["Causes", "Treats", "Treats", "Treats"], strict=True)
    ]
    assert _labels(tmp_path, rows, "sentence\tlabel\n" + "".join(lines)) == ["Causes", "Treats", "Treats", "Treats"]


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ("id-0\tNeutral\nid-9\tNeutral\n", r"pred\.tsv:2: no row of the gold has the id 'id-9'"),
        ("id-0\tNeutral\nid-0\tNeutral\n", r"pred\.tsv:2: a second answer to the id 'id-0'"),
        ("id-0\tNeutral\nid-1\tNeutral\nid-3\tNeutral\n", r"pred\.tsv has no line for row 2 of .*'id-2'"),
    ],
)
def test_a_label_file_that_does_not_fit_is_named(tmp_path, predicted, message):
    with pytest.raises(UserError, match=message):
        _labels(tmp_path, _rows(NLI), predicted)


@pytest.mark.parametrize("label", ["0", "entailment", "Entailment.", "x y"])
def test_a_label_that_the_task_does_not_have_is_refused_and_not_scored_as_wrong(tmp_path, label):
    lines = "".join(f"id-{at}\t{label if at == 2 else 'Neutral'}\n" for at in range(4))
    with pytest.raises(
        UserError, match=rf"pred\.tsv:3: '{label}' is no label of {NLI} \(Entailment, Contradiction, Neut"
    ):
        _labels(tmp_path, _rows(NLI), lines)


def test_several_labels_may_come_in_any_order(tmp_path):
    task = get_source("hoc").task
    both = ", ".join(task.labels[1::-1])
    rows = [Row("Do it.", "A sentence .", "None", "hoc", id="1"), Row("Do it.", "Another .", "None", "hoc", id="2")]
    assert _labels(tmp_path, rows, f"1\t{both}\n2\tNone\n") == [both, "None"]


def test_no_message_shows_text_under_agreement(tmp_path):
    secret = "Mr Secret"
    rows = [Row("Do it.", f"{secret} is ill .", "Neutral", "MedNLI")]
    for lines in (f"{secret} is well .\tNeutral\n", f"{rows[0].input}\t{secret}\n", "\n"):
        with pytest.raises(UserError) as caught:
            _labels(tmp_path, rows, lines)
        assert secret not in str(caught.value) and "(text of a credentialed source, " in str(caught.value)
    secret = "Secret"
    gold = f"{secret}\tO\nis\tO\n"
    for predicted in (gold.replace(secret, "He"), gold.replace("is\tO", "is\tSecret"), f"{secret}\tO\n"):
        with pytest.raises(UserError) as caught:
            _conll(tmp_path, predicted, gold, "i2b2-2012")
        assert secret not in str(caught.value) and "(text of a credentialed source, " in str(caught.value)


def test_gold_labels_may_come_as_a_tsv(tmp_path):
    (tmp_path / "gold.tsv").write_text("index\tsentence\tlabel\n7\ta b\tTreats\n8\tc d\tNo Relations\n")
    (tmp_path / "pred.tsv").write_text("7\tCauses\n8\tNo Relations\n")
    source = get_source(RELATION)
    found = read_label_pair(tmp_path / "gold.tsv", tmp_path / "pred.tsv", source)
    assert found[0] == (Row("", "a b", "Treats", RELATION, id="7"), "Causes")
    (tmp_path / "gold.tsv").write_text("a b\tCures\n")
    with pytest.raises(UserError, match=r"gold\.tsv:1: 'Cures' is no label of sample-relation \(Treats, Causes"):
        read_label_pair(tmp_path / "gold.tsv", tmp_path / "pred.tsv", source)


def test_an_official_split_is_recognised_and_compared_with_ours(tmp_path, shared_data, capsys):
    gold = shared_data / "raw" / "NCBI-disease" / "test.tsv"
    predicted = tmp_path / "bert.tsv"
    predicted.write_text(gold.read_text().replace("\tI\n", "\tO\n"))
    call = ["score", "--conll", str(gold), str(predicted), "--source=NCBI-disease", f"--out={tmp_path / 'bert'}"]
    assert main.dispatch(call) == 0
    entry = json.loads((tmp_path / "bert" / "scores.json").read_bytes())["sources"]["NCBI-disease"]
    assert (entry["split"], entry["n"]) == ("test", 940)
    capsys.readouterr()
    assert main.dispatch([*call[:3], str(gold), *call[4:-1], f"--out={tmp_path / 'ours'}"]) == 0
    assert main.dispatch(["compare", "--scores", str(tmp_path / "bert"), str(tmp_path / "ours"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["sources"]["NCBI-disease"]
    assert found["metrics"]["f1"][1]["value"] == 1.0
    assert found["metrics"]["f1"][1]["difference_ci95"][0] > 0.4


def test_labels_of_another_system_compare_with_ours_over_the_same_rows(tmp_path):
    write_rows(tmp_path / "gold.parquet", _rows(NLI))
    (tmp_path / "pred.tsv").write_text("".join(f"id-{at}\tNeutral\n" for at in range(4)))
    files = [str(tmp_path / name) for name in ("gold.parquet", "pred.tsv")]
    assert main.dispatch(["score", "--labels", *files, f"--source={NLI}", f"--out={tmp_path / 'bert'}"]) == 0
    write_scores(tmp_path / "ours", score(perfect(NLI), resamples=5))
    assert main.dispatch(["compare", "--scores", str(tmp_path / "bert"), str(tmp_path / "ours")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --predictions=FILE"),
        (["--predictions=x", "--conll", "a", "b"], "one of --predictions=FILE"),
        (["--conll", "a"], "takes two files, GOLD and PRED; found 1"),
        (["--conll", "a", "b"], "needs --source"),
        (["--labels", "/no/a", "/no/b", "--source=hoc"], "/no/a does not exist"),
        (["--predictions=x", "--source=hoc"], "belongs to --conll and --labels"),
    ],
)
def test_the_command_says_what_is_missing(arguments, message, capsys):
    assert main.dispatch(["score", *arguments]) == 2
    assert message in capsys.readouterr().err
