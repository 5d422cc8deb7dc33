"""Instructions answered in free text: dialogues, notes, mixed instructions."""

from __future__ import annotations

from medtune_jax.tasks.source import Layout, Source
from medtune_jax.tasks.text import TextTask

_CHATDOCTOR = "https://github.com/Kent0n-Li/ChatDoctor"

SOURCES: tuple[Source, ...] = (
    Source(
        name="chatdoctor",
        task=TextTask(),
        licence="Apache-2.0",
        credentialed=False,
        description="Questions of patients and the answers of physicians from HealthCareMagic.com (Li et al. 2023); "
        "where only chatdoctor5k.json is there, the 5,452 consultations that ChatGPT wrote for the same project. The "
        "file repeats one instruction, which wordings replace. The licence is that of the repository that offers the "
        "data; its README allows the ChatDoctor model for academic research only.",
        where=f"HealthCareMagic-100k.json, linked from the README of {_CHATDOCTOR}, into the folder chatdoctor; or "
        "chatdoctor5k.json from that repository",
        category="QA",
        layouts=(
            Layout("consultations", {"train": "HealthCareMagic-100k.json"}),
            Layout("consultations", {"train": "chatdoctor5k.json"}),
        ),
        splits={"4c671e02b027f5ad0146252f77dd75a0a8601073c58bf2f5eac4b2314f80e7ef": "chatdoctor5k"},
        aliases=("ChatDoctor", "HealthCareMagic-100k", "HealthCareMagic"),
    ),
    Source(
        name="pmc_llama",
        task=TextTask(),
        licence="openrail",
        credentialed=False,
        description="Instructions of PMC-LLaMA (Wu et al. 2024) without its ChatDoctor part: medqa_train, medmcqa, "
        "pubmedqa.ori_pqaa, liveqa, medicationqa, umls, umls_relation, told apart by `subsource` in meta. It holds the "
        "training sets of MedQA, MedMCQA and PubMedQA: check contamination before scoring those. The "
        "licence is the tag of the hub repository, which names no variant; its parts have licences of their own.",
        where="release.json from https://huggingface.co/datasets/axiong/pmc_llama_instructions, into "
        "the folder pmc_llama",
        category="QA",
        layouts=(Layout("pmc_llama", {"train": "release.json"}),),
        expected={"train": {"rows": 513_999}},
        aliases=("pmc-llama", "pmc_llama_instructions"),
    ),
    Source(
        name="bioinstruct",
        task=TextTask(),
        licence="MIT",
        credentialed=False,
        description="Instructions that GPT-4 wrote from 80 seeds (Tran et al. 2024). The `category` of a row (QA, IE, "
        "GEN, other) is OUR reading of its instruction by rules: the file has none. Shares of the authors: QA 22.8 %, "
        "IE 33.8 %, GEN 33.5 %, other 10.0 %.",
        where="biomed_instruct_25k.json from https://huggingface.co/datasets/bio-nlp-umass/bioinstruct, into "
        "the folder bioinstruct",
        category="other",
        layouts=(Layout("instructions", {"train": "biomed_instruct_25k.json"}),),
        expected={"train": {"rows": 25_005}},
        aliases=("BioInstruct",),
    ),
    Source(
        name="Conv2note",
        task=TextTask(),
        licence="CC-BY-4.0",
        credentialed=False,
        description="Conversations of doctor and patient to the text of a note section, whose code (GENHX, ROS, ..) "
        "the input states (MTS-Dialog, Ben Abacha et al. 2023). test: MEDIQA-Chat 2023 task A; test2: MEDIQA-Sum 2023. "
        "That BioInstruct's Conv2note is this set is inferred from its authors' code, not stated.",
        where="the four MTS-Dialog-*.csv of https://github.com/abachaa/MTS-Dialog (folder Main-Dataset), into "
        "the folder Conv2note",
        category="GEN",
        layouts=(
            Layout(
                "mts_dialog",
                {
                    "train": "MTS-Dialog-TrainingSet.csv",
                    "validation": "MTS-Dialog-ValidationSet.csv",
                    "test": "MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv",
                    "test2": "MTS-Dialog-TestSet-2-MEDIQA-Sum-2023.csv",
                },
            ),
        ),
        splits={
            "8834238963856893f77721168447369ddf4eac66490c50544df7da21d26afe62": "train",
            "b29749cdf631b56046a1d912cb1ce8346083b33000e1245fbc93a74aea07ff99": "validation",
            "22cee334e8475a789dc2be3ffec55922018b5d7a567c28b592748aa326cb2703": "test",
            "53fca5d60be34795df5b84010bb6738364268c94b80810b93752e8a2ad05295e": "test2",
        },
        expected={
            "train": {"rows": 1201},
            "validation": {"rows": 100},
            "test": {"rows": 200},
            "test2": {"rows": 200},
        },
        aliases=("MTS-Dialog", "mts_dialog"),
    ),
    Source(
        name="aci-bench",
        task=TextTask(),
        licence="CC-BY-4.0",
        credentialed=False,
        description="Conversations of whole visits to complete notes (Yim et al. 2023). test: MEDIQA-Chat 2023 task B; "
        "test2: the notes of its task C; test3: MEDIQA-Sum 2023 task C.",
        where="train.csv, valid.csv, clinicalnlp_taskB_test1.csv, clinicalnlp_taskC_test2.csv, clef_taskC_test3.csv of "
        "https://github.com/wyim/aci-bench (folder data/challenge_data), into the folder aci-bench",
        category="GEN",
        layouts=(
            Layout(
                "aci_bench",
                {
                    "train": "train.csv",
                    "validation": "valid.csv",
                    "test": "clinicalnlp_taskB_test1.csv",
                    "test2": "clinicalnlp_taskC_test2.csv",
                    "test3": "clef_taskC_test3.csv",
                },
            ),
        ),
        expected={
            "train": {"rows": 67},
            "validation": {"rows": 20},
            "test": {"rows": 40},
            "test2": {"rows": 40},
            "test3": {"rows": 40},
        },
        aliases=("aci_bench", "ACI-BENCH"),
    ),
    Source(
        name="iCliniq",
        task=TextTask(),
        licence="unknown",
        credentialed=False,
        description="Questions of patients and the answers of physicians from iCliniq.com (Li et al. 2023), all as the "
        "test set that ChatDoctor's authors make of it; the copies we know of have 7,321 rows. BioInstruct's subset is "
        "not known.",
        where=f"iCliniq.json, linked as icliniq-10k from the README of {_CHATDOCTOR}, into the folder iCliniq",
        category="GEN",
        layouts=(Layout("icliniq", {"test": "iCliniq.json"}),),
        aliases=("icliniq-10k", "ChatDoctor-iCliniq"),
    ),
)
