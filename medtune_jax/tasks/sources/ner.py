"""Corpora of entity mentions."""

from __future__ import annotations

from medtune_jax.tasks.ner import NerTask
from medtune_jax.tasks.source import UNSTATED, Layout, Published, Source

_MTL = (
    "CoNLL files train.tsv, devel.tsv, test.tsv from https://github.com/cambridgeltl/MTL-Bioinformatics-2016 "
    "(data/{}) into the folder {}; BioBERT's NER download holds the same sentences"
)
_CONLL = (Layout("conll", {"train": "train.tsv", "validation": "devel.tsv", "test": "test.tsv"}),)
_CLINICAL = "arXiv 2401.00579, Table 3; its rows are not stated"
_BIOBERT = "arXiv 2401.00579, Table 2; its rows are not stated"
_MEDTUNED = (
    "arXiv 2401.00579, Table 2; the paper states neither rows nor scorer: that they are the development set and the "
    "published script, which keeps one tag per distinct token of a sentence, is inferred from the evaluation rows and "
    "the code that the authors published"
)


def _table_2(biobert: float, b7: float, b13: float, split: str, n: int) -> tuple[Published, ...]:
    return (
        Published("BioBERT-v1.1", "f1", biobert, UNSTATED, 0, _BIOBERT),
        Published("Llama2-MedTuned-7b", "f1", b7, split, n, _MEDTUNED, "legacy_medtuned", inferred=True),
        Published("Llama2-MedTuned-13b", "f1", b13, split, n, _MEDTUNED, "legacy_medtuned", inferred=True),
    )


def _counts(*splits: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Returns `expected` of (rows, mentions) of train, validation and test."""
    names = ("train", "validation", "test")
    return {name: {"rows": rows, "mentions": mentions} for name, (rows, mentions) in zip(names, splits, strict=True)}


SOURCES = (
    Source(
        name="NCBI-disease",
        task=NerTask(),
        licence="CC0-1.0",
        credentialed=False,
        description="Disease mentions in PubMed abstracts (Dogan et al. 2014).",
        where=_MTL.format("NCBI-disease-IOB", "NCBI-disease"),
        layouts=_CONLL,
        splits={
            "49ac8076c654daec7ff20be20387ff24ad8786a0a7af80cdf4fd69af4a1861a0": "train",
            "07a7c29157d2f231c5e0aa0e46df8d85bb8382d77241626080dc8a4d663c0f47": "validation",
            "39ad758a14ab504022b0c6aee39b10c25cb6e4284089d4f9572a086e5edfdff6": "test",
        },
        expected=_counts((5424, 5134), (923, 787), (940, 960)),
        published=_table_2(0.8862, 0.8718, 0.8569, "validation", 923),
        aliases=("ncbi", "ncbi_disease", "NCBI-disease-IOB"),
    ),
    Source(
        name="BC5CDR-disease",
        task=NerTask(),
        licence="CC-PDM-1.0",
        credentialed=False,
        description="Disease mentions of the BioCreative V chemical-disease relation corpus (Li et al. 2016).",
        where=_MTL.format("BC5CDR-disease-IOB", "BC5CDR-disease"),
        layouts=_CONLL,
        splits={
            "21df648892796f26645a89b47c6acf716e877b764312cf2648dde15cf541d230": "train",
            "2864d095f006e5227ceafc73be65ec28de8762df892f796d8a531f6daadef279": "validation",
            "8417b91454a61f7a3515a030c64af7537eb8b5ffe28f5b9db16d9b88f517d340": "test",
        },
        expected=_counts((4560, 4182), (4581, 4246), (4797, 4424)),
        published=_table_2(0.8667, 0.8392, 0.8546, "validation", 4581),
        aliases=("bc5cdr_disease", "BC5CDR-disease-IOB"),
    ),
    Source(
        name="BC5CDR-chem",
        task=NerTask(),
        licence="CC-PDM-1.0",
        credentialed=False,
        description="Chemical mentions of the BioCreative V chemical-disease relation corpus (Li et al. 2016).",
        where=_MTL.format("BC5CDR-chem-IOB", "BC5CDR-chem"),
        layouts=_CONLL,
        splits={
            "d6b83681cc06084b5c3b3fb3088b8286c846e3008e9fd684d5632c3a982e6d16": "train",
            "ff85e5cc19f69e67d50099e6a80dedd41beeab203965ec2a8704b9fa9723f392": "validation",
            "62f0d47efbfebb1e53412cca279a4d7885c6daab6d326da537300e1cc3275b16": "test",
        },
        expected=_counts((4560, 5203), (4581, 5347), (4797, 5385)),
        published=_table_2(0.9473, 0.9388, 0.9451, "validation", 4581),
        aliases=("bc5cdr_chem", "BC5CDR-chemical", "BC5CDR-chem-IOB"),
    ),
    Source(
        name="JNLPBA",
        task=NerTask(),
        licence="CC-BY-3.0",
        credentialed=False,
        description="Molecular biology terms of GENIA abstracts as one type, 6,241 in test (Collier and Kim 2004).",
        where="CoNLL files train.tsv, devel.tsv, test.tsv from BioBERT's NER download "
        "(https://github.com/dmis-lab/biobert) into the folder JNLPBA; not the five-type set",
        layouts=_CONLL,
        splits={
            "324c2d6e74213cc25e306020463fbba22042cc04c9e79c673ae27eadca38d53b": "train",
            "e9142ca5052554c6ac8b5e2ee7ae2a528e829b5833630459081c26ca141d021e": "validation",
            "5fd626b854b20948d6081a1723480be84bf121de4f502a8e8abfdbcb5cccb48f": "test",
        },
        expected=_counts((14690, 32178), (3856, 8575), (3856, 6241)),
        published=_table_2(0.8033, 0.8230, 0.8131, "validation", 3856),
        aliases=("jnlpba",),
    ),
    Source(
        name="BC2GM",
        task=NerTask(),
        licence="unknown",  # MTL-Bioinformatics-2016 offers its materials under CC-BY-4.0; of the corpus none was found
        credentialed=False,
        description="Gene mentions of the BioCreative II shared task (Smith et al. 2008).",
        where=_MTL.format("BC2GM-IOB", "BC2GM"),
        layouts=_CONLL,
        splits={
            "47e8b070e171bfd3b96f8d3df0de615d570f9ce35f41f16ffe9c34043fdb098c": "train",
            "72be9d5f171aa169137722d9c48ca66ed32160af018882c1ddcbe530a62e1a3f": "validation",
            "ea7910bb98b9083c17217d473f235c64ed795dc984868d4b8e60f78f94403b5b": "test",
        },
        expected=_counts((12574, 15197), (2519, 3061), (5038, 6325)),
        published=_table_2(0.8762, 0.7646, 0.7912, "validation", 2519),
        aliases=("bc2gm", "BC2GM-IOB"),
    ),
    Source(
        name="JNLPBA-5types",
        task=NerTask(("protein", "DNA", "RNA", "cell_line", "cell_type")),
        licence="CC-BY-3.0",
        credentialed=False,
        description="Molecular biology terms of GENIA abstracts in the five types of the shared task, 8,662 in test "
        "(Collier and Kim 2004).",
        where="CoNLL files train.tsv, devel.tsv, test.tsv with tags such as B-cell_type from "
        "https://github.com/cambridgeltl/MTL-Bioinformatics-2016 (data/JNLPBA) into the folder JNLPBA-5types",
        layouts=_CONLL,
        splits={
            "bcbe6499e69de248d13b207246597ac33f44fda9948cb7ecdf0a297c63cf96e2": "validation",
            "5df61ef4b491640a62a2d0d0631d0896fa3f9477329344bd4685bb976cb4bc49": "test",
        },
        # Its devel.tsv is another part of GENIA's training set than the single-type set's.
        expected={"validation": {"rows": 1739, "mentions": 4551}, "test": {"rows": 3856, "mentions": 8662}},
        aliases=("jnlpba_5types",),
    ),
    Source(
        name="i2b2-2012",
        task=NerTask(("OCCURRENCE", "PROBLEM", "TEST", "TREATMENT", "EVIDENTIAL", "CLINICAL_DEPT")),
        licence="n2c2 Data Use and Confidentiality Agreement",
        credentialed=True,
        description="Events in discharge summaries (Sun, Rumshisky and Uzuner 2013), their spans and types.",
        where="sign the agreement and download the 2012 temporal relations data from the DBMI Data Portal "
        "(https://portal.dbmi.hms.harvard.edu/projects/n2c2-nlp/); unpack "
        "2012-07-15.original-annotation.release.tar.gz and 2012-08-23.test-data.groundtruth.tar.gz (ground_truth) into "
        "the folder i2b2-2012, or put there train.tsv, devel.tsv and test.tsv of token<TAB>tag lines such as "
        "fever<TAB>B-PROBLEM",
        layouts=(
            *_CONLL,
            Layout(
                "i2b2_2012_xml",
                {"train": "2012-07-15.original-annotation.release", "test": "ground_truth/merged_xml"},
            ),
        ),
        # Rows of the token form that the Llama2-MedTuned authors used; they hold out part of train, the XML has all.
        expected={"train": {"rows": 6755}, "test": {"rows": 5664}},
        published=(
            Published("BioClinicalBERT", "f1", 0.8298, UNSTATED, 0, _CLINICAL),
            Published("Llama2-MedTuned-13b", "f1", 0.8064, UNSTATED, 0, f"{_CLINICAL}, its script is not public"),
        ),
        aliases=("i2b2_2012",),
    ),
)
