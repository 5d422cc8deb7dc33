"""Packaging: `pip install .` gives the command `medtune`; configs/ and data_prep/ are installed inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
INIT = (HERE / "medtune_jax" / "__init__.py").read_text(encoding="utf-8")
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', INIT, re.M)

# What is imported, and no more. What was tested together is in constraints.txt.
REQUIRES = [
    "absl-py>=2.1",
    "datasets>=4.0",
    "etils>=1.9",
    "flax>=0.12",
    "huggingface_hub>=0.30",
    "jax>=0.10.2",
    "matplotlib>=3.9",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pyarrow>=18",
    "rouge-score>=0.1.2",
    "sacrebleu>=2.4",
    "sentencepiece>=0.2.2",
    "seqeval>=1.2.2",
    "tensorboardX>=2.6",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]

# configs/ and data_prep/ with its folders, under their names inside the package.
BESIDE = [f"medtune_jax.{name}" for name in find_packages(include=["configs", "data_prep", "data_prep.*"])]

setup(
    name="medtune-jax",
    version=VERSION,
    description="Instruction tuning of biomedical language models in JAX: prepare, train, decode, score, export.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["medtune_jax", "medtune_jax.*"]), *BESIDE],
    package_dir={"medtune_jax.configs": "configs", "medtune_jax.data_prep": "data_prep"},
    package_data={"medtune_jax.data_prep.mixtures": ["*.toml"]},
    install_requires=REQUIRES,
    extras_require={
        "test": [
            "accelerate>=1.0",
            "hypothesis>=6.100",
            "libtpu>=0.0.42; platform_system == 'Linux' and platform_machine == 'x86_64'",  # its compiler needs no TPU
            "llguidance>=1.9",
            "mypy>=1.13",
            "peft>=0.17",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "safetensors>=0.5",
            "scikit-learn>=1.5",
            "torch>=2.5",
            "transformers>=5.0",
        ],
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda12]>=0.10.2"],
        "grammar": ["llguidance>=1.9"],
        "wandb": ["wandb>=0.19"],
    },
    entry_points={"console_scripts": ["medtune = medtune_jax.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
