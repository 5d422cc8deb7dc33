"""What a run is made from: architecture, tokenizer, rows as batches, and the identity of it all."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from medtune_jax.config import Config
from medtune_jax.convert.hf_config import config_to_hf
from medtune_jax.convert.hf_import import read_config, weights_sha256
from medtune_jax.convert.origin import Origin, read_origin, tuned, with_adapter
from medtune_jax.convert.peft_adapter import adapter_sha256
from medtune_jax.data.cache import default_folder, encode_cached
from medtune_jax.data.encoded import EncodedRows
from medtune_jax.data.loader import Batch, TrainData, evaluation_batches
from medtune_jax.data.packing import order
from medtune_jax.data.prompts import Template, get_template
from medtune_jax.data.tokenizer import Tokenizer, check_vocab, load_tokenizer
from medtune_jax.errors import UserError
from medtune_jax.model.llama import LlamaConfig
from medtune_jax.tasks.rows import Row, read_rows, rows_sha256
from medtune_jax.train.agreement import edges_of_weights, require_same, settings_and_program
from medtune_jax.train.held_out import HeldOut, hold_out
from medtune_jax.train.saved.checkpoints import Identity
from medtune_jax.train.step import check_batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything but weights and state.

    Attributes:
      source: the Hugging Face directory that gave config, tokenizer and (on a first start) weights.
      data: the batches of the run.
      row_numbers, row_ids: what the rows that `data` counts are called: index among the training rows as read, and id.
      held_out: the rows that are not trained on; evaluation: their batches, empty where the loss is not asked for.
      origin: what the tuned model is made from.
    """

    source: Path
    model: LlamaConfig
    tokenizer: Tokenizer
    template: Template
    data: TrainData
    row_numbers: tuple[int, ...]
    row_ids: tuple[str, ...]
    held_out: HeldOut
    evaluation: list[Batch]
    identity: Identity
    origin: Origin


def read_inputs(config: Config, mesh: Mesh) -> Inputs:
    """Reads and checks what `config` names; see train/loop.py for what it raises.

    Several processes compare what they hold: settings at once, so that none waits for what others do not do; rows and
    all else when they are read.
    """
    require_same(settings_and_program(config))
    check_batch(config, mesh)
    source = Path(config.model.path)
    model = _model_config(config, source)
    tokenizer = load_tokenizer(source)
    check_vocab(tokenizer, model.vocab_size)
    template = get_template(config.data.template)
    read = read_rows(config.data.path, split="train", sources=config.data.sources)
    numbers, held_out = hold_out(config, read)
    rows = [read[number] for number in numbers]
    data = TrainData(
        _encode(config, tokenizer, template, rows, "train"),
        max_length=config.data.max_length,
        batch_size=config.train.batch_size,
        packing=config.data.packing,
        seed=config.train.seed,
        steps=config.train.steps,
        epochs=config.train.epochs,
    )
    if config.optimizer.warmup_steps >= data.total_steps:
        _log.warning(
            "optimizer.warmup_steps is %d, the whole run %d steps: the learning rate never reaches %g.",
            config.optimizer.warmup_steps,
            data.total_steps,
            config.optimizer.learning_rate,
        )
    adapter = adapter_sha256(config.model.lora.path) if config.model.lora.path else ""
    require_same(
        {
            "architecture (model.path)": config_to_hf(model),
            "tokenizer (model.path)": tokenizer.sha256,
            "adapter (model.lora.path)": adapter,
            "weights (model.path)": edges_of_weights(source),
            "wording of the template": template.sha256,
            "rows (data.path)": data.sha256,
            "held-out rows (data.path)": rows_sha256(held_out.rows),
            "number of steps": data.total_steps,
            "loss tokens in a sequence": data.budget,
        }
    )
    identity = Identity(
        base_weights=weights_sha256(source),
        tokenizer=tokenizer.sha256,
        template=template.sha256,
        data=data.sha256,
        model=config_to_hf(model),
        adapter=adapter,
    )
    evaluation = _evaluation(config, tokenizer, template, held_out)
    origin = read_origin(source)
    if config.model.lora.path:
        origin = with_adapter(origin, Path(config.model.lora.path))
    origin = tuned(origin, rows)
    if origin.credentialed:
        _log.warning(
            "Tuning on text under a data use agreement (%s): the run folder is made readable by its owner only, and an "
            "export of it is not pushed without --i_may_release.",
            ", ".join(origin.credentialed),
        )
    return Inputs(
        source=source,
        model=model,
        tokenizer=tokenizer,
        template=template,
        data=data,
        row_numbers=tuple(numbers),
        row_ids=tuple(row.id for row in rows),
        held_out=held_out,
        evaluation=evaluation,
        identity=identity,
        origin=origin,
    )


def _model_config(config: Config, source: Path) -> LlamaConfig:
    found = read_config(source, config.model.max_positions)
    if config.data.max_length > found.max_positions:
        raise UserError(
            f"data.max_length is {config.data.max_length}, but the model in {source} has {found.max_positions} "
            f"positions: set --config.data.max_length={found.max_positions}, or --config.model.max_positions="
            f"{config.data.max_length} to extrapolate."
        )
    return found


def _evaluation(config: Config, tokenizer: Tokenizer, template: Template, held_out: HeldOut) -> list[Batch]:
    """Returns the batches of evaluation.max_rows held-out rows, the same ones in every run."""
    if not config.evaluation.every_steps or not held_out.rows:
        return []
    drawn = order(len(held_out.rows), seed=0, epoch=0)[: config.evaluation.max_rows]
    rows = [held_out.rows[i] for i in sorted(drawn)]
    micro = config.train.batch_size // config.train.accumulation
    encoded = _encode(config, tokenizer, template, rows, held_out.split)
    return evaluation_batches(encoded, config.data.max_length, micro)


def _encode(config: Config, tokenizer: Tokenizer, template: Template, rows: list[Row], split: str) -> EncodedRows:
    encoded, report = encode_cached(
        tokenizer,
        template,
        rows,
        folder=Path(config.data.cache_dir) if config.data.cache_dir else default_folder(),
        max_length=config.data.max_length,
        overlong=config.data.overlong,
        decision_weight=config.train.decision_weight,
    )
    if report.dropped or report.truncated:
        _log.warning(
            "%s: %d of %d rows are longer than %d tokens (the longest %d): %d dropped, %d cut.",
            split,
            report.dropped + report.truncated,
            report.rows,
            config.data.max_length,
            report.longest,
            report.dropped,
            report.truncated,
        )
    for source, count in report.unknown_sources:
        _log.warning(
            "%s: unknown source '%s' (%d rows): trained on as it is; it cannot be scored by a task, and "
            "train.decision_weight has no effect on it.",
            split,
            source or "(blank)",
            count,
        )
    if report.undecided:
        _log.warning(
            "%s: %d rows have an output that their source's task would not write: train.decision_weight has no effect "
            "on them.",
            split,
            report.undecided,
        )
    return encoded
