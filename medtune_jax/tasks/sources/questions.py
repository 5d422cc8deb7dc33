"""Questions with a known answer: multiple choice, yes or no, lists."""

from __future__ import annotations

from medtune_jax.tasks.choice import ChoiceTask
from medtune_jax.tasks.classification import LabelTask
from medtune_jax.tasks.extract import ExtractTask
from medtune_jax.tasks.source import Layout, Source

_MEDQA_WHERE = (
    "{files} of the archive linked from https://github.com/jind11/MedQA (data_clean/questions/US{folder}, licence "
    "MIT), into the folder MedQA"
)
_PUBMEDQA_SPLITS = (
    "Test: the official 500 PMIDs; train and validation: fold 0 of the other 500, drawn as the official script does "
    "(that it gives the test PMIDs, in order, is checked at reading)."
)
_PUBMEDQA_WHERE = (
    "ori_pqal.json and test_ground_truth.json from https://github.com/pubmedqa/pubmedqa (folder data, licence MIT), "
    "into the folder PubMedQA"
)
_PUBMEDQA_EXPECTED = {"train": {"rows": 450}, "validation": {"rows": 50}, "test": {"rows": 500}}
_BIOASQ_NOTE = (
    "Golden questions of a year's test batches stand in the training files of later years: do not train on a later "
    "year than the one scored."
)
_BIOASQ_WHERE = (
    "from http://participants-area.bioasq.org/datasets (free registration; its licence could not be read): the "
    "training file (training*b.json) into the folder BioASQ/train, the golden files of the test batches "
    "(*B*_golden.json) into BioASQ/test"
)
_BIOASQ_FILES = {"train": "train", "test": "test"}
_CLINICAL_IE_WHERE = (
    "the splits validation and test of https://huggingface.co/datasets/mitclinicalml/clinical-ie, configuration {name} "
    "(its conditions must be accepted), each saved with to_csv, as validation.csv and test.csv in the folder {name}"
)
_CLINICAL_IE_FILES = {"validation": "validation.csv", "test": "test.csv"}


def _pubmedqa(format: str) -> tuple[Layout, ...]:
    files = dict.fromkeys(("train", "validation", "test"), "ori_pqal.json")
    return (Layout(format, files, also=("test_ground_truth.json",)),)


SOURCES: tuple[Source, ...] = (
    Source(
        name="MedQA",
        task=ChoiceTask(),
        licence="MIT",
        credentialed=False,
        description="Questions of United States licensing examinations with five options (Jin et al. 2021).",
        where=_MEDQA_WHERE.format(files="{train,dev,test}.jsonl", folder=""),
        category="QA",
        layouts=(Layout("medqa", {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}),),
        splits={"4fe77de2b4b38af94f3ed5c1332fbf14df7b7cd3be9e6725ca059ac4f5c44d43": "validation"},
        expected={"validation": {"rows": 1272}, "test": {"rows": 1273}},
        aliases=("MedQA-USMLE", "MedQA-5options"),
    ),
    Source(
        name="MedQA-4options",
        task=ChoiceTask(),
        licence="MIT",
        credentialed=False,
        description="The questions of MedQA with four options (Jin et al. 2021), as most later work scores them.",
        where=_MEDQA_WHERE.format(files="phrases_no_exclude_{train,dev,test}.jsonl", folder="/4_options"),
        folder="MedQA",
        category="QA",
        layouts=(
            Layout(
                "medqa",
                {
                    "train": "phrases_no_exclude_train.jsonl",
                    "validation": "phrases_no_exclude_dev.jsonl",
                    "test": "phrases_no_exclude_test.jsonl",
                },
            ),
        ),
        expected={"validation": {"rows": 1272}, "test": {"rows": 1273}},
        aliases=("medqa_4options", "MedQA-USMLE-4-options"),
    ),
    Source(
        name="MedMCQA",
        task=ChoiceTask(),
        licence="MIT",
        credentialed=False,
        description="Questions of Indian medical entrance examinations with four options (Pal et al. 2022). "
        "validation is the file dev.json of 4,183 rows. The authors' README gives train 182,822, validation 6,150, "
        "test 4,183; MIRAGE and the file at hand call the 4,183 dev: say the number of rows with a score. The answers "
        "of the test file are withheld, so it gives no rows. Rows of doubtful gold stay in and are marked in meta.",
        where="{train,dev,test}.json of the archive linked from https://github.com/medmcqa/medmcqa (JSON lines, cop "
        "from 1; licence MIT), into the folder MedMCQA",
        category="QA",
        layouts=(Layout("medmcqa", {"train": "train.json", "validation": "dev.json", "test": "test.json"}),),
        splits={"7b666b249182747c0a5874ed2c4220cbb2b5e4ecfab977ea811f0ba0352a63f9": "validation"},
        expected={"train": {"rows": 182_822}, "validation": {"rows": 4183}},
    ),
    Source(
        name="PubMedQA",
        task=LabelTask("label", ("yes", "no", "maybe")),
        licence="MIT",
        credentialed=False,
        description="Research questions answered yes, no or maybe from an abstract without its conclusion (Jin et al. "
        f"2019). The input is lm-evaluation-harness's prompt less its last line, 'Answer:'. {_PUBMEDQA_SPLITS}",
        where=_PUBMEDQA_WHERE,
        category="QA",
        layouts=_pubmedqa("pubmedqa"),
        splits={
            "ffcdf414f4e02bb591aed4f2dbc0e19cd7633d8f675ae7fdbb3803fb9d53c499": "train",
            "0bd09bee3afa0d7d1cd9520af932720f8170fe144a50424c75dd4a9d5e896cf3": "validation",
            "f1d8b34713248700953499e64a32108fcc20a5d8a0a7bea000d7aa85020adb4e": "test",
        },
        expected=_PUBMEDQA_EXPECTED,
        aliases=("pubmed_qa", "PQA-L"),
    ),
    Source(
        name="PubMedQA-no-context",
        task=LabelTask("label", ("yes", "no", "maybe")),
        licence="MIT",
        credentialed=False,
        description=f"The questions of PubMedQA without the abstract. {_PUBMEDQA_SPLITS}",
        where=_PUBMEDQA_WHERE,
        folder="PubMedQA",
        category="QA",
        layouts=_pubmedqa("pubmedqa_question"),
        splits={
            "5ce5eea7f6d621dd54e27cff1c57889aaee16f7b88a569844a7ebb2064e59db2": "train",
            "c6dd25da88b6cdc0849b8fa5fd30bafdc5a2d2e2ecc63aa9c3559cf375b97ad6": "validation",
            "7831abece0973aa0f66d3cce7861b0622a3f5e43130e7046235e792f47d7c368": "test",
        },
        expected=_PUBMEDQA_EXPECTED,
    ),
    Source(
        name="BioASQ-yesno",
        task=LabelTask("label", ("yes", "no")),
        licence="unknown",
        credentialed=False,
        description="Yes/no questions of BioASQ task b with the snippets experts chose (Tsatsaronis et al. 2015). "
        f"{_BIOASQ_NOTE}",
        where=_BIOASQ_WHERE,
        folder="BioASQ",
        category="QA",
        layouts=(Layout("bioasq_yesno", _BIOASQ_FILES),),
    ),
    Source(
        name="BioASQ-factoid",
        task=ExtractTask(ranked=True),
        licence="unknown",
        credentialed=False,
        description="Factoid questions of BioASQ task b with the snippets experts chose; five ranked candidates. "
        f"{_BIOASQ_NOTE}",
        where=_BIOASQ_WHERE,
        folder="BioASQ",
        category="QA",
        layouts=(Layout("bioasq_factoid", _BIOASQ_FILES),),
    ),
    Source(
        name="BioASQ-list",
        task=ExtractTask(metric="mean_f1"),
        licence="unknown",
        credentialed=False,
        description=f"List questions of BioASQ task b with the snippets experts chose. {_BIOASQ_NOTE}",
        where=_BIOASQ_WHERE,
        folder="BioASQ",
        category="QA",
        layouts=(Layout("bioasq_list", _BIOASQ_FILES),),
    ),
    Source(
        name="medication_status",
        task=ExtractTask(fields=("active", "discontinued", "neither")),
        licence="unknown",
        credentialed=True,  # OUR choice: notes of patients, de-identified, whose conditions of access must be accepted
        description="Medications of clinical snippets (CASI) by status (Agrawal et al. 2022). Column names as used in "
        "public code on the set: snippet, {active,discontinued,neither}_medications.",
        where=_CLINICAL_IE_WHERE.format(name="medication_status"),
        category="IE",
        layouts=(Layout("medication_status", _CLINICAL_IE_FILES),),
        aliases=("medication-status",),
    ),
    Source(
        name="coreference",
        task=ExtractTask(single=True),
        licence="unknown",
        credentialed=True,
        description="Pronouns of clinical snippets (CASI) and their antecedents (Agrawal et al. 2022). The columns "
        "snippet, pronoun, antecedent are OUR assumption: the files could not be seen, their card says that each "
        "example has a pronoun and its antecedent or antecedents; rename the columns where they are called otherwise.",
        where=_CLINICAL_IE_WHERE.format(name="coreference"),
        category="IE",
        layouts=(Layout("coreference", _CLINICAL_IE_FILES),),
        expected={"validation": {"rows": 5}, "test": {"rows": 100}},
    ),
)
