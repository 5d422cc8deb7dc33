"""A tiny seeded model with its own tokenizer, rows for it, and a configuration that trains in seconds."""

import dataclasses
import io
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medtune_jax.config import Config, MeshConfig
from medtune_jax.config_values import from_dict, get, leaves
from medtune_jax.convert.hf_export import export_params
from medtune_jax.data.encode import encode_rows
from medtune_jax.data.loader import Batch, TrainData
from medtune_jax.data.prompts import get_template
from medtune_jax.data.tokenizer import Tokenizer, load_tokenizer
from medtune_jax.model.llama import LlamaConfig, Params, init_params, param_shardings
from medtune_jax.sharding import make_mesh
from medtune_jax.tasks.rows import Row, write_rows
from medtune_jax.train.feed import put
from medtune_jax.train.optimizer import Optimizer, make_optimizer
from medtune_jax.train.state import TrainState, init_state
from medtune_jax.train.step import make_train_step

VOCAB = 340
MODEL = LlamaConfig(
    vocab_size=VOCAB,  # padded to 384
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=160,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    initializer_range=0.1,
)
# Every dimension that a mesh axis splits is a multiple of 8.
GRID_MODEL = dataclasses.replace(MODEL, hidden_size=64, intermediate_size=64, num_heads=8, num_kv_heads=8)

_WORDS = ("breast", "ovarian", "colon", "cancer", "fever", "in", "of", "patients", "with", "gene", "mutations", "and")
_DISEASES = {"cancer": "B", "fever": "B"}


def ner_rows(count: int, seed: int) -> list[Row]:
    """Returns NER rows of 3 to 9 words, in the form of the registry's sample-disease."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        words = [draw.choice(_WORDS) for _ in range(draw.randint(3, 9))]
        output = "\n".join(f"{word} : {_DISEASES.get(word, 'O')}" for word in words)
        rows.append(Row("Tag each word.", " ".join(words), output, "sample-disease", id=f"s{index}"))
    return rows


def write_tokenizer(folder: Path, vocab_size: int = VOCAB) -> Tokenizer:
    """Trains a sentencepiece model shaped as Llama 2's on a few rows' text."""
    import sentencepiece

    template = get_template("medtuned_train")
    text = [template.prompt(row.instruction, row.input) + template.completion(row.output) for row in ner_rows(20, 9)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(text).split("\n")),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return load_tokenizer(folder)


def write_model(folder: Path, config: LlamaConfig = MODEL) -> Path:
    """Writes a Hugging Face directory with random weights."""
    tokenizer = write_tokenizer(folder.with_name(folder.name + "_tokenizer"))
    export_params(init_params(jax.random.key(7), config), config, folder, tokenizer=tokenizer)
    return folder


def write_data(folder: Path, train: int = 30, validation: int = 6) -> Path:
    folder.mkdir(parents=True)
    write_rows(folder / "train.parquet", ner_rows(train, 0))
    if validation:
        write_rows(folder / "validation.parquet", ner_rows(validation, 1))
    return folder


def settings(model: Path | str = "model", data: Path | str = "data", **changes: Any) -> Config:
    """Returns a small float32 run of 6 steps, 2 sequences of 160 positions each; changes as group__leaf=value."""
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(model), "remat": "none"},
        "data": {"path": str(data), "max_length": 160},
        "train": {"steps": 6, "batch_size": 2, "precision": "float32"},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "weight_decay": 0.1},
        "checkpoint": {"every_steps": 2},
        "evaluation": {"every_steps": 3},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    for name, value in changes.items():
        group, leaf = name.split("__")
        values.setdefault(group, {})[leaf] = value
    return from_dict(values)


def flags(config: Config, workdir: Path) -> list[str]:
    """Returns the command line `train ...` that says `config`, leaf by leaf where it differs from the default."""
    words = ["train", f"--workdir={workdir}"]
    for path, _, _ in leaves():
        value = get(config, path)
        if value != get(Config(), path):
            words.append(f"--config.{path}={','.join(value) if isinstance(value, tuple) else value}")
    return words


def tiny_data(tokenizer: Tokenizer, config: Config, count: int = 30) -> TrainData:
    """Returns the batches that `config` makes of `count` rows."""
    encoded, _ = encode_rows(
        tokenizer,
        get_template(config.data.template),
        ner_rows(count, 0),
        max_length=config.data.max_length,
        decision_weight=config.train.decision_weight,
    )
    return TrainData(
        encoded,
        max_length=config.data.max_length,
        batch_size=config.train.batch_size,
        packing=config.data.packing,
        seed=config.train.seed,
        steps=config.train.steps,
    )


def keep_gradients() -> Optimizer:
    """An optimizer that changes nothing and keeps the gradient as its state."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
    return Optimizer(
        optax.GradientTransformation(zeros, lambda grads, _, params: (zeros(params), grads)),
        optax.constant_schedule(0.0),
    )


def run_steps(
    config: Config,
    model: LlamaConfig,
    batches: list[Batch],
    *,
    mesh: MeshConfig | None = None,
    optimizer: Optimizer | None = None,
    params: Params | None = None,
) -> tuple[TrainState, list[dict[str, float]]]:
    """Does one update per batch from seeded parameters; returns the state and each update's metrics.

    mesh: over all fake devices; None = one device.
    """
    devices = jax.devices()[:1] if mesh is None else jax.devices()
    placed = make_mesh(mesh or MeshConfig(fsdp=1), devices)
    optimizer = optimizer or make_optimizer(config.optimizer, config.train.steps or len(batches))
    params = init_params(jax.random.key(7), model) if params is None else params
    with jax.set_mesh(placed):
        update: Any = make_train_step(config, model, optimizer, placed)
        params = jax.device_put(params, param_shardings(model, placed))
        state = init_state(params, config, model, optimizer, placed)
        seen = []
        for batch in batches:
            state, metrics = update(state, {}, put(batch, placed))
            seen.append({name: float(value) for name, value in metrics.items()})
        assert update._cache_size() == 1, "the second update compiled again"
    return state, seen


def distance(tree: Any, reference: Any) -> float:
    """Returns the largest relative L2 distance of any leaf from the reference's."""
    pairs = zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(jax.device_get(reference)), strict=True)
    return max(float(((a - b) ** 2).sum() ** 0.5 / max(1e-30, (b**2).sum() ** 0.5)) for a, b in pairs)
