"""Instruction wordings of the corpora whose rows have one label or a set of labels."""

from __future__ import annotations

from medtune_jax.tasks.sources.classification import HALLMARKS

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
_CLINICAL_RELATION = (
    "The line comes from a clinical record; two of its concepts, each a problem, test or treatment, are replaced by "
    "markers such as @problem$. Name the relation between them. {key} Answer with the code alone.",
    "How are the two marked concepts of this clinical line related? Write one code and nothing else. {key}",
    "Classify the pair of @...$ markers in the input. {key} Give exactly one of these answers, spelled as here.",
    "Two concepts in the text have been swapped for @problem$, @test$ or @treatment$. State what the text says of the "
    "link between the two, by its code only. {key}",
    "Read the line and choose the label for its two marked concepts. {key} Output only the chosen label.",
)
_I2B2_KEY = (
    "TrIP: a treatment improves a problem; TrWP: it worsens the problem; TrCP: it causes the problem; TrAP: it is "
    "given for the problem; TrNAP: it is withheld because of it; TeRP: a test reveals a problem; TeCP: a test is done "
    "to look into a problem; PIP: one problem indicates another; No Relations: none of these."
)
_ASSOCIATION = (
    "In the sentence, @GENE$ stands for a gene and @DISEASE$ for a disease. Does the sentence link the two? Answer "
    "{positive} for an association, {negative} for none.",
    "Judge whether the marked gene and the marked disease are associated in this sentence. Reply with the single word "
    "{positive} where they are, {negative} where they are not.",
    "Is the pair @GENE$ and @DISEASE$ an example of a gene-disease association? Write {positive} if so, otherwise "
    "{negative}.",
    "Label the gene-disease pair of the input: {positive} when an association is annotated for it, {negative} when it "
    "is not. Give only the label.",
    "Read the statement from a paper on genetics and classify the relation of @GENE$ to @DISEASE$ as {positive} "
    "(associated) or {negative} (not associated).",
)
_CHEMICAL = (
    "A chemical and a gene or protein in the sentence are written as markers. Name the class of their interaction. "
    "{key} Answer with the class name alone.",
    "What does the sentence say the marked chemical does to the marked gene product? {key} Write exactly one of these.",
    "Choose the ChemProt class of the marked pair. {key} Reply with nothing but the class.",
    "Look at the two markers in this sentence from a PubMed abstract and give the type of chemical-protein relation "
    "between them. {key} One answer, spelled as here.",
    "Which interaction holds between the chemical and the gene that the markers stand for? {key} Only its label.",
)
_CHEMPROT_KEY = (
    "CPR:3 is activation or upregulation, CPR:4 inhibition or downregulation, CPR:5 agonist, CPR:6 antagonist, CPR:9 "
    "substrate or product; No Relations is any other case."
)
_HALLMARKS = (
    "Which hallmarks of cancer does the {text} give evidence for? Choose from: {labels}. Write the names that apply, "
    "separated by a comma and a space, or None.",
    "Assign the {text} to the hallmarks of cancer that it is about. The names are: {labels}. List all that fit, joined "
    "by commas; where there is none, answer None.",
    "Label this {text} of a PubMed abstract with every fitting hallmark out of {labels}. Give the names "
    "comma-separated and spelled as here, or the word None.",
    "Does the {text} describe any of the ten hallmarks of cancer, {labels}? Reply with those it does, with commas "
    "between them, and with None if it describes none.",
    "Multi-label classification of a {text} on cancer biology. Possible labels: {labels}. Output the correct ones in "
    "one comma-separated line; output None if no label is correct.",
)


def _filled(wordings: tuple[str, ...], **values: str) -> tuple[str, ...]:
    return tuple(wording.format(**values) for wording in wordings)


# What GAD's rows are asked where its label 1 (an association) is read as Negative: the two words swapped, so that the
# instruction and the gold answer agree.
LEGACY_GAD = _filled(_ASSOCIATION, positive="Negative", negative="Positive")
_HALLMARK_NAMES = "; ".join(HALLMARKS.values())
WORDINGS: dict[str, tuple[str, ...]] = {
    "i2b2-2010": _filled(_CLINICAL_RELATION, key=_I2B2_KEY),
    "GAD": _filled(_ASSOCIATION, positive="Positive", negative="Negative"),
    "ChemProt": _filled(_CHEMICAL, key=_CHEMPROT_KEY),
    "MedNLI": _filled(_NLI, labels="Entailment, Contradiction or Neutral"),
    "hoc": _filled(_HALLMARKS, text="sentence", labels=_HALLMARK_NAMES),
    "hoc-document": _filled(_HALLMARKS, text="whole text", labels=_HALLMARK_NAMES),
    "sample-relation": _filled(_RELATION, labels="Treats, Causes, No Relations"),
    "sample-nli": _filled(_NLI, labels="Entailment, Contradiction or Neutral"),
}
