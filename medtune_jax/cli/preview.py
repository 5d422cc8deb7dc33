"""Shows rows exactly as training would see them, before any money is spent.

Text that bears loss is coloured (without colours: ⟦so⟧), the tokens at which the row's task decides something more
strongly («so»); every line break is shown as ⏎. Below: token ids with the same marks, and the lengths of all rows with
what exceeds --max_length. Under --json, each shown row has its ids, the text of each, and a mark for each: "." no loss,
"L" loss, "D" a decision that bears loss.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from medtune_jax.config import DataConfig
from medtune_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from medtune_jax.data.prompts import Template
    from medtune_jax.data.tokenizer import Tokenizer
    from medtune_jax.tasks.rows import Row

SUMMARY = "rows as text, token ids and loss mask; lengths; what would be cut"

_COLOURS = {".": ("", ""), "L": ("\033[32m", "\033[0m"), "D": ("\033[1;33m", "\033[0m")}
_BRACKETS = {".": ("", ""), "L": ("⟦", "⟧"), "D": ("«", "»")}


def define_flags(flags: absl_flags.FlagValues) -> None:
    defaults = DataConfig()
    text, number = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    text("data", None, "Rows: a folder written by `medtune prepare`, a file, or hf://owner/name.", flag_values=flags)
    text("model", None, "Hugging Face directory whose tokenizer is used.", flag_values=flags)
    text("template", defaults.template, "Prompt template.", flag_values=flags)
    text("split", "train", "Split to show.", flag_values=flags)
    absl_flags.DEFINE_list("sources", [], "Comma-separated sources to show; empty = all.", flag_values=flags)
    number("rows", 3, "How many rows to show, taken from the sources in turn.", lower_bound=0, flag_values=flags)
    number("max_length", defaults.max_length, "Positions of a training sequence.", lower_bound=2, flag_values=flags)
    for name in ("data", "model"):
        absl_flags.mark_flag_as_required(name, flags)


def run(flags: absl_flags.FlagValues) -> dict[str, Any]:
    import numpy as np

    from medtune_jax.data import encode, prompts, tokenizer
    from medtune_jax.tasks.rows import read_rows

    template = prompts.get_template(flags.template)
    front = tokenizer.load_tokenizer(flags.model)
    _check_against_model(front, Path(flags.model))
    rows = read_rows(flags.data, flags.split, flags.sources)
    encoded, _ = encode.encode_rows(front, template, rows)
    by_source: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_source[row.source].append(index)
    in_turn = sorted((turn, index) for members in by_source.values() for turn, index in enumerate(members))
    parts = {"all": np.arange(len(rows)), **{name: np.asarray(by_source[name]) for name in sorted(by_source)}}
    return {
        "data": str(flags.data),
        "split": flags.split,
        "model": str(flags.model),
        "template": template.name,
        "max_length": flags.max_length,
        "rows": [_shown(front, template, rows[i], i, flags.max_length) for _, i in in_turn[: flags.rows]],
        "lengths": {
            name: _lengths(encoded.lengths[members], encoded.loss_tokens[members], flags.max_length)
            for name, members in parts.items()
        },
    }


def human(result: dict[str, Any]) -> str:
    """Returns the result as text, coloured where stdout is a terminal and NO_COLOR is not set."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines: list[str] = []
    for row in result["rows"]:
        fits = "" if row["length"] <= result["max_length"] else f", TOO LONG for {result['max_length']}"
        lines += [
            f"Row {row['row']}, source {row['source'] or '(blank)'}: {row['length']} tokens, {row['loss_tokens']} bear "
            f"loss, {row['decision_tokens']} of them decide{fits}",
            _marked([piece.replace("\n", "⏎\n") for piece in row["pieces"]], row["marks"], "", colour),
            _marked([str(i) for i in row["ids"]], row["marks"], " ", colour),
            "",
        ]
    lines.append(f"Lengths in tokens, template {result['template']}, BOS and EOS included:")
    head = ("rows", "mean", "p50", "p95", "p99", "max", "loss", "overlong")
    width = max(len(name) for name in ("source", *result["lengths"]))
    lines.append(f"  {'source':<{width}}" + "".join(f"{name:>9}" for name in head))
    for name, found in result["lengths"].items():
        numbers = [found["rows"], found["mean"], *(found[key] for key in head[2:6])]
        cells = [*numbers, f"{found['loss_share']:.1%}", found["overlong"]]
        lines.append(f"  {name or '(blank)':<{width}}" + "".join(f"{cell!s:>9}" for cell in cells))
    overlong, cut = result["lengths"]["all"]["overlong"], result["lengths"]["all"]["cut_tokens"]
    if overlong:
        lines.append(
            f"{overlong} rows exceed max_length={result['max_length']}, together by {cut} tokens: "
            "data.overlong=error refuses them, drop leaves them out, truncate_input shortens their inputs."
        )
    else:
        lines.append(f"No row exceeds max_length={result['max_length']}.")
    return "\n".join(lines)


def _check_against_model(front: Tokenizer, folder: Path) -> None:
    from medtune_jax.data.tokenizer import check_vocab

    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        vocab_size = json.loads(path.read_text(encoding="utf-8")).get("vocab_size")
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if isinstance(vocab_size, int):
        check_vocab(front, vocab_size)


def _shown(front: Tokenizer, template: Template, row: Row, index: int, max_length: int) -> dict[str, Any]:
    """Returns one row as the result holds it; decisions are found by weighing them 2."""
    from medtune_jax.data.encode import encode_row

    encoded = encode_row(front, template, row, decision_weight=2.0)
    text = template.prompt(row.instruction, row.input) + template.completion(row.output)
    spans = front.encode_with_offsets(text)[1]
    # The ids of one character's bytes share its span: the first shows it, the others show nothing.
    repeated = [i > 0 and span == spans[i - 1] for i, span in enumerate(spans)]
    pieces = ["" if again else text[start:end] for (start, end), again in zip(spans, repeated, strict=True)]
    marks = "".join(".LD"[int(weight)] for weight in encoded.weights)
    return {
        "row": index,
        "source": row.source,
        "id": row.id,
        "length": len(encoded.tokens),
        "prompt_tokens": encoded.prompt_length,
        "loss_tokens": len(marks) - marks.count("."),
        "decision_tokens": marks.count("D"),
        "fits": len(encoded.tokens) <= max_length,
        "ids": encoded.tokens.tolist(),
        "pieces": ["<BOS>", *pieces, "<EOS>"],
        "marks": marks,
    }


def _lengths(lengths: np.ndarray, loss_tokens: np.ndarray, max_length: int) -> dict[str, Any]:
    import numpy as np

    over = lengths[lengths > max_length]
    return {
        "rows": len(lengths),
        "mean": round(float(lengths.mean()), 1),
        **{f"p{q}": int(np.percentile(lengths, q, method="inverted_cdf")) for q in (50, 95, 99)},
        "max": int(lengths.max()),
        "tokens": int(lengths.sum()),
        "loss_share": round(float(loss_tokens.sum() / lengths.sum()), 4),
        "overlong": len(over),
        "cut_tokens": int((over - max_length).sum()),
    }


def _marked(pieces: Sequence[str], marks: str, between: str, colour: bool) -> str:
    """Joins pieces, setting off each run of equal marks."""
    signs = _COLOURS if colour else _BRACKETS
    runs = []
    for mark, members in groupby(zip(marks, pieces, strict=True), key=lambda pair: pair[0]):
        opening, closing = signs[mark]
        runs.append(opening + between.join(piece for _, piece in members) + closing)
    return between.join(runs)
