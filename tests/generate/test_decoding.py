"""How answers are found: an option that does nothing is refused, and what has an effect is told."""

import pytest

from medtune_jax.errors import UserError
from medtune_jax.generate.decoding import DECODE, Decoding
from medtune_jax.generate.sampling import Beam, Greedy, Sample


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("template", {"temperature": 0.5}, "--temperature has no effect on --decode=template: add --decode=sample"),
        ("greedy", {"seed": 1}, "--seed has no effect on --decode=greedy"),
        ("greedy", {"min_p": 0.1}, "--min_p has no effect"),
        ("template", {"max_new_tokens": 5}, "add --decode=greedy or --decode=sample or --decode=beam"),
        (
            "loglikelihood",
            {"draft": "template"},
            "no effect on --decode=loglikelihood: add --decode=greedy",
        ),
        ("sample", {"draft": "prompt"}, "--draft has no effect on --decode=sample"),
        ("greedy", {"num_beams": 2}, "--num_beams has no effect on --decode=greedy: add --decode=beam"),
        ("beam", {"repetition_penalty": 1.2}, "--repetition_penalty has no effect on --decode=beam"),
        ("greedy", {"draft": "prompt", "repetition_penalty": 1.2}, "--draft verifies plain greedy decoding"),
        ("beam", {"num_beams": 0}, "num_beams 0 is below 1"),
        ("sample", {"top_p": 2.0}, "top_p 2.0 is not in"),
        ("beem", {}, "Unknown decoding 'beem'. Did you mean 'beam'"),
        ("greedy", {"draft": "promt"}, "Unknown draft 'promt'. Did you mean 'prompt'"),
    ],
)
def test_options_that_do_nothing_or_cannot_be_are_refused_by_name(method, options, message):
    with pytest.raises(UserError, match=message):
        Decoding(method, **options)


def test_free_decoding_chooses_as_the_options_say():
    assert Decoding("greedy", repetition_penalty=1.2).chooser() == Greedy(1.2)
    assert Decoding("sample", temperature=0.5, top_k=4, top_p=0.9, min_p=0.1).chooser() == Sample(0.5, 4, 0.9, 0.1)
    assert Decoding("beam", num_beams=2, length_penalty=0.6).chooser() == Beam(2, 0.6)
    assert Decoding("template").chooser() == Greedy()  # of its rows of free text


def test_the_description_says_what_has_an_effect_and_as_before_an_option_existed_what_was_said_then():
    assert Decoding().description() == {"method": "template", "dtype": "float32"}
    sample = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3}
    expected = {"method": "sample", "dtype": "float32", "max_new_tokens": "by task and input", **sample}
    assert Decoding("sample", seed=3).description() == expected
    beam = Decoding("beam", max_new_tokens=512, dtype="bfloat16").description()
    assert beam == {
        "method": "beam",
        "dtype": "bfloat16",
        "max_new_tokens": 512,
        "num_beams": 4,
        "length_penalty": 1.0,
    }


@pytest.mark.parametrize("method", DECODE)
@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "bfloat16"},
        {"cache_dtype": "int8"},
        {"max_positions": 9},
        {"max_new_tokens": 7},
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.5},
        {"repetition_penalty": 2.0},
        {"seed": 2},
        {"num_beams": 2},
        {"length_penalty": 2.0},
        {"draft": "prompt"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_option_is_either_refused_or_told(method, changed):
    try:
        decoding = Decoding(method, **changed)
    except UserError:
        return
    assert decoding.description() != Decoding(method).description()
