"""Finding one label of a fixed set in a model's text.

Kinds of problems, of a repaired text: case, extra_text (other words in the first line that is not blank),
trailing_text (more lines), cut_at_marker (a line that starts with `###` and what follows it was dropped).
Of an unparsable one: empty_output, no_label, ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKER = "###"
# A word that denies what comes next: "not a ..", "isn't ..", "non-..".
_NEGATION = r"(?:not|no|non|never|neither|nor|without|cannot|\w+n['\u2019]t)(?:\s+(?:(?:an?|the|any)\s+)?|-)"


class LabelFinder:
    """Finds which label a text names; labels differ in more than case and are tried longest first."""

    def __init__(self, labels: Sequence[str]):
        folded = {label.casefold(): label for label in labels}
        if len(folded) != len(labels) or not all(label == label.strip() and label for label in labels):
            raise ValueError(
                f"labels must be non-empty, unpadded, one line each and differ in more than case: {labels}"
            )
        self._by_folded = folded
        longest_first = sorted(folded, key=lambda label: (-len(label), label))
        any_label = "|".join(map(re.escape, longest_first))
        # A label first: "No Relations" may be one itself.
        self._whole_phrase = re.compile(rf"(?<!\w)(?:({any_label})|{_NEGATION}(?:{any_label}))(?!\w)")

    def find(self, text: str) -> tuple[str | None, tuple[str, ...]]:
        """Returns (label, problems), or (None, problems) where no label or more than one is named.

        A text that is a label, white space around it aside, is exact. Otherwise the first line that is not blank must
        name exactly one label as a whole word or phrase in any case; a label inside a longer one named there
        ("Relations" in "No Relations") does not count. A label that is denied ("not a Contradiction") says only
        what the answer is not: ambiguous. Linear time.
        """
        problems: list[str] = []
        lines = []
        for line in text.split("\n"):
            if line.lstrip(" ").startswith(MARKER):
                problems.append("cut_at_marker")
                break
            if line.strip():
                lines.append(line.strip())
        if not lines:
            return None, (*problems, "empty_output")
        if len(lines) > 1:
            problems.append("trailing_text")
        first = lines[0]
        folded = first.casefold()
        named = {match[1] for match in self._whole_phrase.finditer(folded)}  # None where a label is denied
        if len(named) != 1 or None in named:
            return None, (*problems, "ambiguous" if named else "no_label")
        label = self._by_folded[named.pop()]
        if folded != label.casefold():
            problems.append("extra_text")
        elif first != label:
            problems.append("case")
        return label, tuple(problems)
