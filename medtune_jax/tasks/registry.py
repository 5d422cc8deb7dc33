"""The sources of instruction rows: their task, licence, files, official splits and published figures.

Names equal the `source` column of nlpie/Llama2-MedTuned-Instructions. Hashes of official splits are `gold_sha256` of
the rows that `medtune prepare` renders from the files as distributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medtune_jax.errors import UserError, did_you_mean
from medtune_jax.tasks.base import Task
from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.ner import NerTask

UNSTATED = "unstated"


@dataclass(frozen=True)
class Published:
    """A figure from a paper, comparable only on the rows that it was computed on.

    Attributes:
      value: in 0..1.
      split: the official split it was computed on as far as is known, else `unstated`.
      n: rows of that split; 0 where unstated.
      cited: where the figure stands, and what is known of its rows and scoring.
    """

    model: str
    metric: str
    value: float
    split: str
    n: int
    cited: str


@dataclass(frozen=True)
class Source:
    """A corpus under its name.

    Attributes:
      format: the native format of its files, a key of data_prep's readers.
      where: how to get it, said to users who lack it.
      files: split (train, validation, test) -> file name in the raw folder.
      splits: gold_sha256 -> name of the official split (train, validation, test).
    """

    name: str
    task: Task
    format: str
    licence: str
    credentialed: bool
    description: str
    where: str
    files: Mapping[str, str]
    splits: Mapping[str, str] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    aliases: tuple[str, ...] = ()


_MTL = (
    "CoNLL files train.tsv, devel.tsv, test.tsv from https://github.com/cambridgeltl/MTL-Bioinformatics-2016 "
    "(data/{}); BioBERT's NER download holds the same sentences"
)
_TSV_FILES = {"train": "train.tsv", "validation": "devel.tsv", "test": "test.tsv"}
_BIOBERT = "arXiv 2401.00579, Table 2; its rows are not stated"
_MEDTUNED = (
    "arXiv 2401.00579, Table 2; the authors' evaluation rows are the development set, and their scorer keeps one tag "
    "per distinct token of a sentence"
)
_QUICKSTART = "written by scripts/quickstart.sh"


def _table_2(biobert: float, b7: float, b13: float, split: str, n: int) -> tuple[Published, ...]:
    return (
        Published("BioBERT-v1.1", "f1", biobert, UNSTATED, 0, _BIOBERT),
        Published("Llama2-MedTuned-7b", "f1", b7, split, n, _MEDTUNED),
        Published("Llama2-MedTuned-13b", "f1", b13, split, n, _MEDTUNED),
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="NCBI-disease",
            task=NerTask(),
            format="conll",
            licence="CC0-1.0",
            credentialed=False,
            description="Disease mentions in PubMed abstracts (Dogan et al. 2014).",
            where=_MTL.format("NCBI-disease-IOB"),
            files=_TSV_FILES,
            splits={
                "49ac8076c654daec7ff20be20387ff24ad8786a0a7af80cdf4fd69af4a1861a0": "train",
                "07a7c29157d2f231c5e0aa0e46df8d85bb8382d77241626080dc8a4d663c0f47": "validation",
                "39ad758a14ab504022b0c6aee39b10c25cb6e4284089d4f9572a086e5edfdff6": "test",
            },
            published=_table_2(0.8862, 0.8718, 0.8569, "validation", 923),
            aliases=("ncbi", "ncbi_disease", "NCBI-disease-IOB"),
        ),
        Source(
            name="BC5CDR-disease",
            task=NerTask(),
            format="conll",
            licence="Public-Domain-Mark-1.0",
            credentialed=False,
            description="Disease mentions of the BioCreative V chemical-disease relation corpus (Li et al. 2016).",
            where=_MTL.format("BC5CDR-disease-IOB"),
            files=_TSV_FILES,
            splits={
                "21df648892796f26645a89b47c6acf716e877b764312cf2648dde15cf541d230": "train",
                "2864d095f006e5227ceafc73be65ec28de8762df892f796d8a531f6daadef279": "validation",
                "8417b91454a61f7a3515a030c64af7537eb8b5ffe28f5b9db16d9b88f517d340": "test",
            },
            published=_table_2(0.8667, 0.8392, 0.8546, "validation", 4581),
            aliases=("bc5cdr_disease", "BC5CDR-disease-IOB"),
        ),
        Source(
            name="BC5CDR-chem",
            task=NerTask(),
            format="conll",
            licence="Public-Domain-Mark-1.0",
            credentialed=False,
            description="Chemical mentions of the BioCreative V chemical-disease relation corpus (Li et al. 2016).",
            where=_MTL.format("BC5CDR-chem-IOB"),
            files=_TSV_FILES,
            splits={
                "d6b83681cc06084b5c3b3fb3088b8286c846e3008e9fd684d5632c3a982e6d16": "train",
                "ff85e5cc19f69e67d50099e6a80dedd41beeab203965ec2a8704b9fa9723f392": "validation",
                "62f0d47efbfebb1e53412cca279a4d7885c6daab6d326da537300e1cc3275b16": "test",
            },
            published=_table_2(0.9473, 0.9388, 0.9451, "validation", 4581),
            aliases=("bc5cdr_chem", "BC5CDR-chemical", "BC5CDR-chem-IOB"),
        ),
        Source(
            name="JNLPBA",
            task=NerTask(),
            format="conll",
            licence="CC-BY-3.0",
            credentialed=False,
            description="Molecular biology terms of GENIA abstracts as one type, 6,241 in test (Collier and Kim 2004).",
            where="CoNLL files train.tsv, devel.tsv, test.tsv from BioBERT's NER download "
            "(https://github.com/dmis-lab/biobert); not the five-type set",
            files=_TSV_FILES,
            splits={
                "324c2d6e74213cc25e306020463fbba22042cc04c9e79c673ae27eadca38d53b": "train",
                "e9142ca5052554c6ac8b5e2ee7ae2a528e829b5833630459081c26ca141d021e": "validation",
                "5fd626b854b20948d6081a1723480be84bf121de4f502a8e8abfdbcb5cccb48f": "test",
            },
            published=_table_2(0.8033, 0.8230, 0.8131, "validation", 3856),
            aliases=("jnlpba",),
        ),
        Source(
            name="BC2GM",
            task=NerTask(),
            format="conll",
            licence="unknown",
            credentialed=False,
            description="Gene mentions of the BioCreative II shared task (Smith et al. 2008).",
            where=_MTL.format("BC2GM-IOB"),
            files=_TSV_FILES,
            splits={
                "47e8b070e171bfd3b96f8d3df0de615d570f9ce35f41f16ffe9c34043fdb098c": "train",
                "72be9d5f171aa169137722d9c48ca66ed32160af018882c1ddcbe530a62e1a3f": "validation",
                "ea7910bb98b9083c17217d473f235c64ed795dc984868d4b8e60f78f94403b5b": "test",
            },
            published=_table_2(0.8762, 0.7646, 0.7912, "validation", 2519),
            aliases=("bc2gm", "BC2GM-IOB"),
        ),
        Source(
            name="sample-disease",
            task=NerTask(),
            format="conll",
            licence="Apache-2.0",
            credentialed=False,
            description="Generated sentences with disease mentions, for the quickstart.",
            where=_QUICKSTART,
            files=_TSV_FILES,
        ),
        Source(
            name="sample-relation",
            task=LabelTask("relation", ("Treats", "Causes", "No Relations"), negative="No Relations"),
            format="relation_tsv",
            licence="Apache-2.0",
            credentialed=False,
            description="Generated sentences that relate a drug and a disease, for the quickstart.",
            where=_QUICKSTART,
            files=_TSV_FILES,
        ),
        Source(
            name="sample-nli",
            task=NliTask(),
            format="nli_jsonl",
            licence="Apache-2.0",
            credentialed=False,
            description="Generated clinical sentence pairs, for the quickstart.",
            where=_QUICKSTART,
            files={"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        ),
    )
}

_BY_ANY_NAME = {name.casefold(): source for source in SOURCES.values() for name in (source.name, *source.aliases)}


def find_source(name: str) -> Source | None:
    """Returns the source of this name or alias, in any case, or None."""
    return _BY_ANY_NAME.get(name.casefold())


def get_source(name: str) -> Source:
    """Returns the source of this name or alias, in any case.

    Raises:
      UserError: there is none; says which name is close, or all names.
    """
    source = find_source(name)
    if source is None:
        raise UserError(f"Unknown source '{name}'.{did_you_mean(name, SOURCES)}")
    return source
