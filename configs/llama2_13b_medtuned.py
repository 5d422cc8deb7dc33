"""Llama2-MedTuned-13B (arXiv 2401.00579): full instruction tuning of Llama-2 13B on the eleven sources of the paper.

    medtune train --config=llama2_13b_medtuned --workdir=runs/llama2_13b_medtuned \\
        --config.model.path=Llama-2-13b-chat-hf --config.data.path=hf://nlpie/Llama2-MedTuned-Instructions

Not run: it needs accelerators that this project was not built on. Compiled: tests/test_tpu_compile.py (slow tier) has
the TPU compiler make its step for v5e:8x8, 64 chips, 9.14 of 15.75 GiB on each (docs/memory.md).
Values without a comment are the paper's or its code's; what neither states is our assumption and says so.
"""

from medtune_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the experiment; model.path and data.path come from flags."""
    return Config(
        model=ModelConfig(remat="full"),  # our assumption: trades time for memory, not numbers
        data=DataConfig(
            template="medtuned_train",
            max_length=2048,  # our assumption (not stated); no row of the measured sources is longer
            packing=True,  # our assumption: theirs padded; the loss per document is the same
            overlong="drop",  # our assumption: counted in the log; theirs cut rows silently
        ),
        train=TrainConfig(
            epochs=3.0,
            batch_size=64,  # our assumption (not stated): packs of 2,048 positions, one per device of the mesh below
            seed=42,
            precision="bf16_compute",  # our assumption: theirs is fp16, which needs loss scaling
        ),
        optimizer=OptimizerConfig(  # AdamW
            learning_rate=2e-5,  # our assumption (not stated): the usual value for full tuning of this size
            warmup_steps=1000,
            schedule="linear",  # of their five DeepSpeed configs, those with WarmupDecayLR
            weight_decay=0.0,  # our assumption (not stated)
            clip_norm=1.0,  # our assumption: theirs says "auto", the trainer's default
        ),
        mesh=MeshConfig(fsdp=-1),  # our assumption (their GPUs are not stated): all devices; 64 chips, v5e:8x8
    )
