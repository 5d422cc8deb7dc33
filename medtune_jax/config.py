"""The typed configuration: frozen dataclasses, the only schema of a run.

Every field says whether it is `math` (it changes what is computed: resuming with another value is refused) or `free`
(where, how often and how it is laid out). configs/*.py build a `Config`; `--config.group.leaf=value` overrides a leaf.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from medtune_jax.errors import UserError, did_you_mean


def math(default: Any) -> Any:
    """A field that decides the numbers."""
    return field(default=default, metadata={"kind": "math"})


def free(default: Any) -> Any:
    """A field that may change between a run and its resumption."""
    return field(default=default, metadata={"kind": "free"})


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is run."""

    path: str = free("")  # Hugging Face directory; its content is held by hash, not by path
    attention: Literal["xla"] = math("xla")
    remat: Literal["none", "full"] = free("full")  # recompute each layer's activations in the backward pass
    max_positions: int | None = math(None)  # raises max_position_embeddings (warns: extrapolates)


@dataclass(frozen=True)
class DataConfig:
    """Instruction rows and how they become batches."""

    path: str = free("")  # folder with train.parquet, ..., or hf://owner/name; its rows are held by hash
    sources: tuple[str, ...] = math(())  # empty = all
    template: Literal["medtuned_train", "medtuned_eval", "alpaca"] = math("medtuned_train")
    max_length: int = math(1024)  # positions per training sequence
    packing: bool = math(True)
    overlong: Literal["error", "drop", "truncate_input"] = math("error")


@dataclass(frozen=True)
class TrainConfig:
    """Exactly one of steps and epochs is set."""

    steps: int | None = math(None)
    epochs: float | None = math(None)
    batch_size: int = math(8)  # sequences (packs, or rows without packing) per update, accumulation included
    accumulation: int = math(1)  # micro-batches per update; divides batch_size
    seed: int = math(0)
    precision: Literal["bf16_compute", "float32"] = math("bf16_compute")
    decision_weight: float = math(1.0)  # decision tokens against echoed ones in the loss; 1 = the papers


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then cosine or linear decay to end_factor * learning_rate."""

    learning_rate: float = math(2e-5)
    warmup_steps: int = math(0)
    schedule: Literal["cosine", "linear", "constant"] = math("cosine")
    end_factor: float = math(0.0)
    weight_decay: float = math(0.0)  # on matrices only
    b1: float = math(0.9)
    b2: float = math(0.999)
    eps: float = math(1e-8)
    clip_norm: float | None = math(1.0)
    first_moment_dtype: Literal["float32", "bfloat16"] = math("float32")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; -1 once = all that remain."""

    dcn_data: int = free(1)
    data: int = free(1)
    fsdp: int = free(-1)
    tensor: int = free(1)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = free(500)
    keep: int = free(2)


@dataclass(frozen=True)
class EvaluationConfig:
    """Loss on held-out rows during training."""

    every_steps: int = free(500)  # 0 = never
    split: str = free("validation")
    max_rows: int = free(512)


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = free(10)
    tensorboard: bool = free(True)


@dataclass(frozen=True)
class Config:
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def validate(self) -> Config:
        """Returns self; raises UserError where values contradict one another or are out of range."""
        train = self.train
        if (train.steps is None) == (train.epochs is None):
            raise UserError("Set exactly one of --config.train.steps and --config.train.epochs.")
        for name, value in (("steps", train.steps), ("epochs", train.epochs)):
            if value is not None and value <= 0:
                raise UserError(f"train.{name} is {value}; it must be above 0.")
        if train.accumulation < 1 or train.batch_size < 1 or train.batch_size % train.accumulation:
            raise UserError(
                f"train.accumulation ({train.accumulation}) must divide train.batch_size ({train.batch_size}): "
                "batch_size counts the sequences of one update, accumulation included."
            )
        if not self.model.path:
            raise UserError("No model: give --config.model.path, a Hugging Face directory.")
        if not self.data.path:
            raise UserError("No data: give --config.data.path, a folder written by `medtune prepare`.")
        if self.data.max_length < 2:
            raise UserError(f"data.max_length is {self.data.max_length}; a sequence needs at least 2 positions.")
        self._check_ranges()
        return self

    def _check_ranges(self) -> None:
        optimizer, inf = self.optimizer, float("inf")
        for name, value, holds, rule in (
            ("train.decision_weight", self.train.decision_weight, 0 < self.train.decision_weight < inf, "above 0"),
            ("optimizer.learning_rate", optimizer.learning_rate, 0 < optimizer.learning_rate < inf, "above 0"),
            ("optimizer.warmup_steps", optimizer.warmup_steps, optimizer.warmup_steps >= 0, "0 or more"),
            ("optimizer.end_factor", optimizer.end_factor, 0 <= optimizer.end_factor < inf, "0 or more"),
            ("optimizer.b1", optimizer.b1, 0 <= optimizer.b1 < 1, "in [0, 1)"),
            ("optimizer.b2", optimizer.b2, 0 <= optimizer.b2 < 1, "in [0, 1)"),
            ("optimizer.eps", optimizer.eps, 0 < optimizer.eps < inf, "above 0"),
            (
                "optimizer.clip_norm",
                optimizer.clip_norm,
                optimizer.clip_norm is None or optimizer.clip_norm > 0,
                "above 0, or none for no clipping",
            ),
            ("checkpoint.every_steps", self.checkpoint.every_steps, self.checkpoint.every_steps >= 1, "1 or more"),
            ("checkpoint.keep", self.checkpoint.keep, self.checkpoint.keep >= 1, "1 or more"),
            (
                "evaluation.every_steps",
                self.evaluation.every_steps,
                self.evaluation.every_steps >= 0,
                "0 (never) or more",
            ),
            ("evaluation.max_rows", self.evaluation.max_rows, self.evaluation.max_rows >= 1, "1 or more"),
            ("log.every_steps", self.log.every_steps, self.log.every_steps >= 1, "1 or more"),
        ):
            if not holds:
                raise UserError(f"{name} is {value}; it must be {rule}.")


def groups() -> dict[str, type]:
    """Returns group name -> its dataclass, in the order of `Config`."""
    return typing.get_type_hints(Config)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Returns nested plain dicts, JSON-ready (tuples become lists)."""
    return {
        group: {key: list(v) if isinstance(v, tuple) else v for key, v in leaves.items()}
        for group, leaves in dataclasses.asdict(config).items()
    }


def from_dict(values: dict[str, dict[str, Any]]) -> Config:
    """Builds a Config from nested dicts; raises UserError on an unknown group or key or a value of the wrong type."""
    built = {}
    for group, leaves in values.items():
        if group not in groups():
            raise UserError(f"Unknown config group '{group}'.{did_you_mean(group, groups())}")
        kind = groups()[group]
        hints = typing.get_type_hints(kind)
        checked = {}
        for key, value in leaves.items():
            if key not in hints:
                raise UserError(f"Unknown config key '{group}.{key}'.{did_you_mean(key, hints)}")
            checked[key] = _checked(f"{group}.{key}", value, hints[key])
        built[group] = kind(**checked)
    return Config(**built)


def override(config: Config, overrides: dict[str, str]) -> Config:
    """Applies {"group.leaf": text} as typed on a command line ("none" clears an optional, commas separate a tuple)."""
    values = to_dict(config)
    for path, text in overrides.items():
        group, _, key = path.partition(".")
        if group not in groups():
            raise UserError(f"Unknown config group '{group}' in --config.{path}.{did_you_mean(group, groups())}")
        hints = typing.get_type_hints(groups()[group])
        if key not in hints:
            raise UserError(f"Unknown config key '{path}' in --config.{path}.{did_you_mean(key, hints)}")
        values[group][key] = _from_text(path, text, hints[key])
    return from_dict(values)


def changed_math(old: Config, new: Config) -> list[str]:
    """Returns one line per `math` field whose value differs: 'train.seed: 0 -> 1'."""
    lines = []
    for group, kind in groups().items():
        for leaf in dataclasses.fields(kind):
            before, after = getattr(getattr(old, group), leaf.name), getattr(getattr(new, group), leaf.name)
            if leaf.metadata["kind"] == "math" and before != after:
                lines.append(f"{group}.{leaf.name}: {before} -> {after}")
    return lines


def _options(hint: Any) -> tuple[Any, bool]:
    """Returns (the type without None, whether None is allowed)."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        (inner,) = (a for a in arguments if a is not type(None))
        return inner, True
    return hint, False


def _checked(path: str, value: Any, hint: Any) -> Any:
    inner, optional = _options(hint)
    if value is None and optional:
        return None
    if typing.get_origin(inner) is Literal:
        choices = typing.get_args(inner)
        if value not in choices:
            raise UserError(f"{path} is {value!r}.{did_you_mean(str(value), map(str, choices))}")
        return value
    if typing.get_origin(inner) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            return tuple(value)
    elif inner is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, inner) and not (inner is int and isinstance(value, bool)):
        return value
    name = "tuple of strings" if typing.get_origin(inner) is tuple else inner.__name__
    raise UserError(f"{path} is {value!r}; expected {name}{' or none' if optional else ''}.")


def _from_text(path: str, text: str, hint: Any) -> Any:
    inner, optional = _options(hint)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(inner) is tuple:
        return tuple(part for part in text.split(",") if part)
    if inner is bool:
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise UserError(f"{path}={text}: expected true or false.")
    if inner in (int, float):
        try:
            return inner(text)
        except ValueError:
            raise UserError(f"{path}={text}: expected {inner.__name__}.") from None
    return text
