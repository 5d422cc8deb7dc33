"""Tiny random models and tokenizers of every awkward kind, and the slow references they are held against."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medtune_jax.data.encoded import Encoded
from medtune_jax.data.prompts import Template
from medtune_jax.data.tokenizer import Tokenizer
from medtune_jax.generate.engine import Engine
from medtune_jax.generate.template import TemplateRequest
from medtune_jax.model.llama import LlamaConfig, Params, forward, init_params, logits
from medtune_jax.tasks.base import Allowed

ALPHABET = "".join(map(chr, range(32, 127))) + "\n"


class LongestMatch(Tokenizer):
    """Reads from left to right and always takes the longest piece: where one piece ends moves all that follow."""

    def __init__(self, pieces: Iterable[str] = ()):
        self._pieces = [*ALPHABET, *sorted(set(pieces) - set(ALPHABET))]
        self._ids = {piece: index + 3 for index, piece in enumerate(self._pieces)}
        self._longest = max(map(len, self._pieces))
        self.unk_id, self.bos_id, self.eos_id = 0, 1, 2
        self.vocab_size = len(self._pieces) + 3
        self.sha256 = ""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [ids for ids, _ in self.encode_batch_with_offsets(texts)]

    def encode_batch_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = []
        for text in texts:
            ids, spans, at = [], [], 0
            while at < len(text):
                piece = next(
                    text[at : at + size] for size in range(self._longest, 0, -1) if text[at : at + size] in self._ids
                )
                ids.append(self._ids[piece])
                spans.append((at, at + len(piece)))
                at += len(piece)
            encoded.append((np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2)))
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._pieces[i - 3] for i in ids if i >= 3)

    def pieces(self) -> list[bytes | None]:
        return [None, None, None, *(piece.encode() for piece in self._pieces)]


def tiny_config(vocab_size: int, **changes: object) -> LlamaConfig:
    fields: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "initializer_range": 0.4,  # so that logits lie far apart and choices depend on the context
    }
    return LlamaConfig(**{**fields, **changes})  # type: ignore[arg-type]


def tiny_engine(tokenizer: Tokenizer, seed: int = 0, **changes: object) -> tuple[Engine, Params]:
    config = tiny_config(tokenizer.vocab_size, **changes)
    params = init_params(jax.random.key(seed), config)
    return Engine(params, config, tokenizer), params


@partial(jax.jit, static_argnames="config")
def _all_logits(params: Params, tokens_BS: jax.Array, *, config: LlamaConfig) -> jax.Array:
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    hidden = forward(params, config, tokens_BS, positions_BS=positions_BS)
    return logits(params, config, hidden)


def next_logits(params: Params, config: LlamaConfig, tokens: Sequence[int]) -> np.ndarray:
    """Returns float32 [V] behind `tokens`: one whole forward pass, no cache."""
    padded = np.zeros((1, -(-len(tokens) // 64) * 64), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_all_logits(params, padded, config=config)[0, len(tokens) - 1])


def allowed_outputs(allowed: Allowed) -> list[str]:
    """Returns every allowed output."""
    return [
        allowed.text(options)
        for options in itertools.product(*(slot.options for slot in allowed.slots))
        if all(map(allowed.permits, (None, *options), options))
    ]


def constrained_greedy(
    params: Params, config: LlamaConfig, tokenizer: Tokenizer, template: Template, request: TemplateRequest
) -> list[int]:
    """Token by token over the list of all canonical sequences; returns the tokens behind the prompt, EOS last."""
    prompt = template.prompt(request.instruction, request.input)
    outputs = allowed_outputs(request.allowed)
    sequences = [
        [tokenizer.bos_id, *tokenizer.encode(prompt + template.completion(output)), tokenizer.eos_id]
        for output in outputs
    ]
    alone = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    begin = min(
        next((i for i, (a, b) in enumerate(zip(alone, one, strict=False)) if a != b), len(alone)) for one in sequences
    )
    text = alone[:begin]
    while text[-1] != tokenizer.eos_id or len(text) == begin:
        children = sorted({one[len(text)] for one in sequences if one[: len(text)] == text})
        if len(children) > 1:
            behind = next_logits(params, config, text)
            children.sort(key=lambda token: -behind[token])  # stable: of equals the lowest id stays first
        text = [*text, children[0]]
    return text[begin:]


def learn_by_heart(config: LlamaConfig, rows: Sequence[Encoded], steps: int = 250) -> Params:
    """Fits a fresh model to a handful of rows."""
    length = max(len(row.tokens) for row in rows)
    tokens_BS = np.stack([np.pad(row.tokens, (0, length - len(row.tokens))) for row in rows])
    weights_BS = np.stack([np.pad(row.weights, (0, length - len(row.weights))) for row in rows])[:, 1:]
    optimizer = optax.adam(5e-3)

    def loss(params: Params) -> jax.Array:
        behind = _all_logits(params, tokens_BS, config=config)[:, :-1]
        return (optax.softmax_cross_entropy_with_integer_labels(behind, tokens_BS[:, 1:]) * weights_BS).mean()

    @jax.jit
    def step(state: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = init_params(jax.random.key(0), config)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params
