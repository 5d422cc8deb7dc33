"""BioInstruct (arXiv 2310.19975): LoRA on Llama-2 7B with the 25,005 instructions of bio-nlp-umass/bioinstruct.

    medtune train --config=llama2_7b_bioinstruct_lora --workdir=runs/bioinstruct_lora \\
        --config.model.path=Llama-2-7b-hf --config.data.path=rows/bioinstruct
    medtune export --run=runs/bioinstruct_lora --out=bioinstruct_adapter --adapter

rows/bioinstruct holds the instructions as `medtune prepare --sources=bioinstruct` writes them. The 13B model is the
same with another model.path.

Known of the paper: LoRA, Llama 1 and 2 of 7B and 13B, two A100. Its rank, alpha, dropout, projections, learning rate,
epochs, batch, length and template were not found, so every value below is our assumption (those of Alpaca-LoRA, as we
recall them, with packing), and the paper's scores are no expectation of this run. It was not run at this size.
"""

from medtune_jax.config import Config, DataConfig, LoraConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Returns the experiment, all of it our assumption; model.path and data.path come from flags."""
    return Config(
        model=ModelConfig(
            remat="full",
            lora=LoraConfig(rank=8, alpha=16.0, dropout=0.05, targets=("q_proj", "v_proj")),
        ),
        data=DataConfig(template="alpaca", max_length=512, packing=True, overlong="drop"),
        train=TrainConfig(
            epochs=3.0,
            batch_size=32,  # packs of 512 positions; each holds several rows
            seed=42,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=30, schedule="linear", weight_decay=0.0),
    )
