"""Corpora whose rows have one label or a set of labels: relations, inference, documents."""

from __future__ import annotations

from medtune_jax.tasks.classification import LabelTask, NliTask
from medtune_jax.tasks.labels import LabelsTask
from medtune_jax.tasks.source import UNSTATED, Layout, Published, Source

NEGATIVE = "No Relations"  # as Llama2-MedTuned writes it
_TSV = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
_BLUE = "BLUE benchmark, README of https://github.com/ncbi-nlp/BLUE_Benchmark"
_MEDTUNED = "arXiv 2401.00579, Table 3"
# Names of the hallmarks in the corpus -> in the outputs of Llama2-MedTuned.
HALLMARKS = {
    "sustaining proliferative signaling": "Sustaining proliferative signaling (PS)",
    "evading growth suppressors": "Evading growth suppressors (GS)",
    "resisting cell death": "Resisting cell death (CD)",
    "enabling replicative immortality": "Enabling replicative immortality (RI)",
    "inducing angiogenesis": "Inducing angiogenesis (A)",
    "activating invasion and metastasis": "Activating invasion & metastasis (IM)",
    "genomic instability and mutation": "Genome instability & mutation (GI)",
    "tumor promoting inflammation": "Tumor-promoting inflammation (TPI)",
    "cellular energetics": "Deregulating cellular energetics (CE)",
    "avoiding immune destruction": "Avoiding immune destruction (ID)",
}
# Names as other texts on the hallmarks, or on the corpus, spell them.
HALLMARK_ALIASES = {
    "Activating invasion and metastasis": "Activating invasion & metastasis (IM)",
    "Genomic instability and mutation": "Genome instability & mutation (GI)",
    "Genome instability and mutation": "Genome instability & mutation (GI)",
    "Tumor promoting inflammation": "Tumor-promoting inflammation (TPI)",
    "Cellular energetics": "Deregulating cellular energetics (CE)",
}
_HOC = (
    "https://www.cl.cam.ac.uk/~sb895/HoC.html (or https://github.com/sb895/Hallmarks-of-Cancer), split by document "
    "as bigbio/hallmarks_of_cancer does and written as train.tsv, dev.tsv and test.tsv with the header "
    "document_id<TAB>text<TAB>labels, labels joined by |, into the folder hoc"
)
_HOC_LICENCE = "GPL-3.0-only"
_HOC_NOTE = "Licence: a bare text of the GPL 3 lies beside the corpus; that no later version is meant is OUR reading."

SOURCES = (
    Source(
        name="i2b2-2010",
        task=LabelTask(
            "relation", ("PIP", "TeCP", "TeRP", "TrAP", "TrCP", "TrIP", "TrNAP", "TrWP", NEGATIVE), negative=NEGATIVE
        ),
        licence="n2c2 Data Use and Confidentiality Agreement",
        credentialed=True,
        description="Relations between problems, tests and treatments in clinical records (Uzuner et al. 2011), a row "
        "per pair of concepts of a line.",
        where="sign the agreement and download the 2010 relation data from the DBMI Data Portal "
        "(https://portal.dbmi.hms.harvard.edu/projects/n2c2-nlp/); unpack concept_assertion_relation_training_data, "
        "reference_standard_for_test_data and test_data into the folder i2b2-2010, or put there train.tsv, dev.tsv and "
        "test.tsv as BLUE's preprocessing (https://github.com/ncbi-nlp/BLUE_Benchmark) writes them",
        layouts=(
            Layout("blue_tsv", _TSV),
            Layout(
                "i2b2_2010",
                {"train": "concept_assertion_relation_training_data", "test": "reference_standard_for_test_data"},
            ),
        ),
        # Rows that the Llama2-MedTuned authors trained on and scored; BLUE's own train.tsv leaves out dev.tsv.
        expected={"train": {"rows": 22256}, "test": {"rows": 43000, "positives": 6293}},
        published=(
            Published("BlueBERT-base (P+M)", "f1_positive", 0.764, "test", 43000, f"{_BLUE}; 6,293 relations in test"),
        ),
        aliases=("i2b2_2010", "i2b2-2010-re"),
    ),
    Source(
        name="GAD",
        task=LabelTask("relation", ("Positive", "Negative"), negative="Negative"),
        licence="CC-BY-4.0",
        credentialed=False,
        description="Gene-disease associations of the Genetic Association Database (Bravo et al. 2015), fold 1 of the "
        "ten of BioBERT. Label 1 of its files, an association, is Positive; rows prepared with --gad_polarity=legacy "
        "have it as Negative, and are known by their hashes and their meta.",
        where="the relation extraction download of BioBERT (https://github.com/dmis-lab/biobert), REdata/GAD/1: "
        "train.tsv (sentence<TAB>label), dev.tsv (empty) and test.tsv (index, sentence, label) into the folder GAD",
        layouts=(Layout("gad_tsv", _TSV),),
        splits={
            "ed238dd3c8d42d9ae18c584a2841dd53bb1975e0ab41429473ecc81fa8e1058c": "train",
            "bd5718724ccf06c3e5fc56f888f2002f277079685864eb7567e44cf6c47e7b81": "test",
            "6ea2fe2053b80d7295063b0943f7c34bbcfa08cdf942ee0b482e985a93781c7d": "train (legacy polarity)",
            "67db13e05be4ddde59682158c083646a75b5f681be567a1560722aa1495ed3e2": "test (legacy polarity)",
        },
        expected={"train": {"rows": 4796}, "test": {"rows": 534}},
    ),
    Source(
        name="ChemProt",
        # Of the ten classes of the corpus the shared task evaluates five, and so do BLUE and BLURB.
        task=LabelTask("relation", ("CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9", NEGATIVE), negative=NEGATIVE),
        licence="CC-PDM-1.0",
        credentialed=False,
        description="Chemical-protein interactions in PubMed abstracts (Krallinger et al. 2017), a row per chemical "
        "and gene of a sentence.",
        where="ChemProt_Corpus.zip from https://biocreative.bioinformatics.udel.edu/news/corpora/, its parts unpacked "
        "as chemprot_training, chemprot_development and chemprot_test_gs in the folder ChemProt; or train.tsv, dev.tsv "
        "and test.tsv of BLUE (https://github.com/ncbi-nlp/BLUE_Benchmark/releases/tag/0.1) there",
        layouts=(
            Layout("blue_tsv", _TSV),
            Layout(
                "chemprot",
                {"train": "chemprot_training", "validation": "chemprot_development", "test": "chemprot_test_gs"},
            ),
        ),
        # Relations of the five classes, as BLUE's README counts them: fewer are found where sentences are cut wrongly.
        expected={"train": {"positives": 4154}, "validation": {"positives": 2416}, "test": {"positives": 3458}},
        published=(
            Published("BlueBERT-large (P)", "f1_positive", 0.744, UNSTATED, 0, f"{_BLUE}; its rows are not stated"),
        ),
        aliases=("chem_prot",),
    ),
    Source(
        name="MedNLI",
        task=NliTask(),
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        credentialed=True,
        description="Inference between sentences on patients' past medical history (Romanov and Shivade 2018). "
        "A row's group is a hash of its premise, which three hypotheses share.",
        where="complete the training and sign the data use agreement at PhysioNet, then download "
        "https://physionet.org/content/mednli/1.0.0/: mli_train_v1.jsonl, mli_dev_v1.jsonl and mli_test_v1.jsonl into "
        "the folder MedNLI",
        layouts=(
            Layout(
                "nli_jsonl",
                {"train": "mli_train_v1.jsonl", "validation": "mli_dev_v1.jsonl", "test": "mli_test_v1.jsonl"},
            ),
        ),
        category="other",  # our assumption: where BioInstruct counts it was not found
        expected={"train": {"rows": 11232}, "validation": {"rows": 1395}, "test": {"rows": 1422}},
        published=(
            Published("BlueBERT-base (P+M)", "accuracy", 0.840, "test", 1422, _BLUE),
            Published("BioClinicalBERT", "accuracy", 0.8241, UNSTATED, 0, f"{_MEDTUNED}; its rows are not stated"),
            Published("Llama2", "accuracy", 0.3720, UNSTATED, 0, f"{_MEDTUNED}; size, shots and rows are not stated"),
            Published(
                "Llama2-MedTuned-13b",
                "accuracy",
                0.8946,
                "validation",
                1395,
                f"{_MEDTUNED}; that it is the development set is inferred from the authors' evaluation rows and from "
                "the figure, which 1,422 rows cannot give",
                inferred=True,
            ),
        ),
        aliases=("med_nli", "mednli"),
    ),
    Source(
        name="hoc",
        task=LabelsTask(tuple(HALLMARKS.values()), aliases=HALLMARK_ALIASES),
        licence=_HOC_LICENCE,
        credentialed=False,
        description="Sentences of PubMed abstracts labelled with the hallmarks of cancer (Baker et al. 2016). "
        f"{_HOC_NOTE}",
        where=_HOC,
        layouts=(Layout("hoc_tsv", _TSV),),
        category="other",
        splits={
            "869c41818d6f7a92814b6fea393c9793fce6fba9188d3cfc24922cfde518c5c9": "train",
            "278d841d9b188dfccfecd7dc02b720cf48e3341576ae8a1a6837c403e5d84647": "validation",
            "7f9d7a98226ab2a26f3590fb75387e5182b5667bb27071eba561535d6ef8d1f8": "test",
        },
        expected={"train": {"rows": 12119}, "validation": {"rows": 1798}, "test": {"rows": 3547}},
    ),
    Source(
        name="hoc-document",
        task=LabelsTask(tuple(HALLMARKS.values()), aliases=HALLMARK_ALIASES),
        licence=_HOC_LICENCE,
        credentialed=False,
        description="Hallmarks of cancer of whole PubMed abstracts: the sentences of `hoc` joined per document. "
        f"{_HOC_NOTE}",
        where=_HOC,
        folder="hoc",
        layouts=(Layout("hoc_documents", _TSV),),
        category="other",
        splits={
            "4d8176dab5ff86c167506a89dc4e356ac88b8a50a418391ea82510153d253985": "train",
            "854312b1bbad90782d28685c8339203669d5dc76beb7926a17a001c804eec0cf": "validation",
            "4d21ed9ffc8b29c031d417575abd3d8a9f6ddb0c5cc2b13d41a222a1e154875d": "test",
        },
        expected={"train": {"rows": 1295}, "validation": {"rows": 186}, "test": {"rows": 371}},
        published=(
            Published(
                "BlueBERT-large (P)",
                "example_f1",
                0.873,
                UNSTATED,
                0,
                f"{_BLUE}; on 315 documents of BLUE's own split, other ones than the 371 here",
            ),
        ),
    ),
)
