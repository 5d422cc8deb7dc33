"""Invented corpora in native formats, for the quickstart and for tests: NER, relation and NLI, a few hundred rows each.

Every name is made of invented stems and a suffix that tells its kind (morvitis is a disease, morvolol a drug), every
sentence comes from a small grammar, so a tiny model can learn the tasks in minutes and only by reading: three quarters
of the names (NER) and of the argument pairs (relation, NLI) of the held-out rows never occur in training, and no
constant answer scores above 0.5. Same seed, same bytes.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

SPLIT_ROWS = {"train": 420, "devel": 60, "test": 120}

ONSETS = ("morv", "talg", "brell", "quen", "sarn", "velt", "dorm", "fisk", "grav", "lund", "pell", "trin")
MIDDLES = ("", "ad", "on", "ul")
DISEASE_SUFFIXES = ("itis", "oma", "emia", "osis")
DRUG_SUFFIXES = ("olol", "mycin", "statin", "azole")
GENE_LETTERS = ("BRK", "TNX", "MAV", "KLP")
MODIFIERS = ("acute", "chronic", "severe", "juvenile")
HEADS = ("syndrome", "disease")

# {D} is a disease mention, {R} a drug, {G} a gene.
NER_PATTERNS = (
    "{R} is given to patients with {D} .",
    "{D} and {D} were treated with {R} .",
    "Carriers of {G} are at risk of {D} .",
    "No case of {D} was seen after {R} .",
    "{G} lowers the level of {R} .",
    "The study compared {R} with {R} in {D} .",
    "{D} improved under {R} .",
)
RELATIONS = {
    "Treats": ("{R} relieves {D} .", "{R} cured {D} in most patients .", "{D} improved under {R} ."),
    "Causes": ("{R} induced {D} .", "{R} triggered {D} in most patients .", "{D} developed under {R} ."),
    "No Relations": (
        "{R} was unrelated to {D} .",
        "{R} was given before {D} was known .",
        "{D} did not depend on {R} .",
    ),
}
PRESENT = ("The patient has {D} and takes {R} .", "{D} was found and {R} was started .")
ABSENT = ("The patient has no {D} and takes {R} .", "No {D} was found and {R} was started .")
SAYS_PRESENT = ("{D} is present .",)
SAYS_ABSENT = ("{D} is absent .",)
SAYS_ELSE = ("{D} runs in the family .", "{R} is expensive .")
ABSENT_SHARE = 0.2
# Label -> what the hypothesis says when the premise affirms the disease, and when it denies it.
NLI = {
    "entailment": (SAYS_PRESENT, SAYS_ABSENT),
    "contradiction": (SAYS_ABSENT, SAYS_PRESENT),
    "neutral": (SAYS_ELSE, SAYS_ELSE),
}


def write_samples(folder: Path, seed: int = 0) -> list[Path]:
    """Writes sample-disease/, sample-relation/ and sample-nli/ under `folder` as native files; returns their paths."""
    rng = random.Random(seed)
    diseases, drugs = _names(DISEASE_SUFFIXES), _names(DRUG_SUFFIXES)
    files = {}
    for split, sentences in ner_sentences(rng, diseases, drugs).items():
        text = "".join("".join(f"{token}\t{tag}\n" for token, tag in sentence) + "\n" for sentence in sentences)
        files[f"sample-disease/{split}.tsv"] = text
    for split, labelled in relation_rows(rng, diseases, drugs).items():
        files[f"sample-relation/{split}.tsv"] = "".join(f"{sentence}\t{label}\n" for sentence, label in labelled)
    for split, pairs in nli_rows(rng, diseases, drugs).items():
        files[f"sample-nli/{'dev' if split == 'devel' else split}.jsonl"] = "".join(
            json.dumps({"sentence1": premise, "sentence2": hypothesis, "gold_label": label}) + "\n"
            for premise, hypothesis, label in pairs
        )
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def ner_sentences(rng: random.Random, diseases: list[str], drugs: list[str]) -> dict[str, list[list[tuple[str, str]]]]:
    """Returns split -> sentences of (token, tag); a third of the disease names is kept out of training."""
    shuffled = rng.sample(diseases, len(diseases))
    seen, held_out = shuffled[len(diseases) // 3 :], shuffled[: len(diseases) // 3]

    def sentence(pattern: str, split: str) -> list[tuple[str, str]]:
        tagged: list[tuple[str, str]] = []
        for word in pattern.split():
            if word == "{D}":
                new = split != "train" and rng.random() < 0.75
                mention = _mention(rng, rng.choice(held_out if new else seen))
                tagged += zip(mention, ["B"] + ["I"] * (len(mention) - 1), strict=True)
            elif word == "{R}":
                tagged.append((rng.choice(drugs), "O"))
            elif word == "{G}":
                tagged.append((f"{rng.choice(GENE_LETTERS)}{rng.randint(1, 9)}", "O"))
            else:
                tagged.append((word, "O"))
        return tagged

    return {
        split: [sentence(pattern, split) for pattern in _cycled(rng, NER_PATTERNS, rows)]
        for split, rows in SPLIT_ROWS.items()
    }


def relation_rows(rng: random.Random, diseases: list[str], drugs: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Returns split -> (sentence, label), the labels in equal shares."""
    draw = _pairs(rng, diseases, drugs)
    rows: dict[str, list[tuple[str, str]]] = {}
    for split, count in SPLIT_ROWS.items():
        rows[split] = []
        for label in _cycled(rng, tuple(RELATIONS), count):
            disease, drug = draw(split)
            rows[split].append((rng.choice(RELATIONS[label]).format(D=disease, R=drug), label))
    return rows


def nli_rows(rng: random.Random, diseases: list[str], drugs: list[str]) -> dict[str, list[tuple[str, str, str]]]:
    """Returns split -> (premise, hypothesis, label), the labels in equal shares.

    Who reads the hypothesis alone is wrong wherever the premise denies: a fifth of the entailments and contradictions.
    """
    draw = _pairs(rng, diseases, drugs)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for split, count in SPLIT_ROWS.items():
        rows[split] = []
        for label in _cycled(rng, tuple(NLI), count):
            disease, drug = draw(split)
            absent = rng.random() < ABSENT_SHARE
            patterns = (ABSENT if absent else PRESENT, NLI[label][absent])
            premise, hypothesis = (rng.choice(choices).format(D=disease, R=drug) for choices in patterns)
            rows[split].append((premise, hypothesis, label))
    return rows


def _names(suffixes: Iterable[str]) -> list[str]:
    return ["".join(parts) for parts in itertools.product(ONSETS, MIDDLES, suffixes)]


def _mention(rng: random.Random, name: str) -> list[str]:
    form = rng.randrange(3)
    return [[name], [rng.choice(MODIFIERS), name], [name, rng.choice(HEADS)]][form]


def _cycled(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """Returns `count` values in equal shares, shuffled."""
    return rng.sample([values[i % len(values)] for i in range(count)], count)


def _pairs(rng: random.Random, diseases: list[str], drugs: list[str]) -> Callable[[str], tuple[str, str]]:
    """Returns split -> (disease, drug): three quarters of the pairs outside training are ones training never drew."""
    drawn: set[tuple[str, str]] = set()

    def draw(split: str) -> tuple[str, str]:
        if split != "train" and rng.random() >= 0.75:
            return rng.choice(sorted(drawn))
        pair = (rng.choice(diseases), rng.choice(drugs))
        while split != "train" and pair in drawn:
            pair = (rng.choice(diseases), rng.choice(drugs))
        if split == "train":
            drawn.add(pair)
        return pair

    return draw
