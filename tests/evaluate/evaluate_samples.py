"""Made-up predictions of the sample sources, rendered by their own tasks."""

from __future__ import annotations

from dataclasses import replace

from medtune_jax.evaluate.predictions import Prediction
from medtune_jax.tasks.registry import get_source

NER, RELATION, NLI = "sample-disease", "sample-relation", "sample-nli"

_SENTENCES = [
    ("Patients with chronic gout : a study", "O O B I O O O"),
    ("ataxia and telangiectasia were absent", "B O B O O"),
    ("no disease here", "O O O"),
    ("gout gout", "B B"),
    ("The Wilson disease gene", "O B I O"),
]
_RELATIONS = [
    ("Aspirin treats gout .", "Treats"),
    ("Cisplatin led to nephritis .", "Causes"),
    ("None .", "No Relations"),
]
_PAIRS = [
    ("The man is ill .", "He is well .", "Contradiction"),
    ("She has gout .", "She has a disease .", "Entailment"),
    ("He sleeps .", "He dreams .", "Neutral"),
    ("It rains .", "It is wet .", "Entailment"),
]


def prediction(source: str, input: str, output: str, row: int, generated: str | None = None) -> Prediction:
    """Returns a perfect prediction, or one with the text given."""
    return Prediction(
        row=row,
        id=f"{source}-{row}",
        group="",
        source=source,
        instruction="Do it.",
        input=input,
        output=output,
        meta="",
        generated=output if generated is None else generated,
        finish_reason="eos",
        generated_tokens=3,
        key=f"{row:032d}",
    )


def perfect(*sources: str) -> list[Prediction]:
    """Returns the perfect predictions of the sources, all three by default."""
    made = []
    for source in sources or (NER, RELATION, NLI):
        annotations: list[tuple] = {
            NER: [(tuple(text.split(" ")), tuple(tags.split(" "))) for text, tags in _SENTENCES],
            RELATION: _RELATIONS,
            NLI: _PAIRS,
        }[source]
        for annotation in annotations:
            input, output = get_source(source).task.render(annotation)
            made.append(prediction(source, input, output, len(made)))
    return made


def flawed() -> list[Prediction]:
    """Returns predictions with every kind of mistake."""
    rows = perfect()
    texts = {
        0: rows[0].output.replace("chronic : B", "chronic : O").replace("gout : I", "gout : B"),
        1: rows[1].output.replace("ataxia : B", "ataxia : O"),
        2: "I do not know <script>alert(1)</script>",
        3: rows[3].output + "\nextra : B",
        5: "Causes",
        6: "",
        8: "Neutral",
    }
    return [replace(row, generated=texts.get(index, row.generated)) for index, row in enumerate(rows)]
