"""Scores a predictions file, or what another system predicted; no model is needed.

A line of --predictions is a JSON object with at least `source`, `input`, `output` (gold) and `generated`. The training
split of --data is what the constant answer and the dictionary tagger are fitted on.

--conll GOLD PRED takes two files of `token<TAB>tag` lines over the same tokens; --labels GOLD PRED takes gold rows as
`medtune prepare` writes them (or a .tsv of sentence and label) and a .tsv of `id<TAB>label` or `sentence<TAB>label`.
Both need --source, and put a BERT run under the same scorer and the same paired test (`medtune compare`) as ours.

--protocol=legacy_medtuned scores as the Llama2-MedTuned authors' scripts do, defects included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.errors import UserError

SUMMARY = "score existing predictions, no model needed"
MANY_VALUES = ("conll", "labels")
PAIRS = ("conll", "labels")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune score`."""
    text = absl_flags.DEFINE_string
    text("predictions", None, "predictions.jsonl, or its folder.", flag_values=flags)
    for name, what in (("conll", "two CoNLL files over the same tokens"), ("labels", "gold rows and a TSV of labels")):
        absl_flags.DEFINE_multi_string(name, None, f"GOLD PRED: {what}.", flag_values=flags)
    text("source", None, "The source that --conll or --labels is of.", flag_values=flags)
    text("out", None, "Result folder; that of the predictions without it.", flag_values=flags)
    absl_flags.DEFINE_enum(
        "protocol", "aligned", ["aligned", "legacy_medtuned"], "How texts are read and scored.", flag_values=flags
    )
    text("data", None, "Folder whose train split the baselines are fitted on.", flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "source_file", [], "TOML definition of your own source (repeatable).", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "show_credentialed", False, "Show texts of credentialed sources in the reports.", flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Scores and returns the summary of scores."""
    from medtune_jax.evaluate.score import score_answers, score_file
    from medtune_jax.tasks.definition import read_source_file
    from medtune_jax.tasks.registry import register

    given = [name for name in ("predictions", *PAIRS) if flags[name].value]
    if len(given) != 1:
        raise UserError("Give what to score: one of --predictions=FILE, --conll GOLD PRED, --labels GOLD PRED.")
    if flags.data and not Path(flags.data).is_dir():
        raise UserError(f"--data={flags.data} is not a folder of rows as `medtune prepare` writes it.")
    for path in flags.source_file:
        register(read_source_file(path))
    how = {"protocol": flags.protocol, "data": flags.data, "show_credentialed": flags.show_credentialed}
    if given == ["predictions"]:
        if flags.source is not None:
            raise UserError("--source belongs to --conll and --labels: predictions name their sources themselves.")
        path = Path(flags.predictions)
        out = Path(flags.out) if flags.out else path if path.is_dir() else path.parent
        return score_file(path, out, **how).summary(out)
    answered, provenance = _read_pair(given[0], list(flags[given[0]].value or ()), flags.source)
    if not flags.out:
        raise UserError(f"--out is missing: say where the scores of --{given[0]} shall lie.")
    return score_answers(answered, Path(flags.out), provenance=provenance, **how).summary(Path(flags.out))


def _read_pair(flag: str, paths: list[str], source: str | None) -> tuple[list[Any], dict[str, str]]:
    """Returns (gold rows with what was predicted for each, their provenance)."""
    from medtune_jax.data_prep.other_systems import read_conll_pair, read_label_pair
    from medtune_jax.tasks.registry import get_source

    if len(paths) != 2:
        raise UserError(f"--{flag} takes two files, GOLD and PRED; found {len(paths)}.")
    if source is None:
        raise UserError(f"--{flag} needs --source: which corpus the files are of.")
    gold, predicted = map(Path, paths)
    for path in (gold, predicted):
        if not path.is_file():
            raise UserError(f"--{flag}: {path} does not exist.")
    read = read_conll_pair if flag == "conll" else read_label_pair
    return read(gold, predicted, get_source(source)), {"model": str(predicted), "gold": str(gold), "predictions": flag}


def human(result: dict[str, Any]) -> str:
    """Returns the scores as a small table."""
    from medtune_jax.evaluate.report.markdown import console

    return console(result)
