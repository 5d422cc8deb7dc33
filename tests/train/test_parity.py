"""Loss, gradients and twenty updates beside transformers on torch."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from tiny_run import MODEL, distance, keep_gradients, run_steps, settings, tiny_data
from torch_side import documents, torch_model

from medtune_jax.convert.hf_import import load_params, read_config
from medtune_jax.model.llama import Params, build_params


def as_tree(tensors: dict[str, Any]) -> Params:
    """Hugging Face's names to the tree of model/llama.py, vocabulary padding zero."""

    def leaf(row):
        names = [row.hf.format(l=layer) for layer in range(MODEL.num_layers)] if "{l}" in row.hf else [row.hf]
        arrays = [tensors[name].detach().numpy() for name in names]
        arrays = [array.T if row.transpose else array for array in arrays]
        array = np.stack(arrays) if "{l}" in row.hf else arrays[0]
        return np.pad(array, [(0, want - have) for want, have in zip(row.shape(MODEL), array.shape, strict=True)])

    return build_params(MODEL, leaf)


@pytest.mark.parametrize("decision_weight", [1.0, 5.0])
def test_a_packed_step_has_torchs_loss_and_gradients(model_folder, tokenizer, decision_weight):
    config = settings(train__decision_weight=decision_weight)
    batch = tiny_data(tokenizer, config).batch(1)
    assert batch["segment_ids"].max() >= 2
    params = load_params(model_folder, read_config(model_folder), np.float32)
    state, [metrics] = run_steps(config, MODEL, [batch], optimizer=keep_gradients(), params=params)

    model = torch_model(model_folder)
    weighted, plain, count, weight = torch.zeros(()), 0.0, 0, 0.0
    for tokens, weights in documents(batch):  # each document alone
        losses = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="none")
        weighted = weighted + (losses * weights).sum()
        plain += float((losses * (weights > 0)).sum().detach())
        count += int((weights > 0).sum())
        weight += float(weights.sum())
    (weighted / weight).backward()
    assert metrics["loss_tokens"] == count
    assert metrics["loss"] == pytest.approx(plain / count, rel=1e-5)
    assert metrics["weighted_loss"] == pytest.approx(float(weighted.detach()) / weight, rel=1e-5)
    theirs = as_tree({name: parameter.grad for name, parameter in model.named_parameters()})
    for (path, ours), grad in zip(jax.tree.leaves_with_path(state.opt_state), jax.tree.leaves(theirs), strict=True):
        assert distance(ours, grad) < 1e-5, jax.tree_util.keystr(path)


def test_twenty_steps_follow_the_hugging_face_trainer(model_folder, tokenizer, tmp_path):
    """Same rows in the same order, padded on both sides; AdamW, warm-up, cosine, decay and clipping.

    Tolerances: losses within 1e-5 (relative), parameters within 1e-4 (relative L2 per tensor): Adam divides by the root
    of its second moment, which enlarges rounding where gradients are small.
    """
    config = settings(
        data__packing=False, train__steps=20, train__batch_size=4, optimizer__warmup_steps=4, optimizer__clip_norm=0.5
    )
    data = tiny_data(tokenizer, config)
    batches = [data.batch(step) for step in range(20)]
    assert data.steps_in_epoch(0) < 20  # goes into the next epoch
    params = load_params(model_folder, read_config(model_folder), np.float32)
    state, metrics = run_steps(config, MODEL, batches, params=params)

    theirs, losses = hugging_face_trainer(model_folder, batches, tmp_path)
    np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=1e-5)
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert max(m["grad_norm"] for m in metrics) > 0.5  # clipping took part
    for (path, ours), leaf in zip(jax.tree.leaves_with_path(state.params), jax.tree.leaves(theirs), strict=True):
        assert distance(ours, leaf) < 1e-4, jax.tree_util.keystr(path)


def hugging_face_trainer(folder, batches, output) -> tuple[Params, list[float]]:
    """Trains with transformers.Trainer on the rows of `batches`; returns the final parameters and each step's loss."""
    examples, per_step = [], []
    for batch in batches:
        per_step.append(0)
        for tokens, weights in documents(batch):
            labels = torch.where(torch.cat([torch.zeros(1), weights]) > 0, tokens[0], -100)
            examples.append({"input_ids": tokens[0], "labels": labels})
            per_step[-1] += 1
    dataset: Any = examples
    seen: list[float] = []

    class Ordered(transformers.Trainer):
        def get_train_dataloader(self):
            groups, at = [], 0
            for size in per_step:
                groups.append(list(range(at, at + size)))
                at += size
            return torch.utils.data.DataLoader(dataset, batch_sampler=groups, collate_fn=pad)

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            seen.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        max_steps=len(batches),
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=4,
        weight_decay=0.1,
        max_grad_norm=0.5,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        optim="adamw_torch",
    )
    model = torch_model(folder)
    Ordered(model=model, args=arguments, train_dataset=dataset).train()
    return as_tree(dict(model.named_parameters())), seen


def pad(examples):
    def joined(name: str, value: int) -> torch.Tensor:
        rows = [example[name] for example in examples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(e["input_ids"]) for e in examples], batch_first=True)
    return {"input_ids": joined("input_ids", 0), "labels": joined("labels", -100), "attention_mask": mask}
