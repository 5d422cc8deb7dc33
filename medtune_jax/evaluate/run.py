"""A model over held-out rows: rows -> prompts -> generated texts -> predictions -> scores -> report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medtune_jax
from medtune_jax.data.prompts import TEMPLATES, Template, choose_name, get_template
from medtune_jax.errors import Interrupted, UserError, did_you_mean
from medtune_jax.evaluate.answer import answer, ask, check, decided
from medtune_jax.evaluate.files import make_folder, to_json, write_file
from medtune_jax.evaluate.predictions import FINAL, PARTIAL, PredictionLog
from medtune_jax.evaluate.protocols import PROTOCOLS, Protocol
from medtune_jax.evaluate.score import PROVENANCE, check_rows, score_file, training_rows
from medtune_jax.evaluate.shots import candidates, show, stop_strings
from medtune_jax.evaluate.timing import timing
from medtune_jax.generate.answering import Way, fit_budgets, ways_of
from medtune_jax.generate.decoding import Decoding
from medtune_jax.tasks.definition import definition_of
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row, credentialed_in, read_rows, registered_name

if TYPE_CHECKING:
    from medtune_jax.generate.engine import Engine


def evaluate(
    model: str | Path,
    data: str | Path,
    split: str,
    out: str | Path,
    *,
    decoding: Decoding = Decoding(),  # noqa: B008 - frozen
    sources: Sequence[str] = (),
    template: str | None = None,
    force_template: bool = False,
    limit: int | None = None,
    shots: int = 0,
    shot_seed: int = 0,
    rows_checked: int | None = None,
    batch_size: int | None = None,
    cache_gib: float | None = None,
    mesh: str = "none",
    protocol: Protocol = "aligned",
    show_credentialed: bool = False,
) -> dict[str, Any] | None:
    """Answers the rows of a split, scores them and writes predictions, scores and reports into the folder `out`.

    Stopped anywhere, the same call continues where it was and ends with the same predictions.jsonl. Of several joined
    processes (processes.py) all call it; the first alone needs `out`, and writes there.

    Args:
      model: Hugging Face directory or run folder.
      data: whatever `read_rows` reads; its train split, where it has one, is what the baselines are fitted on.
      decoding: how answers are found.
      sources: names or aliases of sources; all where empty.
      template: name of the prompt template; None = the one that the model was tuned with.
      force_template: allow another template than the model's own.
      limit: only the first so many rows of each source.
      shots: solved training rows shown before each row (evaluate/shots.py); shot_seed: of their choice.
      rows_checked: rows decoded by template that are decoded again token by token, to see how the rounding of `dtype`
        tells (timing.json); None = 8 in bfloat16, none in float32.
      batch_size: rows answered at once; None = as many as fit; cache_gib: memory of the cache, None = what is free.
      mesh: devices that share the work, as generate/placing.py `mesh_for` reads it.
      protocol: how texts are read and scored.
      show_credentialed: show the texts of credentialed sources in the reports.

    Returns:
      `Scores.summary` and "timing"; timing lies in timing.json, apart, so that scores.json is the same in any run. None
        in a process other than the first.

    Raises:
      UserError: see `read_rows`, `load_model`, `score`; `out` cannot be written; a source unknown to the registry
        under template decoding or without max_new_tokens; one whose outputs are not few under `loglikelihood`; a
        template that is unknown, missing or not the model's own; no training rows to show; a mesh that does not divide
        devices or model; processes that do not hold the same.
      Interrupted: on Ctrl-C, and on SIGTERM where that is made a KeyboardInterrupt as `medtune` does, after what was
        answered has been saved.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"Unknown protocol '{protocol}'.{did_you_mean(protocol, PROTOCOLS)}")
    from medtune_jax.processes import is_first
    from medtune_jax.train.agreement import program_and_weights, require_same
    from medtune_jax.train.saved.disk import one_writer

    started, folder = time.monotonic(), Path(out)
    with _stoppable(folder), ExitStack() as held:
        of_split = choose_rows(data, split, sources)
        rows = limited(of_split, limit)
        ways = ways_of([row for _, row in rows], decoding)
        if rows_checked and all(way.method != "template" for way in ways):
            raise UserError(
                "--check_rows compares what is decoded by template, and no task of these rows has its outputs listed: "
                "leave it out, or choose other rows with --sources."
            )
        if rows_checked is None:
            rows_checked = 8 if decoding.dtype == "bfloat16" else 0
        # Whatever could stop the scoring is met here, before hours of answering.
        check_rows(rows, protocol)
        train = training_rows(data, {row.source for _, row in rows})
        may_show = candidates(train, [row for _, row in of_split], shot_seed, str(data)) if shots else {}
        private = bool(credentialed_in(row for _, row in rows))
        # Each process holds these for itself; what differed would be met as a collective that never ends.
        options = [decoding.description(), template, force_template, batch_size, cache_gib, mesh, shots, shot_seed]
        asks = {"settings": [*options, rows_checked], "rows": [[position, asdict(row)] for position, row in rows]}
        require_same({**asks, **program_and_weights(Path(model))})
        first = is_first()
        if first:
            make_folder(folder, private)
        held.enter_context(one_writer(folder, "--out"))
        forced = force_template and template is not None
        engine, own_template, identity = _load(model, decoding, cache_gib, mesh, forced)
        form = choose_template(own_template, template, force_template, str(model))
        if decoding.max_new_tokens is None:
            ways = fit_budgets([row for _, row in rows], ways, form, engine.tokenizer)
        prefaces, demonstrations = show(
            may_show, shots, [row for _, row in rows], ways, form, engine.tokenizer, engine.config.max_positions
        )
        asked = decoding.description() | ({"shots": shots, "shot_seed": shot_seed} if shots else {})
        questions = ask(rows, form, identity, asked, ways, prefaces)
        require_same({"model or template": [one.key for one in questions]})
        loaded = time.monotonic()
        with PredictionLog(folder, questions, private=private) if first else nullcontext() as log:
            counts, written = answer(
                engine,
                form,
                questions,
                ways,
                log,
                decoding,
                prefaces=prefaces,
                stop=stop_strings(form) if shots else (),
                batch_size=batch_size,
                to_check=rows_checked,
            )
            if log is not None:
                log.finish()
        answered, work = time.monotonic(), replace(engine.work)
        rows_checked = min(rows_checked, sum(way.method == "template" for way in ways))
        checked = check(engine, form, questions, prefaces, written, rows_checked) if rows_checked else None
        compared = time.monotonic()
        if not first:
            return None
        provenance = {
            "model": str(model),
            **identity,
            "template": form.name,
            "template_sha256": form.sha256,
            "decoding": asked,
            "decoded_by": _methods(rows, ways),
            "shots": shots,
            "wording": "as in the rows",
            "data": str(data),
            "split": split,
            "limit": limit,
            "versions": _versions(),
        }
        if shots:
            provenance |= {"shot_seed": shot_seed, "demonstrations": demonstrations}
        if definitions := _definitions(rows):
            provenance["source_definitions"] = definitions
        write_file(folder / PROVENANCE, to_json(provenance))
        scores = score_file(folder / FINAL, folder, protocol=protocol, train=train, show_credentialed=show_credentialed)
    ended = time.monotonic()
    seconds = {"load": loaded - started, "generate": answered - loaded, "check": compared - answered}
    seconds |= {"score": ended - compared, "wall": ended - started}
    measured = timing(len(rows), decided(ways), counts, checked, work, seconds)
    write_file(folder / "timing.json", to_json(measured))
    return {**scores.summary(folder), "timing": measured}


def choose_rows(data: str | Path, split: str, sources: Sequence[str]) -> list[tuple[int, Row]]:
    """Returns (position in the split, row) of the sources asked for; of all where none is."""
    rows = read_rows(data, split)
    present = {registered_name(row.source) for row in rows}
    for source in sources:
        if registered_name(source) not in present:
            raise UserError(f"{data} has no rows of source '{source}'.{did_you_mean(source, present)}")
    wanted = {registered_name(source) for source in sources} or present
    return [(position, row) for position, row in enumerate(rows) if registered_name(row.source) in wanted]


def limited(rows: Sequence[tuple[int, Row]], limit: int | None) -> list[tuple[int, Row]]:
    """Returns the first so many rows of each source; None = all."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it counts rows per source and must be at least 1.")
    taken: Counter[str] = Counter()
    kept = []
    for position, row in rows:
        taken[registered_name(row.source)] += 1
        if limit is None or taken[registered_name(row.source)] <= limit:
            kept.append((position, row))
    return kept


def choose_template(own: str | None, asked: str | None, force: bool, model: str) -> Template:
    """Returns the template to ask with: the model's own unless another is forced."""
    name = choose_name(own, asked, force, model)
    if name is None:
        raise UserError(
            f"{model} does not say with which prompt template it was tuned: give --template, "
            f"one of {', '.join(TEMPLATES)}."
        )
    return get_template(name)


def _load(
    model: str | Path, decoding: Decoding, cache_gib: float | None, mesh: str, force_template: bool
) -> tuple[Engine, str | None, dict[str, str]]:
    """Returns (engine, name of the template that the model was tuned with, hashes that identify the model)."""
    from medtune_jax.compilation_cache import use_compilation_cache
    from medtune_jax.generate.engine import Engine
    from medtune_jax.generate.placing import mesh_for
    from medtune_jax.train.load import load_model

    use_compilation_cache()
    loaded = load_model(
        model,
        dtype=decoding.dtype,
        mesh=partial(mesh_for, mesh),
        max_positions=decoding.max_positions,
        force_template=force_template,
    )
    engine = Engine(
        loaded.params,
        loaded.config,
        loaded.tokenizer,
        mesh=loaded.mesh,
        dtype=decoding.dtype,
        donate=True,
        cache_dtype=decoding.cache_dtype,
        cache_bytes=None if cache_gib is None else int(cache_gib * 2**30),
    )
    identity = {"model_sha256": loaded.sha256, "tokenizer_sha256": loaded.tokenizer.sha256}
    return engine, loaded.template, identity


def _methods(rows: Sequence[tuple[int, Row]], ways: Sequence[Way]) -> dict[str, list[str]]:
    """Returns source -> the methods by which its rows were answered."""
    found: dict[str, set[str]] = {}
    for (_, row), way in zip(rows, ways, strict=True):
        found.setdefault(registered_name(row.source), set()).add(way.method)
    return {name: sorted(methods) for name, methods in found.items()}


def _definitions(rows: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """Returns name -> definition of the sources that a user defined."""
    known = [source for name in {row.source for _, row in rows} if (source := find_source(name))]
    return {source.name: definition for source in known if (definition := definition_of(source)) is not None}


def _versions() -> dict[str, str]:
    import jax
    import numpy

    return {"medtune_jax": medtune_jax.__version__, "jax": jax.__version__, "numpy": numpy.__version__}


@contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    """Turns KeyboardInterrupt, which the command line makes of SIGTERM too, into Interrupted: how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        partial, kept = folder / PARTIAL, ""
        if partial.is_file():
            kept = f"{len(partial.read_bytes().splitlines()):,} answers are kept in {partial}. "
        raise Interrupted(f"{kept}Give the same command again to continue.") from None
