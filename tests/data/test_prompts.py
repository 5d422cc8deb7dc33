"""Templates are exact to the space."""

import dataclasses

import pytest

from medtune_jax.data.prompts import TEMPLATES, get_template
from medtune_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "prompt", "completion"),
    [
        ("medtuned_train", "### Instruction: do\n ### Input: this\n ### Output:", " done \n"),
        ("medtuned_eval", "### Instruction:\ndo\n\n### Input:\nthis\n\n### Output:\n", "done"),
        (
            "alpaca",
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\ndo\n\n### Input:\nthis\n\n### Response:",
            "done",
        ),
    ],
)
def test_templates_are_the_documented_strings(name, prompt, completion):
    template = get_template(name)
    assert template.prompt("do", "this") == prompt
    assert template.completion("done") == completion
    assert template.completion("done")[template.output_at :].startswith("done")


def test_alpaca_has_a_second_prompt_for_rows_without_input_and_medtuned_has_not():
    assert get_template("alpaca").prompt("do", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\ndo\n\n### Response:"
    )
    assert get_template("medtuned_train").prompt("do", "") == "### Instruction: do\n ### Input: \n ### Output:"


@pytest.mark.parametrize("name", TEMPLATES)
def test_braces_in_a_row_stay_as_they_are(name):
    template = get_template(name)
    assert "{input} {0}" in template.prompt("{input} {0}", "{output}")
    assert "{output}" in template.prompt("{input} {0}", "{output}")
    assert "{instruction}" in template.completion("{instruction}")


def test_the_hash_is_of_what_is_written_not_of_the_name():
    assert len({template.sha256 for template in TEMPLATES.values()}) == len(TEMPLATES)
    template = get_template("alpaca")
    assert dataclasses.replace(template, name="other").sha256 == template.sha256
    assert dataclasses.replace(template, completion_form=" {output}").sha256 != template.sha256


def test_an_unknown_template_is_refused_with_the_closest_name():
    with pytest.raises(UserError, match=r"'medtuned_trian'.*'medtuned_train'"):
        get_template("medtuned_trian")
