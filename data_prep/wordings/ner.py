"""Instruction wordings of the entity corpora."""

from __future__ import annotations

_NER = (
    "Tag every token of the text for {mentions}. Write one token per line as `token : TAG`, where B opens a mention, "
    "I continues it and O is anything else.",
    "The input is a sentence cut into tokens. Copy it line by line as `token : TAG`, with tag B for the first token of "
    "{a_mention}, I for the rest of it, O outside.",
    "Find {mentions} in the input. Answer with all tokens in their order, one `token : TAG` pair a line; use B at the "
    "start of a mention, I inside it and O elsewhere.",
    "Which tokens belong to {mentions}? Give each token on a line of its own, in the form `token : TAG`, with B (first "
    "token of a mention), I (later token of it) or O (no mention).",
    "Label this sentence with {mentions} in the BIO scheme and write the result as `token : TAG`, one token per line, "
    "leaving out none.",
    "Go through the sentence token by token and mark {mentions}: B begins one, I goes on with it, O means none. Keep "
    "the tokens as they are, one `token : TAG` on each line.",
)
_TYPED = (
    "Tag every token of the text with the BIO scheme for {what}. Write one token per line as `token : TAG`; a tag is "
    "B-TYPE where a mention begins, I-TYPE where it continues and O elsewhere, with TYPE one of {types}.",
    "The input is a sentence cut into tokens. Copy it line by line as `token : TAG` and mark {what}: B- or I- followed "
    "by the type ({types}) inside a mention, O outside.",
    "Find {what} in the input and say of which type each is: {types}. Answer with all tokens in their order, one "
    "`token : TAG` pair a line, where TAG is B-TYPE at the start of a mention, I-TYPE within it, O otherwise.",
    "Which tokens belong to {what}? Give each token on its own line with O, or with B- (first token) or I- (later "
    "token) and one of the types {types}, in the form `token : TAG`.",
    "Label this sentence with {what}. Types: {types}. Result: one `token : TAG` line per token, leaving out none, in "
    "tags B-TYPE, I-TYPE and O.",
)


def _ner(mentions: str, a_mention: str) -> tuple[str, ...]:
    return tuple(wording.format(mentions=mentions, a_mention=a_mention) for wording in _NER)


def _typed(what: str, types: str) -> tuple[str, ...]:
    return tuple(wording.format(what=what, types=types) for wording in _TYPED)


_DISEASE = _ner("disease names", "a disease name")
_GENE = _ner("gene and protein names", "a gene or protein name")
WORDINGS: dict[str, tuple[str, ...]] = {
    "NCBI-disease": _DISEASE,
    "BC5CDR-disease": _DISEASE,
    "BC5CDR-chem": _ner("names of chemicals and drugs", "the name of a chemical or drug"),
    "JNLPBA": _ner("names of proteins, DNA, RNA, cell lines and cell types", "the name of a protein, DNA, RNA or cell"),
    "BC2GM": _GENE,
    "JNLPBA-5types": _typed("terms of molecular biology", "protein, DNA, RNA, cell_line, cell_type"),
    "i2b2-2012": _typed(
        "the events of a clinical record", "OCCURRENCE, PROBLEM, TEST, TREATMENT, EVIDENTIAL, CLINICAL_DEPT"
    ),
    "sample-disease": _DISEASE,
}
