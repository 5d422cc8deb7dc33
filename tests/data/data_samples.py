"""What the tests of data/ build their inputs with."""

import io
from pathlib import Path
from typing import Any

from medtune_jax.tasks.rows import Row

INSTRUCTION = "Mark each word of the text as B, I or O: does a disease mention begin, go on, or is there none?"

TEXT = """Familial Mediterranean fever is caused by mutations in the MEFV gene .
### Instruction: Mark each word of the text as B, I or O: does a disease mention begin, go on, or is there none?
 ### Input: breast and ovarian cancer in 1,234 patients
 ### Output: breast : B
and : O
ovarian : B
cancer : I
Below is an instruction that describes a task. Write a response that appropriately completes the request."""


def train_sentencepiece(folder: Path, **options: Any) -> Path:
    """Writes a tokenizer.model shaped as Llama 2's (BPE, byte fallback, no normalisation) into `folder`."""
    import sentencepiece

    settings: dict[str, Any] = {
        "vocab_size": 380,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 1.0,
        "minloglevel": 2,
    } | options
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 4), model_writer=model, **settings
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def ner_row(tagged: str, source: str = "sample-disease") -> Row:
    """Returns the row of "breast/B cancer/I"."""
    pairs = [word.rsplit("/", 1) for word in tagged.split(" ")]
    output = "\n".join(f"{token} : {tag}" for token, tag in pairs)
    return Row(INSTRUCTION, " ".join(token for token, _ in pairs), output, source)
