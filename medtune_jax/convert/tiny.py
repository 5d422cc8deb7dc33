"""A tiny random Llama and its own tokenizer, in Hugging Face form, for the quickstart and for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax

from medtune_jax.convert.hf_export import export_params
from medtune_jax.data.tokenizer import load_tokenizer
from medtune_jax.model.llama import LlamaConfig, init_params

VOCAB_SIZE = 768  # the 256 bytes, the three control pieces, and some 500 pieces of words


def write_tiny_model(folder: Path, texts: Iterable[str], *, seed: int = 0, max_positions: int = 512) -> LlamaConfig:
    """Writes a seeded random Llama (4 layers, 128 wide, grouped key-value heads) and a tokenizer trained on `texts`.

    Args:
      folder: absent, or empty.
      texts: documents; a line break in them is never part of a piece, so that it is encoded as its byte.

    Raises:
      UserError: the folder holds something.
    """
    with tempfile.TemporaryDirectory() as spool:
        train_tokenizer(Path(spool), texts)
        tokenizer = load_tokenizer(spool)
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            max_positions=max_positions,
            rms_norm_eps=1e-5,
            rope_theta=10_000.0,
            initializer_range=0.06,  # the usual 0.02 is for wide models; at this width it takes twice the steps
        )
        export_params(init_params(jax.random.key(seed), config), config, folder, tokenizer=tokenizer)
    return config


def train_tokenizer(folder: Path, texts: Iterable[str], *, vocab_size: int = VOCAB_SIZE) -> None:
    """Writes tokenizer.model into `folder`: sentencepiece BPE with byte fallback; unk 0, bos 1, eos 2 as in Llama 2."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # few texts may not hold as many pieces
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
