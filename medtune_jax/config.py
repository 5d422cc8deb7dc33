"""The typed configuration: frozen dataclasses, the only schema of a run.

Every field says whether it is `math` (it changes what is computed: resuming with another value is refused) or `free`
(where, how often and how it is laid out; and what is a bad step and becomes of it, so that a run that met one can go
on). configs/*.py build a `Config`; `--config.group.leaf=value` overrides a leaf.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from medtune_jax.errors import UserError, did_you_mean

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


REPORTED = ("test", "test2", "test3")  # splits whose scores are reported: nothing may be chosen by them


def math(default: Any) -> Any:
    """A field that decides the numbers."""
    return field(default=default, metadata={"kind": "math"})


def free(default: Any) -> Any:
    """A field that may change between a run and its resumption."""
    return field(default=default, metadata={"kind": "free"})


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021) on a frozen base, in place of tuning all weights. Names are PEFT's."""

    rank: int = math(0)  # 0 = all weights are tuned
    alpha: float = math(16.0)  # the update is scaled by alpha / rank
    dropout: float = math(0.0)  # on the adapters' inputs
    targets: tuple[str, ...] = math(("all",))  # or some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj
    rslora: bool = math(False)  # alpha / sqrt(rank) instead (Kalajdzievski 2023)
    base: Literal["compute", "int8", "nf4"] = math("compute")  # how the frozen projections are stored
    path: str = free("")  # PEFT adapter to go on from, of the settings above; its content is held by hash

    def __post_init__(self) -> None:
        """Gives the same targets one form, however they are listed: what is computed is compared by value."""
        names = set(self.targets)
        if "all" in names or names.issuperset(LORA_TARGETS):
            names = (names - set(LORA_TARGETS)) | {"all"}
        order = ("all", *LORA_TARGETS)
        known = tuple(name for name in order if name in names)
        unknown = tuple(sorted(names.difference(order)))  # which `check` names
        object.__setattr__(self, "targets", known + unknown)

    def check(self) -> None:
        """Raises UserError where a value is out of range, or is given though there are no adapters."""
        if self.rank == 0:
            for key in fields(self):
                if getattr(self, key.name) != key.default:
                    raise UserError(
                        f"model.lora.{key.name} is {getattr(self, key.name)}, but model.lora.rank is 0: all weights "
                        f"are tuned, without adapters. Set --config.model.lora.rank, or leave {key.name} out."
                    )
            return
        for name, value, holds, rule in (
            ("rank", self.rank, self.rank > 0, "0 (all weights are tuned) or more"),
            ("alpha", self.alpha, 0 < self.alpha < float("inf"), "above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)"),
            ("targets", "empty", bool(self.targets), f"all, or some of {', '.join(LORA_TARGETS)}"),
        ):
            if not holds:
                raise UserError(f"model.lora.{name} is {value}; it must be {rule}.")
        known = (*LORA_TARGETS, "all")
        for name in self.targets:
            if name not in known:
                raise UserError(f"model.lora.targets: no projection is called '{name}'.{did_you_mean(name, known)}")


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoint, and how it is run."""

    path: str = free("")  # Hugging Face directory; its content is held by hash, not by path
    attention: Literal["auto", "xla", "splash", "cudnn", "triton"] = free("auto")  # auto: by platform
    remat: Literal["none", "dots", "offload", "full"] = free("full")  # what of each layer the backward pass recomputes
    max_positions: int | None = math(None)  # raises max_position_embeddings (warns: extrapolates)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True)
class DataConfig:
    """Instruction rows and how they become batches."""

    path: str = free("")  # folder with train.parquet, ..., or hf://owner/name; its rows are held by hash
    sources: tuple[str, ...] = math(())  # empty = all
    template: Literal["medtuned_train", "medtuned_eval", "alpaca"] = math("medtuned_train")
    max_length: int = math(1024)  # positions per training sequence
    packing: bool = math(True)
    overlong: Literal["error", "drop", "truncate_input"] = math("error")
    cache_dir: str = free("")  # where many rows are kept encoded; "" = ~/.cache/medtune_jax/rows


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
    bad_step: Literal["stop", "skip"] = free("stop")  # at a loss or gradient that is not finite, or a spike
    spike_factor: float | None = free(10.0)  # spike: loss or gradient norm above this x its running mean; none = never


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
    # moments wait in pinned host memory while gradients are computed; for the update all are on the device again, so
    # the peak is lower only where activations make it, and never below parameters, gradients and moments
    offload: bool = free(False)


@dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; -1 once = all that remain."""

    dcn_data: int = free(1)
    data: int = free(1)
    fsdp: int = free(-1)
    tensor: int = free(1)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    every_steps: int = free(500)
    keep: int = free(2)
    best: str = free("")  # also keep the parameters that score best: eval_loss, samples (mean), or a source's name


@dataclass(frozen=True)
class EvaluationConfig:
    """Loss on held-out rows, and answers to some of them, during training."""

    every_steps: int = free(500)  # the loss; 0 = never
    split: str = free("validation")
    holdout: float = math(0.0)  # hold training rows out instead: so many, or a share below 1; 0 = use the split
    max_rows: int = free(512)  # for the loss
    samples_every_steps: int = free(0)  # answer held-out rows and score the answers; 0 = never
    sample_rows: int = free(64)  # in all, dealt evenly to the sources


@dataclass(frozen=True)
class LogConfig:
    """What a run tells of itself."""

    every_steps: int = free(10)
    profile_start: int = free(10)  # updates of a call to `train` before its profiler trace begins
    profile_steps: int = free(0)  # updates traced; 0 = none
    tensorboard: bool = free(True)
    wandb: str = free("")  # project of Weights & Biases that is given the numbers and this configuration; "" = none


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
        evaluation = self.evaluation
        if evaluation.holdout and not (evaluation.every_steps or evaluation.samples_every_steps):
            raise UserError(
                f"evaluation.holdout={evaluation.holdout:g} keeps rows from training, but nothing is measured on them: "
                "set --config.evaluation.every_steps or samples_every_steps, or leave holdout out."
            )
        self._check_best()
        self.model.lora.check()
        return self

    def _check_best(self) -> None:
        best, evaluation = self.checkpoint.best, self.evaluation
        if not best:
            return
        needs = "every_steps" if best == "eval_loss" else "samples_every_steps"
        if not getattr(evaluation, needs):
            raise UserError(
                f"checkpoint.best={best} is measured every evaluation.{needs}, which is 0, never: set "
                f"--config.evaluation.{needs}."
            )
        if not evaluation.holdout and evaluation.split in REPORTED:
            raise UserError(
                f"checkpoint.best={best} would choose the parameters by evaluation.split={evaluation.split}, a split "
                "whose scores are reported: a score by which its model was chosen says nothing of other text. Choose "
                "by --config.evaluation.split=validation, or by training rows held out: --config.evaluation.holdout=N."
            )

    def _check_ranges(self) -> None:
        optimizer, inf = self.optimizer, float("inf")
        for name, value, holds, rule in (
            ("train.decision_weight", self.train.decision_weight, 0 < self.train.decision_weight < inf, "above 0"),
            (
                "train.spike_factor",
                self.train.spike_factor,
                self.train.spike_factor is None or 1 < self.train.spike_factor < inf,
                "above 1, or none",
            ),
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
            (
                "evaluation.holdout",
                self.evaluation.holdout,
                (holdout := self.evaluation.holdout) >= 0 and (holdout < 1 or holdout.is_integer()),
                "a number of rows, or a share in [0, 1)",
            ),
            (
                "evaluation.samples_every_steps",
                self.evaluation.samples_every_steps,
                self.evaluation.samples_every_steps >= 0,
                "0 (never) or more",
            ),
            ("evaluation.sample_rows", self.evaluation.sample_rows, self.evaluation.sample_rows >= 1, "1 or more"),
            ("log.profile_start", self.log.profile_start, self.log.profile_start >= 0, "0 or more"),
            ("log.profile_steps", self.log.profile_steps, self.log.profile_steps >= 0, "0 (none) or more"),
            ("log.every_steps", self.log.every_steps, self.log.every_steps >= 1, "1 or more"),
        ):
            if not holds:
                raise UserError(f"{name} is {value}; it must be {rule}.")
