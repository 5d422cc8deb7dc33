"""Answers to held-out rows during training, scored: what the model writes, not only how likely it finds the gold.

The trained parameters, adapters merged, answer through the engine as `medtune evaluate` has it: by template where the
task knows its outputs, else greedily. A copy of the weights in the compute dtype lives only as long as the answering;
it is split over `tensor` as far as the model's heads go, whatever the mesh of training, so that it fits where the
training state does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from jax.sharding import Mesh

from medtune_jax import processes
from medtune_jax.config import Config
from medtune_jax.data.packing import order
from medtune_jax.errors import UserError
from medtune_jax.generate.answering import answer_rows, fit_budgets, ways_of
from medtune_jax.generate.decoding import Decoding
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.results import Generation
from medtune_jax.generate.weights import decoding_mesh
from medtune_jax.model.llama import Params
from medtune_jax.tasks.base import Parsed
from medtune_jax.tasks.reading import corpus_metrics, read_answer, read_gold
from medtune_jax.tasks.registry import find_source
from medtune_jax.tasks.rows import Row
from medtune_jax.tasks.source import Source
from medtune_jax.train.inputs import Inputs
from medtune_jax.train.precision import compute_dtype
from medtune_jax.train.saved.run_folder import write_whole
from medtune_jax.train.trainable import assemble

MEAN = "samples_mean"  # the key of a line that holds the mean over sources of their leading metrics
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Asked:
    """A held-out row to be answered.

    Attributes:
      number: its index among the held-out rows.
      gold: its gold annotation.
    """

    number: int
    row: Row
    source: Source
    gold: Any


def key_of(source: str) -> str:
    """Returns the key of a line that holds the leading metric of a source."""
    return f"samples_{source}"


def choose(rows: Sequence[Row], count: int) -> list[Asked]:
    """Returns up to `count` of the rows, the same ones whenever the same rows are given, dealt evenly to the sources.

    Rows of sources that the registry does not know, or whose gold answer cannot be read, are left out with a warning.
    """
    chosen, left_out = _chosen(rows, count)
    for name, rows_left in sorted(left_out.items()):
        _log.warning(
            "Samples: %d held-out rows of source '%s' cannot be scored: left out.", rows_left, name or "(blank)"
        )
    return chosen


def scored_sources(rows: Sequence[Row], count: int) -> set[str]:
    """Returns the names of the sources of what `choose` chooses; it warns of nothing."""
    return {one.source.name for one in _chosen(rows, count)[0]}


def _chosen(rows: Sequence[Row], count: int) -> tuple[list[Asked], dict[str, int]]:
    """Returns the rows, and how many of each source cannot be scored."""
    of_source: dict[str, list[Asked]] = {}
    left_out: dict[str, int] = {}
    for number in order(len(rows), seed=0, epoch=1).tolist():
        row = rows[number]
        source = find_source(row.source)
        try:
            if source is None:
                raise UserError("not in the registry")
            asked = Asked(number, row, source, read_gold(source.task, number, row).annotation)
        except UserError:
            left_out[row.source] = left_out.get(row.source, 0) + 1
            continue
        of_source.setdefault(source.name, []).append(asked)
    chosen: list[Asked] = []
    for turn in range(max(map(len, of_source.values()), default=0)):
        chosen += [of_source[name][turn] for name in sorted(of_source) if turn < len(of_source[name])]
        if len(chosen) >= count:
            break
    return sorted(chosen[:count], key=lambda one: one.number), left_out


def make_sample(
    config: Config, inputs: Inputs, frozen: Params, mesh: Mesh, folder: Path
) -> Callable[[int, Params], dict[str, Any]] | None:
    """Returns (step, trained parameters) -> what a line of metrics says; None where no samples are asked for.

    That holds samples: {source: {metric, value, n, unparsable}}, the leading metric of each source once more under
    `key_of(source)`, and their mean under MEAN. Prompts, gold and answers go to <folder>/<step>.jsonl, which
    `medtune score` reads; they go nowhere else, and only their owner may read them.

    Raises:
      UserError: no held-out row can be answered and scored.
    """
    if not config.evaluation.samples_every_steps or not inputs.held_out.rows:
        return None
    asked = choose(inputs.held_out.rows, config.evaluation.sample_rows)
    if not asked:
        raise UserError(
            f"No row of '{inputs.held_out.split}' can be answered and scored: set "
            "--config.evaluation.samples_every_steps=0, or hold out other rows."
        )
    rows = [one.row for one in asked]
    ways = fit_budgets(rows, ways_of(rows, Decoding()), inputs.template, inputs.tokenizer)
    answering_mesh, dtype = decoding_mesh(mesh, inputs.model), compute_dtype(config)

    def sample(step: int, params: Params) -> dict[str, Any]:
        answers: dict[int, Generation] = {}
        engine = Engine(
            **assemble(config, params, frozen),
            config=inputs.model,
            tokenizer=inputs.tokenizer,
            mesh=answering_mesh,
            dtype=dtype,
        )
        answer_rows(
            engine,
            inputs.template,
            rows,
            ways,
            numbers=[one.number for one in asked],
            on_done=answers.__setitem__,
        )
        del engine  # and with it the copy of the weights
        read = [
            read_answer(one.source.task, answers[index].text, one.row.input, answers[index].finish_reason)
            for index, one in enumerate(asked)
        ]
        if processes.is_first():
            _write(folder, step, asked, [answers[index] for index in range(len(asked))], read)
        return _figures(asked, read)

    return sample


def _figures(asked: Sequence[Asked], read: Sequence[Parsed]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name in sorted({one.source.name for one in asked}):
        own = [(one, parsed) for one, parsed in zip(asked, read, strict=True) if one.source.name == name]
        task = own[0][0].source.task
        figures = corpus_metrics(task, [task.statistics(one.gold, parsed, one.row.input) for one, parsed in own])
        told[name] = {
            "metric": task.metric,
            "value": figures[task.metric],
            "n": len(own),
            "unparsable": sum(parsed.status == "unparsable" for _, parsed in own),
        }
    values = {key_of(name): of_source["value"] for name, of_source in told.items()}
    return {"samples": told, **values, MEAN: mean(values.values())}


def _write(
    folder: Path, step: int, asked: Sequence[Asked], answers: Sequence[Generation], read: Sequence[Parsed]
) -> None:
    lines = [
        {
            "row": one.number,
            **asdict(one.row),
            "generated": answer.text,
            "finish_reason": answer.finish_reason,
            "generated_tokens": len(answer.tokens),
            "status": parsed.status,
            "problems": parsed.problems,
        }
        for one, answer, parsed in zip(asked, answers, read, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # whatever the rows: a later call of the run may answer others, of gated text
    # ASCII: a generated text may hold a lone surrogate, which UTF-8 has no bytes for.
    write_whole(folder / f"{step}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{step}.jsonl").chmod(0o600)
