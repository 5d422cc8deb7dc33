"""The samples of data_prep/samples.py on a tiny random Llama: shows the whole path on two CPU cores in minutes.

    bash scripts/quickstart.sh

Expected: on the held-out rows of each of the three tasks, 0.8 or more with template decoding (F1 for NER, micro-F1 for
relation, accuracy for NLI), from 0.5 or less before training.
"""

from medtune_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> Config:
    """Returns the experiment; model.path and data.path come from flags."""
    return Config(
        model=ModelConfig(remat="none"),
        data=DataConfig(max_length=256),
        train=TrainConfig(steps=500, batch_size=4, precision="float32", decision_weight=5.0),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=40, schedule="cosine"),
        checkpoint=CheckpointConfig(every_steps=200),
        evaluation=EvaluationConfig(every_steps=100, max_rows=64),
        log=LogConfig(every_steps=20),
    )
