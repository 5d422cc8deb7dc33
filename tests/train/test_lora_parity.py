"""Adapters beside PEFT on torch: the same adapter, its gradients, and twenty updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lora_run import lora_settings, random_adapter, run_lora_steps
from peft import PeftModel
from tiny_run import MODEL, distance, keep_gradients, tiny_data
from torch_side import documents, sums_of_losses, torch_model
from transformers import get_cosine_schedule_with_warmup

from medtune_jax.convert.hf_import import load_params
from medtune_jax.convert.peft_adapter import export_adapter
from medtune_jax.model.llama import Params, forward, logits
from medtune_jax.model.lora import PROJECTIONS, LoraAdapter

KINDS = {
    "all projections": {"optimizer__clip_norm": 0.5},
    "two projections with rsLoRA": {"targets": ["v_proj", "down_proj"], "rslora": True, "rank": 3, "alpha": 2.0},
}


@pytest.fixture(scope="module", params=KINDS)
def case(request, model_folder, tokenizer, tmp_path_factory) -> Any:
    """(configuration, adapter, base weights, the same adapter on PEFT's model, one batch per update)."""
    config = lora_settings(
        train__steps=20,
        train__batch_size=4,
        train__decision_weight=2.0,
        optimizer__warmup_steps=4,
        **KINDS[request.param],
    )
    data = tiny_data(tokenizer, config)
    adapter = random_adapter(config, MODEL)
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    export_adapter(adapter, config.model.lora, MODEL, folder, base=str(model_folder))
    theirs = PeftModel.from_pretrained(torch_model(model_folder), str(folder), is_trainable=True)
    base = load_params(model_folder, MODEL, jnp.float32)
    return config, adapter, base, theirs, [data.batch(step) for step in range(20)]


def as_tree(tensors: dict[str, Any], like: Params) -> Params:
    """PEFT's names to the tree of model/lora.py."""

    def leaf(path: Any, _: Any) -> np.ndarray:
        name, part = path[-2].key, path[-1].key
        module = PROJECTIONS[name].hf.removesuffix(".weight")
        names = [f"base_model.model.{module.format(l=layer)}.lora_{part.upper()}.default.weight" for layer in range(2)]
        return np.stack([tensors[name].detach().numpy().T for name in names])

    return jax.tree.map_with_path(leaf, like)


def assert_close(ours: Params, theirs: Params, tolerance: float) -> None:
    for (path, leaf), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert distance(leaf, other) < tolerance, jax.tree_util.keystr(path)


def test_the_same_adapter_gives_pefts_logits(case):
    config, adapter, base, theirs, batches = case
    held = LoraAdapter(adapter, config.model.lora)
    with torch.no_grad():
        tokens, _ = next(documents(batches[0]))
        expected = theirs.eval()(tokens).logits.numpy()
        with theirs.disable_adapter():
            plain = theirs(tokens).logits.numpy()
    positions = jnp.arange(tokens.shape[1])[None]
    hidden = forward(base, MODEL, jnp.asarray(tokens.numpy(), jnp.int32), positions_BS=positions, adapter=held)
    ours = logits(base, MODEL, hidden)[..., : MODEL.vocab_size]
    assert distance(plain, expected) > 0.01
    assert distance(ours, expected) < 1e-5


def test_gradients_and_twenty_updates_follow_peft(case):
    """AdamW of torch with weight decay on a and b (as the Hugging Face Trainer has it), warm-up, cosine, clipping.

    Losses within 1e-5 (relative), gradients within 1e-5 and parameters within 1e-4 (relative L2 per tensor).
    """
    config, adapter, base, theirs, batches = case
    theirs.train()  # dropout is 0
    total, weight = sums_of_losses(theirs, batches[0])
    (total / weight).backward()
    grads = as_tree({name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}, adapter)
    state, _ = run_lora_steps(config, MODEL, batches[:1], base=base, adapter=adapter, optimizer=keep_gradients())
    assert_close(state.opt_state, grads, 1e-5)

    state, metrics = run_lora_steps(config, MODEL, batches, base=base, adapter=adapter)
    losses = torch_updates(theirs, batches, config.optimizer)
    np.testing.assert_allclose([m["weighted_loss"] for m in metrics], losses, rtol=1e-5)
    assert distance(adapter, state.params) > 0.1  # they moved
    assert_close(state.params, as_tree(dict(theirs.named_parameters()), adapter), 1e-4)


def torch_updates(model: torch.nn.Module, batches: list[Any], optimizer: Any) -> list[float]:
    """One update of the adapters per batch; returns each update's loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, optimizer.learning_rate, weight_decay=optimizer.weight_decay)
    schedule = get_cosine_schedule_with_warmup(adamw, optimizer.warmup_steps, len(batches))
    losses = []
    for batch in batches:
        adamw.zero_grad()
        total, weight = sums_of_losses(model, batch)
        loss = total / weight
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, optimizer.clip_norm)
        adamw.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
