"""How answers are found: one frozen value, made of the options in one place and checked there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from medtune_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from medtune_jax.generate.sampling import Beam, Method

Decode = Literal["template", "greedy", "sample", "beam", "loglikelihood"]
Draft = Literal["none", "template", "prompt"]
DECODE: tuple[Decode, ...] = get_args(Decode)
DRAFT: tuple[Draft, ...] = get_args(Draft)
FREE: tuple[Decode, ...] = ("greedy", "sample", "beam")  # the model writes whatever it likes

_SERVES: dict[str, tuple[Decode, ...]] = {  # option -> the methods on which it has an effect
    "max_new_tokens": FREE,
    "temperature": ("sample",),
    "top_k": ("sample",),
    "top_p": ("sample",),
    "min_p": ("sample",),
    "seed": ("sample",),
    "repetition_penalty": ("greedy", "sample"),
    "draft": ("greedy",),
    "num_beams": ("beam",),
    "length_penalty": ("beam",),
}


@dataclass(frozen=True)
class Decoding:
    """What decides a row's answer beside model, prompt and template. How rows are batched is no part of it.

    Attributes:
      method: `template` decides only what the task leaves open, within its grammar where it cannot list its outputs,
        and answers free text greedily; `greedy`, `sample` and `beam` write freely; `loglikelihood` takes the likeliest
        of the outputs that a one-label task allows.
      dtype: of weights and arithmetic, float32 or bfloat16; cache_dtype: of keys and values, None = dtype, or int8.
      max_positions: of prompt and answer together; None = the checkpoint's own.
      max_new_tokens: budget of free decoding; None = each task's own, or less where a row's longest well-formed output
        is far shorter.
      temperature, top_k, top_p, min_p, seed: of `sample`; repetition_penalty: of it and `greedy` (sampling.py).
      num_beams, length_penalty: of `beam`. The authors of Llama2-MedTuned have 4 beams and 512 tokens.
      draft: of `greedy`: what is proposed and verified, several tokens a pass; the text stays greedy's. `template`: the
        row's allowed outputs, where its task has such, else as `prompt`: what followed the last words in the prompt.

    Raises:
      UserError: a method or draft that is unknown; an option that has no effect on the method; a value out of range.
    """

    method: Decode = "template"
    dtype: str = "float32"
    cache_dtype: str | None = None
    max_positions: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_beams: int = 4
    length_penalty: float = 1.0
    draft: Draft = "none"

    def __post_init__(self) -> None:
        for what, value, known in (("decoding", self.method, DECODE), ("draft", self.draft, DRAFT)):
            if value not in known:
                raise UserError(f"Unknown {what} '{value}'.{did_you_mean(value, known)}")
        for option, methods in _SERVES.items():
            if self.method not in methods and getattr(self, option) != _DEFAULTS[option]:
                needed = " or ".join(f"--decode={method}" for method in methods)
                raise UserError(f"--{option} has no effect on --decode={self.method}: add {needed}, or leave it out.")
        if self.draft != "none" and self.repetition_penalty != 1:
            raise UserError("--draft verifies plain greedy decoding: leave out --repetition_penalty, or --draft.")
        if self.method in FREE:
            self.chooser()  # which checks its own values

    def chooser(self) -> Method | Beam:
        """Returns by what free decoding chooses; greedily where the method does not write freely."""
        from medtune_jax.generate.sampling import Beam, Greedy, Sample

        if self.method == "sample":
            return Sample(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)
        if self.method == "beam":
            return Beam(self.num_beams, self.length_penalty)
        return Greedy(self.repetition_penalty)

    def description(self) -> dict[str, Any]:
        """Returns what provenance says and keys hold, JSON-ready: what has an effect, in full.

        What is as it was before an option existed is not named, so that answers of then are still known.
        """
        told: dict[str, Any] = {"method": self.method, "dtype": self.dtype}
        if self.method in FREE:
            told["max_new_tokens"] = self.max_new_tokens or "by task and input"
        if self.method == "sample":
            told |= {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "seed")}
        if self.method == "beam":
            told |= {"num_beams": self.num_beams, "length_penalty": self.length_penalty}
        for name in ("cache_dtype", "max_positions", "min_p", "repetition_penalty", "draft"):
            if getattr(self, name) != _DEFAULTS[name]:
                told[name] = getattr(self, name)
        return told


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Decoding)}
