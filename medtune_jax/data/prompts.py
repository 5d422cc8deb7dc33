"""Prompt templates: how a row becomes text.

prompt + completion + EOS is the training text; inference uses the same prompt. The strings are exact, to the space: in
Llama 2's vocabulary "### Output:" after a space and after a line break are different tokens, so a model must be asked
with the template that it was tuned with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from medtune_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Template:
    """One way to write a row.

    Attributes:
      name: how the command line and a run's configuration call it.
      prompt_form: text with the fields {instruction} and {input}; everything the model is given.
      completion_form: text with the field {output}; everything the model must write before EOS.
      bare_form: the prompt of a row whose input is empty; None = prompt_form serves these rows too.
    """

    name: str
    prompt_form: str
    completion_form: str
    bare_form: str | None = None

    def prompt(self, instruction: str, input: str) -> str:
        form = self.bare_form if self.bare_form is not None and not input else self.prompt_form
        return form.format(instruction=instruction, input=input)

    def completion(self, output: str) -> str:
        return self.completion_form.format(output=output)

    @property
    def output_at(self) -> int:
        """The character of the completion at which the row's output begins."""
        return self.completion_form.index("{output}")

    @property
    def sha256(self) -> str:
        """Identity of what the template writes; its name does not count."""
        forms = [self.prompt_form, self.completion_form, self.bare_form]
        return hashlib.sha256(json.dumps(forms).encode()).hexdigest()


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # The text on which the Llama2-MedTuned authors trained (their Finetuning/training.py). Their f-string has one
        # space before the 2nd and 3rd "###" and before the last line break; all three are kept.
        Template(
            name="medtuned_train",
            prompt_form="### Instruction: {instruction}\n ### Input: {input}\n ### Output:",
            completion_form=" {output} \n",
        ),
        # The prompt with which the authors evaluated (their evaluation.py). They never trained on it: that the output
        # follows at once, and EOS follows the output, is our assumption.
        Template(
            name="medtuned_eval",
            prompt_form="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Output:\n",
            completion_form="{output}",
        ),
        # Stanford Alpaca's two prompts; there the output follows "### Response:" without a separator, and so here. That
        # BioInstruct was trained with this template is our assumption: its paper's template was not found.
        Template(
            name="alpaca",
            prompt_form=(
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
            ),
            completion_form="{output}",
            bare_form=(
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\n{instruction}\n\n### Response:"
            ),
        ),
    )
}


def get_template(name: str) -> Template:
    """Returns the template of that name; raises UserError with the closest known name."""
    if name not in TEMPLATES:
        raise UserError(f"Unknown template '{name}'.{did_you_mean(name, TEMPLATES)}")
    return TEMPLATES[name]


def choose_name(own: str | None, asked: str | None, force: bool, model: str) -> str | None:
    """Returns the name of the template to ask `model` with: its own unless another is forced; None = neither is named.

    Raises:
      UserError: another than the model's own is asked for and not forced.
    """
    if own is not None and asked is not None and asked != own and not force:
        raise UserError(
            f"{model} was tuned with template '{own}', not '{asked}': leave --template out, or add --force_template."
        )
    return asked or own
