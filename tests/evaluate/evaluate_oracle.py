"""An engine that knows the gold outputs, in place of a model."""

from __future__ import annotations

import re
from types import SimpleNamespace

from medtune_jax.evaluate.predictions import FINAL
from medtune_jax.generate.core import Work
from medtune_jax.generate.results import Generation


class Oracle:
    """An engine that knows the gold outputs, answers from the last row to the first, and can be stopped."""

    def __init__(self, gold):
        self.gold, self.stop_after, self.stop, self.calls = gold, None, None, []
        self.work = Work()
        self.free_bytes = 2.0**30
        self.config = SimpleNamespace(max_positions=4096)
        self.tokenizer = SimpleNamespace(bos_id=1, sha256="t", encode=lambda text: [ord(letter) for letter in text])

    def _answer(self, inputs, reason, skip, on_done, decisions=None):
        wanted = [index for index in reversed(range(len(inputs))) if index not in skip]
        for done, index in enumerate(wanted):
            if done == self.stop_after:
                self.stop()
            text = self.gold[inputs[index]]
            on_done(index, Generation((5, 6), text, reason, 3, decisions[index] if decisions else 2))

    def keep_budget(self, free_bytes):
        """Its batches have no memory."""

    def decode_template(self, requests, template, *, skip, on_done, batch_size=None):
        self.calls.append([request.input for index, request in enumerate(requests) if index not in skip])
        assert all(request.allowed.spans(self.gold[request.input]) is not None for request in requests)
        slots = [len(request.allowed.slots) for request in requests]
        self._answer([request.input for request in requests], "constrained", skip, on_done, slots)

    def loglikelihoods(self, requests, template, *, skip, on_done, batch_size=None):
        self.calls.append([index for index in range(len(requests)) if index not in skip])
        for done, index in enumerate(self.calls[-1]):
            if done == self.stop_after:
                self.stop()
            gold = self.gold[requests[index].input]
            values = {text: -1.5 - i for i, text in enumerate(requests[index].allowed.slots[0].options)}
            values[gold] = -0.05
            on_done(index, Generation((5, 6), gold, "constrained", 1, 1, values))

    def decode_grammar(self, requests, template, *, skip, on_done, batch_size=None):
        self.calls.append([request.number for index, request in enumerate(requests) if index not in skip])
        inputs = self._inputs([request.prompt for request in requests])
        for request, input in zip(requests, inputs, strict=True):
            assert re.fullmatch(request.grammar.text, self.gold[input])
        self._answer(inputs, "constrained", skip, on_done)

    def _inputs(self, prompts):
        texts = ["".join(map(chr, prompt[1:])) for prompt in prompts]
        return [next(input for input in sorted(self.gold, key=len)[::-1] if input in text) for text in texts]

    def generate(self, prompts, *, method, max_new_tokens, seed, rows, skip, on_done, stop=(), batch_size=None):
        inputs = self._inputs(prompts)
        asked = enumerate(zip(rows, max_new_tokens, strict=True))
        self.calls.append([one for index, one in asked if index not in skip])
        self.method, self.seed = method, seed
        self._answer(inputs, "eos", skip, on_done)


def result_bytes(folder, *names):
    """Returns name -> bytes of some files of a result folder."""
    return {name: (folder / name).read_bytes() for name in names or (FINAL, "scores.json", "rows.parquet", "report.md")}
