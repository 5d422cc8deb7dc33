"""Instruction wordings, and the seeded choice of one per row. All sentences were written for this project."""

from __future__ import annotations

import hashlib

from medtune_jax.tasks.source import Source

_NER = (
    "Tag every token of the text for {mentions}. Write one token per line as `token : TAG`, where B opens a mention, "
    "I continues it and O is anything else.",
    "The input is a sentence cut into tokens. Copy it line by line, each token followed by its tag: B for the first "
    "token of {a_mention}, I for the rest of it, O outside.",
    "Find {mentions} in the input. Answer with all tokens in their order, one `token : TAG` pair a line; use B at the "
    "start of a mention, I inside it and O elsewhere.",
    "Which tokens belong to {mentions}? Give each token on a line of its own with B (first token of a mention), "
    "I (later token of it) or O (no mention).",
    "Label this sentence with {mentions} in the BIO scheme and write the result as `token : TAG`, one token per line, "
    "leaving out none.",
    "Go through the sentence token by token and mark {mentions}: B begins one, I goes on with it, O means none. Keep "
    "the tokens as they are, one `token : TAG` on each line.",
)
_RELATION = (
    "Decide how the drug and the disease in the sentence are related. Answer with one of: {labels}.",
    "Which relation does the sentence state between its drug and its disease? Choose from {labels}.",
    "Read the sentence and name the relation that holds between the two entities: {labels}.",
    "Classify what the sentence says about the drug and the disease. Possible answers are {labels}.",
    "What links the drug to the disease here? Reply with exactly one of {labels}.",
)
_NLI = (
    "Given that sentence 1 is true, what follows for sentence 2? Answer {labels}.",
    "Compare the two sentences and say how the second stands to the first: {labels}.",
    "Does the first sentence support the second, rule it out, or leave it open? Reply with one of {labels}.",
    "Take sentence 1 as a note about a patient. Is sentence 2 then certain, impossible or undecided? Answer {labels}.",
    "Judge the second sentence in the light of the first. Choose one of {labels}.",
)


def _ner(mentions: str, a_mention: str) -> tuple[str, ...]:
    return tuple(wording.format(mentions=mentions, a_mention=a_mention) for wording in _NER)


_DISEASE = _ner("disease names", "a disease name")
_GENE = _ner("gene and protein names", "a gene or protein name")
WORDINGS: dict[str, tuple[str, ...]] = {
    "NCBI-disease": _DISEASE,
    "BC5CDR-disease": _DISEASE,
    "BC5CDR-chem": _ner("names of chemicals and drugs", "the name of a chemical or drug"),
    "JNLPBA": _ner("names of proteins, DNA, RNA, cell lines and cell types", "the name of a protein, DNA, RNA or cell"),
    "BC2GM": _GENE,
    "sample-disease": _DISEASE,
    "sample-relation": tuple(wording.format(labels="Treats, Causes, No Relations") for wording in _RELATION),
    "sample-nli": tuple(wording.format(labels="Entailment, Contradiction or Neutral") for wording in _NLI),
}


def wordings_of(source: Source) -> tuple[str, ...]:
    """Returns a source's wordings: its own where a user defined it, else those written here; () where its rows bring
    their own instructions."""
    return source.wordings or WORDINGS.get(source.name, ())


def choose(source: Source, split: str, row: int, seed: int) -> int:
    """Returns the index in `wordings_of(source)` of the wording of a row: a hash of (seed, source, split, row), so that
    it depends on no other row, library or machine. Uniform up to 2**-64."""
    digest = hashlib.blake2b(f"{seed}/{source.name}/{split}/{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % len(wordings_of(source))
