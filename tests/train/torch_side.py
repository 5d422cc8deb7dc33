"""The same model and rows on torch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from medtune_jax.data.loader import Batch

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


def torch_model(folder: Path) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def documents(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (tokens [1, S_i], weights of the targets tokens[1:]) of each document of a batch."""
    for b in range(len(batch["tokens"])):
        weights = np.zeros(batch["tokens"].shape[1], np.float32)
        used = batch["weights"][b] > 0
        weights[batch["loss_positions"][b][used]] = batch["weights"][b][used]
        for segment in range(1, batch["segment_ids"][b].max() + 1):
            here = np.flatnonzero(batch["segment_ids"][b] == segment)
            yield torch.from_numpy(batch["tokens"][b][here])[None].long(), torch.from_numpy(weights[here][:-1])


def sums_of_losses(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (weighted sum of the losses, sum of the weights) of a batch, each document alone."""
    total, weight = torch.zeros(()), torch.zeros(())
    for tokens, weights in documents(batch):
        logits = model(tokens).logits[0, :-1]
        total = total + (torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none") * weights).sum()
        weight = weight + weights.sum()
    return total, weight
