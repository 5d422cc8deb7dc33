"""The invented corpora of the quickstart (data_prep/samples.py writes them)."""

from __future__ import annotations

from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.source import Layout, Source

_QUICKSTART = "written by scripts/quickstart.sh"
_TSV = {"train": "train.tsv", "validation": "devel.tsv", "test": "test.tsv"}

SOURCES = (
    Source(
        name="sample-disease",
        task=NerTask(),
        licence="Apache-2.0",
        credentialed=False,
        description="Generated sentences with disease mentions, for the quickstart.",
        where=_QUICKSTART,
        layouts=(Layout("conll", _TSV),),
    ),
    Source(
        name="sample-relation",
        task=LabelTask("relation", ("Treats", "Causes", "No Relations"), negative="No Relations"),
        licence="Apache-2.0",
        credentialed=False,
        description="Generated sentences that relate a drug and a disease, for the quickstart.",
        where=_QUICKSTART,
        layouts=(Layout("relation_tsv", _TSV),),
    ),
    Source(
        name="sample-nli",
        task=NliTask(),
        licence="Apache-2.0",
        credentialed=False,
        description="Generated clinical sentence pairs, for the quickstart.",
        where=_QUICKSTART,
        layouts=(Layout("nli_jsonl", {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}),),
    ),
)
