"""Instruction wordings of the entity corpora."""

from __future__ import annotations

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
}
