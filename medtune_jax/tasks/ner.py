"""Named entity recognition written as one `token : TAG` line per token.

An annotation is (tokens, tags): two tuples of str of one length. Tags are B, I, O, or B-TYPE, I-TYPE, O where the task
names types. The input of a row is its tokens joined by one space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medtune_jax.tasks.alignment import align
from medtune_jax.tasks.base import Allowed, Parsed, RowError, Slot, Task, leading_metric
from medtune_jax.tasks.counts import f1, ratio
from medtune_jax.tasks.ner_baselines import dictionary_tagger
from medtune_jax.tasks.ner_reading import SEPARATOR, LineReader

Annotation = tuple[tuple[str, ...], tuple[str, ...]]
METRICS = ("f1", "precision", "recall", "f1_strict", "accuracy", "echo_rate")
Entity = tuple[str, int, int]  # (type, first token, last token), as seqeval's get_entities gives them


def split_tokens(input: str) -> tuple[str, ...]:
    """Returns the tokens of a row's input; they are separated by single spaces and by nothing else."""
    return tuple(input.split(" ")) if input else ()


class NerTask(Task):
    """Entity spans over given tokens; `labels` are the entity types, empty for plain B/I/O."""

    kind = "ner"
    # The longest gold output of the public corpora is 1,450 Llama-2 tokens (JNLPBA devel); 512 cuts some.
    max_new_tokens = 1536

    def __init__(self, labels: Sequence[str] = (), *, metric: str | None = None):
        """Raises ValueError where there is no such metric."""
        self.labels = tuple(labels)
        self.metric = leading_metric(metric, (*METRICS, *(f"f1/{label}" for label in self.labels)))
        suffixes = [f"-{label}" for label in self.labels] or [""]
        self.tags = ("O", *(prefix + suffix for suffix in suffixes for prefix in "BI"))
        self.follows = frozenset(
            (previous, tag)
            for previous in (None, *self.tags)
            for tag in self.tags
            if not tag.startswith("I") or (previous is not None and previous != "O" and previous[1:] == tag[1:])
        )
        self._reader = LineReader(self.tags)
        self._slot = Slot(self.tags)

    def render(self, annotation: Annotation) -> tuple[str, str]:
        """Returns ("tok tok", "tok : TAG\\ntok : TAG").

        Raises:
          ValueError: unequal lengths, an unknown tag, or a token that is empty or holds a space or a line feed.
        """
        tokens, tags = annotation
        if len(tokens) != len(tags):
            raise ValueError(f"{len(tokens)} tokens but {len(tags)} tags")
        for token in tokens:
            if not token or " " in token or "\n" in token:
                raise ValueError(f"token {token!r} is empty or holds a space or a line feed")
        for tag in tags:
            if tag not in self._reader.tags:
                raise ValueError(f"tag {tag!r} is none of {' '.join(self.tags)}")
        return " ".join(tokens), "\n".join(map(SEPARATOR.join, zip(tokens, tags, strict=True)))

    def parse(self, text: str, input: str) -> Parsed:
        """Reads `token : TAG` lines by the `aligned` protocol; white space around the whole text is no defect.

        The read tokens are aligned to the input's by longest common subsequence (see `align`); an input token without
        a partner is tagged O and counted as missing_token, a read token without one is dropped and counted as
        extra_token. Unparsable where no aligned token carries a legal tag.
        """
        tokens = split_tokens(input)
        for whole in (text, text.strip(" \n\r\t")):
            tags = self._reader.well_formed(whole, tokens)
            if tags is not None:
                return Parsed((tokens, tags))
        if not whole:
            return Parsed(None, ("empty_output",))
        found = self._reader.read(whole, frozenset(tokens))
        pairs = align(tokens, found.tokens)
        problems = found.problems
        problems += ["missing_token"] * (len(tokens) - len(pairs)) + ["extra_token"] * (len(found.tokens) - len(pairs))
        if not any(found.legal[j] for _, j in pairs):
            return Parsed(None, tuple(problems))
        filled = ["O"] * len(tokens)
        for i, j in pairs:
            filled[i] = found.tags[j]
        return Parsed((tokens, tuple(filled)), tuple(problems))

    def allowed(self, input: str) -> Allowed:
        """Returns the echo of the tokens with one tag slot each; I-X only after B-X or I-X."""
        parts: list[str | Slot] = []
        for index, token in enumerate(split_tokens(input)):
            parts += [("\n" if index else "") + token + SEPARATOR, self._slot]
        return Allowed(tuple(parts), self.follows)

    def entities(self, tags: Sequence[str], *, strict: bool = False) -> list[Entity]:
        """Returns seqeval's entities in order: (type, first, last token), last included; the type is "_" if untyped.

        The default mode opens an entity at an orphan I; strict mode (IOB2) drops it.
        """
        if not any(tag != "O" for tag in tags):
            return []
        if strict and not self._is_iob2(tags):
            from seqeval.scheme import IOB2, Tokens

            return [(found.tag, found.start, found.end - 1) for found in Tokens(list(tags), scheme=IOB2).entities]
        from seqeval.metrics.sequence_labeling import get_entities

        return get_entities(list(tags))

    def _is_iob2(self, tags: Sequence[str]) -> bool:
        # Without orphans both modes find the same entities, and the default mode is ten times as fast.
        return all(map(self.follows.__contains__, zip((None, *tags), tags, strict=False)))

    def classes(self, annotation: Annotation) -> tuple[str, ...]:
        """Returns the types of its entities ("_" where untyped)."""
        return tuple(dict.fromkeys(type_ for type_, _, _ in self.entities(annotation[1])))

    def statistics(self, gold: Annotation, parsed: Parsed, input: str) -> dict[str, float]:
        """Returns counts: rows, unparsable, echo (the tokens were repeated exactly), tokens and correct_tokens,
        entities tp/predicted/gold and the same in strict mode, and tp, predicted, gold per type where typed.

        An unparsable row has its gold entities, no predicted ones, no correct token.
        """
        gold_tags = gold[1]
        gold_found = self.entities(gold_tags)
        gold_strict = gold_found if self._is_iob2(gold_tags) else self.entities(gold_tags, strict=True)
        tags = parsed.annotation[1] if parsed.annotation is not None else None
        if tags is None:
            found, strict = [], []
        elif tags == gold_tags:
            found, strict = gold_found, gold_strict
        else:
            found = self.entities(tags)
            strict = found if self._is_iob2(tags) else self.entities(tags, strict=True)
        echoed = tags is not None and not {"missing_token", "extra_token"} & set(parsed.problems)
        counts: dict[str, float] = {
            "rows": 1,
            "unparsable": int(tags is None),
            "echo": int(echoed),
            "tokens": len(gold_tags),
            "correct_tokens": sum(map(str.__eq__, gold_tags, tags)) if tags is not None else 0,
            **_overlap(gold_found, found),
            **{f"{name}_strict": count for name, count in _overlap(gold_strict, strict).items()},
        }
        for label in self.labels:
            of_label = _overlap([e for e in gold_found if e[0] == label], [e for e in found if e[0] == label])
            counts |= {f"{name}/{label}": count for name, count in of_label.items()}
        return counts

    def metrics(self, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns f1, precision, recall (seqeval default mode), f1_strict, accuracy per token, echo_rate, and
        f1/TYPE where typed; 0/0 is 0."""
        scores = {
            "f1": f1(totals["tp"], totals["predicted"], totals["gold"]),
            "precision": ratio(totals["tp"], totals["predicted"]),
            "recall": ratio(totals["tp"], totals["gold"]),
            "f1_strict": f1(totals["tp_strict"], totals["predicted_strict"], totals["gold_strict"]),
            "accuracy": ratio(totals["correct_tokens"], totals["tokens"]),
            "echo_rate": ratio(totals["echo"], totals["rows"]),
        }
        for label in self.labels:
            scores[f"f1/{label}"] = f1(*(totals[f"{name}/{label}"] for name in ("tp", "predicted", "gold")))
        return scores

    def breakdown(self, totals: Mapping[str, float]) -> dict[str, Any]:
        """Returns {"per_label": {type: {"gold", "predicted", "correct"}}} of entities where typed, else {}."""
        names = {"gold": "gold", "predicted": "predicted", "correct": "tp"}
        counts = {label: {name: int(totals[f"{key}/{label}"]) for name, key in names.items()} for label in self.labels}
        return {"per_label": counts} if counts else {}

    def errors(self, gold: Annotation, parsed: Parsed, input: str) -> list[RowError]:
        """Returns the entities that differ, in text order of the gold ones, then the spurious ones.

        A wrong gold entity is `type` where a prediction has its span under another type, else `boundary` where an
        otherwise wrong prediction overlaps it, else `missed`; each prediction explains one gold entity. Unparsable
        rows give one `unparsable` per gold entity, or one without gold. `where` holds [first, last] token indices.
        """
        tokens = gold[0]
        expected: list[Entity] = self.entities(gold[1])
        if parsed.annotation is None:
            unread = [_error("unparsable", tokens, entity, None) for entity in expected]
            return unread or [_error("unparsable", tokens, None, None)]
        found = self.entities(parsed.annotation[1])
        wrong = [entity for entity in found if entity not in set(expected)]
        errors = []
        for entity in (entity for entity in expected if entity not in set(found)):
            rival = next((other for other in wrong if other[1:] == entity[1:]), None)
            kind = "type"
            if rival is None:
                rival = next((other for other in wrong if other[1] <= entity[2] and entity[1] <= other[2]), None)
                kind = "missed" if rival is None else "boundary"
            if rival is not None:
                wrong.remove(rival)
            errors.append(_error(kind, tokens, entity, rival))
        return errors + [_error("spurious", tokens, None, entity) for entity in wrong]

    def baselines(self, train: Sequence[tuple[str, str]]) -> dict[str, Callable[[str], str]]:
        """Returns `constant` (all O) and `train_dictionary` (longest match of the training mentions).

        Training rows that do not parse teach nothing. The case rule is in `dictionary_tagger`.
        """
        mentions = []
        for input, output in train:
            annotation = self.parse(output, input).annotation
            if annotation is not None:
                tokens, tags = annotation
                for type_, first, last in self.entities(tags):
                    mentions.append((type_ if self.labels else "", tokens[first : last + 1]))
        tagger = dictionary_tagger(mentions)

        def constant(input: str) -> str:
            tokens = split_tokens(input)
            return self.render((tokens, ("O",) * len(tokens)))[1]

        def train_dictionary(input: str) -> str:
            tokens = split_tokens(input)
            return self.render((tokens, tuple(tagger(tokens))))[1]

        return {"constant": constant, "train_dictionary": train_dictionary}


def _overlap(gold: list[Entity], found: list[Entity]) -> dict[str, float]:
    return {"tp": len(set(gold) & set(found)), "predicted": len(found), "gold": len(gold)}


def _error(kind: str, tokens: Sequence[str], gold: Entity | None, predicted: Entity | None) -> RowError:
    where: dict[str, object] = {}
    for name, entity in (("gold", gold), ("predicted", predicted)):
        if entity is not None:
            where[name] = [entity[1], entity[2]]
            if entity[0] != "_":
                where[f"{name}_type"] = entity[0]

    def text(entity: Entity | None) -> str:
        return " ".join(tokens[entity[1] : entity[2] + 1]) if entity else ""

    return RowError(kind, text(gold), text(predicted), where)
