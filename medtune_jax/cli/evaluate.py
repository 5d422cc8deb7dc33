"""Runs a model over the rows of a split, scores its answers and writes the report.

--decode=template lets the model decide only what the task leaves open, so that no output is malformed; tasks of free
text are answered greedily. greedy, sample and beam write freely (the authors of Llama2-MedTuned: --decode=beam
--max_new_tokens=512). loglikelihood, for tasks whose output is one label or one letter, sums the log-probabilities of
each candidate output and takes the likeliest (accuracy_ll; per byte of the candidate: accuracy_ll_norm).
lm-evaluation-harness scores its MedQA so, but the texts " A" to " D" behind "Answer:"; here the letter is scored in the
model's own template, with what that writes around it and without EOS.

--shots=K shows K solved rows of the train split before each row, the same ones for all rows of a source, balanced over
its labels; fewer where they do not fit. So an untuned model is asked: --template=medtuned_train --shots=1.

An interrupted run (exit status 75) continues where it was when the same command is given again.

On several machines the same command runs on each, as `medtune train --help` says, with the same model and rows. The
first alone writes --out and speaks; SIGTERM to any, or the death of one, ends all with 75.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from medtune_jax.cli.arguments import refuse_given
from medtune_jax.cli.several import define_mesh_flag, define_process_flags, joined_as, sigterm_as_ctrl_c
from medtune_jax.errors import UserError

SUMMARY = "run a model over held-out rows, score it and write the report"
# As in generate/decoding.py and evaluate/protocols.py, which are not imported for a help text.
DECODE = ("template", "greedy", "sample", "beam", "loglikelihood")
DRAFT = ("none", "template", "prompt")
PROTOCOLS = ("aligned", "legacy_medtuned")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `medtune evaluate`."""
    text, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    text("model", None, "Hugging Face directory or run folder.", required=True, flag_values=flags)
    text("data", None, "Folder written by `medtune prepare`, or a file of rows.", required=True, flag_values=flags)
    text("split", "test", "Split to answer: test, validation, test2, ...", flag_values=flags)
    absl_flags.DEFINE_list(
        "sources", [], "Comma-separated sources to answer, by name or alias; empty = all.", flag_values=flags
    )
    text("out", None, "Result folder; for a run RUN/evaluation/SPLIT-DECODE[-Nshot] without it.", flag_values=flags)
    absl_flags.DEFINE_enum("protocol", "aligned", PROTOCOLS, "How texts are read and scored.", flag_values=flags)
    absl_flags.DEFINE_enum("decode", "template", DECODE, "How answers are found.", flag_values=flags)
    text("template", None, "Prompt template; the model's own without it.", flag_values=flags)
    absl_flags.DEFINE_bool(
        "force_template", False, "Ask with --template even if the model was tuned with another.", flag_values=flags
    )
    number("limit", None, "Only the first so many rows of each source.", flag_values=flags)
    number("shots", 0, "Solved training rows of its source shown before each row.", lower_bound=0, flag_values=flags)
    number("shot_seed", 0, "Of the choice of --shots.", flag_values=flags)
    number("batch_size", None, "Rows answered at once; as many as fit without it.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_float(
        "cache_gib",
        None,
        "GiB of each device for cached keys and values; what is free without it.",
        lower_bound=0,
        flag_values=flags,
    )
    number(
        "check_rows",
        None,
        "Rows of --decode=template that are decoded again token by token, and compared; 8 with --dtype=bfloat16, else "
        "none, without it.",
        lower_bound=0,
        flag_values=flags,
    )
    _define_decoding(flags)
    absl_flags.DEFINE_bool(
        "show_credentialed", False, "Show texts of credentialed sources in the reports.", flag_values=flags
    )
    define_mesh_flag(flags)
    define_process_flags(flags)


def _define_decoding(flags: absl_flags.FlagValues) -> None:
    """Defines --decode's options, OPTIONS; their defaults are those of `Decoding`."""
    number, real = absl_flags.DEFINE_integer, absl_flags.DEFINE_float
    number(
        "max_new_tokens",
        None,
        "Budget of --decode=greedy, sample and beam; what task and input need without it.",
        lower_bound=1,
        flag_values=flags,
    )
    number(
        "max_positions",
        None,
        "Positions of prompt and answer together; the checkpoint's own without it (raising it extrapolates).",
        lower_bound=2,
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Type of weights and arithmetic.", flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "cache_dtype", None, ["int8"], "Type of the cached keys and values; --dtype without it.", flag_values=flags
    )
    real("temperature", 1.0, "Of --decode=sample.", flag_values=flags)
    number("top_k", 0, "Of --decode=sample; 0 = all tokens.", flag_values=flags)
    real("top_p", 1.0, "Of --decode=sample.", flag_values=flags)
    real("min_p", 0.0, "Of --decode=sample: least share of the likeliest token's probability.", flag_values=flags)
    number("seed", 0, "Of --decode=sample.", flag_values=flags)
    real("repetition_penalty", 1.0, "Of --decode=greedy and sample; 1 = none.", flag_values=flags)
    number("num_beams", 4, "Of --decode=beam.", flag_values=flags)
    real("length_penalty", 1.0, "Of --decode=beam: power of the length that a score is divided by.", flag_values=flags)
    absl_flags.DEFINE_enum(
        "draft",
        "none",
        DRAFT,
        "Of --decode=greedy: what is proposed and verified, the same text in fewer passes; template: the row's allowed "
        "outputs where there are such, else the prompt's own words.",
        flag_values=flags,
    )


OPTIONS = (
    *("max_new_tokens", "max_positions", "dtype", "cache_dtype", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "num_beams", "length_penalty", "draft"),
)


def run(flags: absl_flags.FlagValues) -> dict[str, Any] | None:
    """Evaluates and returns the summary of scores with its timing; None in a process that does not speak."""
    from medtune_jax.train.saved.disk import refuse_object_store

    if flags.out:
        refuse_object_store(flags.out, "--out")
    if flags.template is None:
        refuse_given(flags, ["force_template"], "the model's own template", "--template=NAME")
    if not flags.shots:
        refuse_given(flags, ["shot_seed"], "--shots=0", "--shots=1 or more")
    if flags.decode != "template":
        refuse_given(flags, ["check_rows"], f"--decode={flags.decode}", "--decode=template")

    from medtune_jax.evaluate.run import evaluate
    from medtune_jax.generate.decoding import Decoding

    options: dict[str, Any] = {option: flags[option].value for option in OPTIONS}
    with joined_as("medtune evaluate", flags), sigterm_as_ctrl_c():
        return evaluate(
            flags.model,
            flags.data,
            flags.split,
            flags.out or _folder_in_run(flags),
            decoding=Decoding(flags.decode, **options),
            sources=flags.sources,
            template=flags.template,
            force_template=flags.force_template,
            limit=flags.limit,
            shots=flags.shots,
            shot_seed=flags.shot_seed,
            rows_checked=flags.check_rows,
            batch_size=flags.batch_size,
            cache_gib=flags.cache_gib,
            mesh=flags.mesh,
            protocol=flags.protocol,
            show_credentialed=flags.show_credentialed,
        )


def human(result: dict[str, Any]) -> str:
    """Returns the scores as a small table, and how long they took."""
    from medtune_jax.evaluate.report.markdown import console
    from medtune_jax.evaluate.timing import told

    return f"{console(result)}\n{told(result['timing'])}"


def _folder_in_run(flags: absl_flags.FlagValues) -> Path:
    run_folder = Path(flags.model)
    if not (run_folder / "checkpoints").is_dir():
        raise UserError(f"--out is missing: {run_folder} is not a run folder, so say where the results shall lie.")
    shots = f"-{flags.shots}shot" if flags.shots else ""
    return run_folder / "evaluation" / f"{flags.split}-{flags.decode}{shots}"
