"""A model over held-out rows: rows -> prompts -> generated texts -> predictions -> scores -> report."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import medtune_jax
from medtune_jax.data.prompts import TEMPLATES, Template, choose_name, get_template
from medtune_jax.errors import Interrupted, UserError, did_you_mean
from medtune_jax.evaluate.files import make_folder, to_json, write_file
from medtune_jax.evaluate.predictions import FINAL, PARTIAL, Prediction, PredictionLog, prediction_key
from medtune_jax.evaluate.score import PROTOCOLS, PROVENANCE, check_rows, score_file, training_rows
from medtune_jax.tasks.base import Allowed
from medtune_jax.tasks.registry import find_source, get_source
from medtune_jax.tasks.rows import Row, read_rows

if TYPE_CHECKING:
    from medtune_jax.data.tokenizer import Tokenizer
    from medtune_jax.generate.engine import Engine, Generation, TemplateRequest

LOG = logging.getLogger(__name__)
_SPARE = 64  # tokens allowed beyond the longest well-formed output
DECODE = ("template", "greedy", "sample")
Decode = Literal["template", "greedy", "sample"]


def evaluate(
    model: str | Path,
    data: str | Path,
    split: str,
    out: str | Path,
    *,
    sources: Sequence[str] = (),
    decode: Decode = "template",
    template: str | None = None,
    force_template: bool = False,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    dtype: str = "float32",
    max_positions: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    protocol: Literal["aligned"] = "aligned",
) -> dict[str, Any]:
    """Answers the rows of a split, scores them and writes predictions, scores and reports into the folder `out`.

    Stopped anywhere, the same call continues where it was and ends with the same predictions.jsonl.

    Args:
      model: Hugging Face directory or run folder.
      data: whatever `read_rows` reads; its train split, where it has one, is what the baselines are fitted on.
      sources: names of sources; all where empty.
      decode: `template` decides only what the task leaves open; `greedy` and `sample` write freely.
      template: name of the prompt template; None = the one that the model was tuned with.
      force_template: allow another template than the model's own.
      limit: only the first so many rows of each source.
      max_new_tokens: budget of free decoding; None = each task's own, or less where a row's longest well-formed output
        is far shorter.
      max_positions: of prompt and answer together; None = the checkpoint's own.
      temperature, top_k, top_p, seed: of `sample`.

    Returns:
      `Scores.summary` and "timing"; timing lies in timing.json, apart, so that scores.json is the same in any run.

    Raises:
      UserError: see `read_rows`, `load_model`, `score`; `out` cannot be written; a source unknown to the registry
        under template decoding or without max_new_tokens; a template that is unknown, missing or not the model's own.
      Interrupted: on SIGTERM or Ctrl-C, after what was answered has been saved.
    """
    for name, value, known in (("decoding", decode, DECODE), ("protocol", protocol, PROTOCOLS)):
        if value not in known:
            raise UserError(f"Unknown {name} '{value}'.{did_you_mean(value, known)}")
    started, folder = time.monotonic(), Path(out)
    with _stoppable(folder):
        rows = choose_rows(data, split, sources, limit)
        budgets = [_budget(row, decode, max_new_tokens) for _, row in rows]
        # Whatever could stop the scoring is met here, before hours of answering.
        check_rows(rows)
        train = training_rows(data, {row.source for _, row in rows})
        make_folder(folder)
        forced = force_template and template is not None
        engine, own_template, identity = _load(model, dtype, max_positions, forced)
        form = choose_template(own_template, template, force_template, str(model))
        if decode != "template" and max_new_tokens is None:
            budgets = [
                _what_input_needs(row, form, engine.tokenizer, budget)
                for (_, row), budget in zip(rows, budgets, strict=True)
            ]
        decoding: dict[str, Any] = {"method": decode, "dtype": dtype}
        if max_positions is not None:
            decoding["max_positions"] = max_positions
        if decode != "template":
            decoding["max_new_tokens"] = max_new_tokens or "by task and input"
        if decode == "sample":
            decoding |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        questions = ask(rows, form, identity, decoding, budgets)
        loaded = time.monotonic()
        with PredictionLog(folder, questions, private=_private(rows)) as log:
            counts = answer(engine, form, questions, log, decoding, budgets, batch_size)
            log.finish()
        answered = time.monotonic()
        provenance = {
            "model": str(model),
            **identity,
            "template": form.name,
            "template_sha256": form.sha256,
            "decoding": decoding,
            "shots": 0,
            "wording": "as in the rows",
            "data": str(data),
            "split": split,
            "limit": limit,
            "versions": _versions(),
        }
        write_file(folder / PROVENANCE, to_json(provenance))
        scores = score_file(folder / FINAL, folder, protocol=protocol, train=train)
    seconds = answered - loaded
    timing = {
        "rows": len(rows),
        "rows_answered_now": counts["rows"],
        "load_seconds": round(loaded - started, 3),
        "generate_seconds": round(seconds, 3),
        "score_seconds": round(time.monotonic() - answered, 3),
        "wall_seconds": round(time.monotonic() - started, 3),
        "rows_per_second": round(counts["rows"] / seconds, 3),
        "output_tokens": counts["tokens"],
        "output_tokens_per_second": round(counts["tokens"] / seconds, 1),
        # What the model chose: under template decoding it is not every token that is written.
        "decision": _decision(decode),
        "decisions": counts["decisions"],
        "decisions_per_second": round(counts["decisions"] / seconds, 1),
        "forward_passes_per_row": round(counts["passes"] / max(1, counts["rows"]), 3),
    }
    write_file(folder / "timing.json", to_json(timing))
    return {**scores.summary(folder), "timing": timing}


def choose_rows(data: str | Path, split: str, sources: Sequence[str], limit: int | None) -> list[tuple[int, Row]]:
    """Returns (position in the split, row); with a limit, the first so many of each source."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it counts rows per source and must be at least 1.")
    taken: dict[str, int] = {}
    chosen = []
    rows = read_rows(data, split)
    present = {row.source for row in rows}
    for source in sources:
        if source not in present:
            raise UserError(f"{data} has no rows of source '{source}'.{did_you_mean(source, present)}")
    for position, row in enumerate(rows):
        if sources and row.source not in sources:
            continue
        taken[row.source] = taken.get(row.source, 0) + 1
        if limit is None or taken[row.source] <= limit:
            chosen.append((position, row))
    return chosen


def choose_template(own: str | None, asked: str | None, force: bool, model: str) -> Template:
    """Returns the template to ask with: the model's own unless another is forced."""
    name = choose_name(own, asked, force, model)
    if name is None:
        raise UserError(
            f"{model} does not say with which prompt template it was tuned: give --template, "
            f"one of {', '.join(TEMPLATES)}."
        )
    return get_template(name)


def ask(
    rows: Sequence[tuple[int, Row]],
    template: Template,
    identity: dict[str, str],
    decoding: dict[str, Any],
    budgets: Sequence[int],
) -> list[Prediction]:
    """Returns one prediction per row with its key and nothing generated yet."""
    return [
        Prediction(
            row=position,
            id=row.id,
            group=row.group,
            source=row.source,
            instruction=row.instruction,
            input=row.input,
            output=row.output,
            meta=row.meta,
            generated="",
            finish_reason="",
            generated_tokens=0,
            key=prediction_key(
                position,
                row.id,
                row.source,
                " ".join(identity.values()),
                template.prompt(row.instruction, row.input),
                {**decoding, "max_new_tokens": budget},
                template.sha256,
            ),
        )
        for (position, row), budget in zip(rows, budgets, strict=True)
    ]


def answer(
    engine: Engine,
    template: Template,
    questions: Sequence[Prediction],
    log: PredictionLog,
    decoding: Mapping[str, Any],
    budgets: Sequence[int],
    batch_size: int,
) -> dict[str, int]:
    """Has the engine answer what the log still misses, and records each answer as it comes.

    Returns {"rows", "tokens", "decisions", "passes"}: rows answered now, and summed over them tokens written, what the
    model chose (labels under template decoding, else tokens), forward passes.
    """
    from tqdm import tqdm

    if log.dropped_torn:
        LOG.warning("A line that was cut off when the last attempt stopped is dropped; its row is answered again.")
    missing = log.missing
    counts = {"rows": 0, "tokens": 0, "decisions": 0, "passes": 0}
    if not missing:
        return counts
    if len(missing) < len(questions):
        LOG.info("%d of %d rows are answered already.", len(questions) - len(missing), len(questions))
    started = time.monotonic()
    # On a terminal the line moves; in a log file it is written twice a minute.
    pause = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        total=len(questions), initial=len(questions) - len(missing), unit="row", file=sys.stderr, mininterval=pause
    ) as bar:

        def done(index: int, generation: Generation) -> None:
            tokens = len(generation.tokens)
            log.add(missing[index], generation.text, generation.finish_reason, tokens)
            counts["rows"] += 1
            counts["tokens"] += tokens
            counts["passes"] += generation.passes
            counts["decisions"] += (
                len(requests[index].allowed.slots) if generation.finish_reason == "constrained" else tokens
            )
            speed = counts["decisions"] / (time.monotonic() - started)
            bar.set_postfix_str(f"{speed:,.0f} {_decision(decoding['method'])}s/s", refresh=False)
            bar.update()

        asked = [questions[index] for index in missing]
        requests: list[TemplateRequest] = []
        if decoding["method"] == "template":
            from medtune_jax.generate.engine import TemplateRequest

            requests = [
                TemplateRequest(
                    one.instruction,
                    one.input,
                    _allowed(one.source, one.input),
                    name=f"{one.source}, row {one.row}",
                )
                for one in asked
            ]
            engine.decode_template(requests, template, batch_size=batch_size, on_done=done)
        else:
            from medtune_jax.data.encode import encode_prompt
            from medtune_jax.generate.sampling import Greedy, Sample

            greedy = decoding["method"] == "greedy"
            engine.generate(
                [encode_prompt(engine.tokenizer, template, one.instruction, one.input) for one in asked],
                method=Greedy() if greedy else Sample(decoding["temperature"], decoding["top_k"], decoding["top_p"]),
                max_new_tokens=[budgets[index] for index in missing],
                batch_size=batch_size,
                seed=0 if greedy else decoding["seed"],
                rows=[one.row for one in asked],  # a row's draws are its own, also where a run continues
                on_done=done,
            )
    return counts


def _decision(decode: str) -> str:
    """Returns the name of what the model decides."""
    return "label" if decode == "template" else "token"


def _budget(row: Row, decode: Decode, asked: int | None) -> int:
    """Returns how many tokens the row's answer may have; 0 under template decoding, which needs no budget."""
    source = find_source(row.source)
    if decode == "template":
        if source is None:
            raise UserError(
                f"Source '{row.source}' is not in the registry, so template decoding does not know its outputs: "
                "choose other rows with --sources, or use --decode=greedy."
            )
        return 0
    if asked is not None:
        return asked
    if source is None:
        raise UserError(
            f"Source '{row.source}' is not in the registry: say how long its answers may be, --max_new_tokens."
        )
    return source.task.max_new_tokens


def _what_input_needs(row: Row, template: Template, tokenizer: Tokenizer, most: int) -> int:
    """Returns the tokens of the row's longest well-formed output and some more, at most `most`.

    The engine reserves every row's budget in its cache and attends it.
    """
    allowed = get_source(row.source).task.allowed(row.input)
    if allowed is None:
        return most
    longest = allowed.text(tuple(max(slot.options, key=len) for slot in allowed.slots))
    return min(most, len(tokenizer.encode(template.completion(longest))) + _SPARE)


def _allowed(source: str, input: str) -> Allowed:
    allowed = get_source(source).task.allowed(input)
    if allowed is None:
        raise UserError(f"{source} is answered in free text: use --decode=greedy.")
    return allowed


def _load(
    model: str | Path, dtype: str, max_positions: int | None, force_template: bool
) -> tuple[Engine, str | None, dict[str, str]]:
    """Returns (engine, name of the template that the model was tuned with, hashes that identify the model)."""
    from medtune_jax.compilation_cache import use_compilation_cache
    from medtune_jax.generate.engine import Engine
    from medtune_jax.train.load import load_model

    use_compilation_cache()
    loaded = load_model(model, dtype=dtype, max_positions=max_positions, force_template=force_template)
    engine = Engine(loaded.params, loaded.config, loaded.tokenizer, dtype=dtype)
    identity = {"model_sha256": loaded.sha256, "tokenizer_sha256": loaded.tokenizer.sha256}
    return engine, loaded.template, identity


def _private(rows: Sequence[tuple[int, Row]]) -> bool:
    return any(source.credentialed for name in {row.source for _, row in rows} if (source := find_source(name)))


def _versions() -> dict[str, str]:
    import jax
    import numpy

    return {"medtune_jax": medtune_jax.__version__, "jax": jax.__version__, "numpy": numpy.__version__}


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into Interrupted, which says how to continue."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # only there may signals be handled
    before = signal.signal(signal.SIGTERM, stop) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt:
        partial, kept = folder / PARTIAL, ""
        if partial.is_file():
            kept = f"{len(partial.read_bytes().splitlines()):,} answers are kept in {partial}. "
        raise Interrupted(f"{kept}Give the same command again to continue.") from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
