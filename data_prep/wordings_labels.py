"""Instruction wordings of the corpora whose rows have one label or a set of labels."""

from __future__ import annotations

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


WORDINGS: dict[str, tuple[str, ...]] = {
    "sample-relation": tuple(wording.format(labels="Treats, Causes, No Relations") for wording in _RELATION),
    "sample-nli": tuple(wording.format(labels="Entailment, Contradiction or Neutral") for wording in _NLI),
}
