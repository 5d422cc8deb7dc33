"""The grammar of extraction's JSON: one regular expression of what json.dumps(ensure_ascii=False) writes of names.

It holds in Python's `re` and in Rust's syntax (linear time). It accepts a text if and only if the text is what
`ExtractTask.render` writes of what `ExtractTask.parse` reads in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

# What str.strip removes, beside U+0020 and the control characters, which JSON writes as escapes.
_SPACES = r"\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_INSIDE = r'(?:[^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00(?:0[0-7bef]|1[0-9a-f]))'
_AT_ENDS = rf'(?:[^"\\\x00-\x20{_SPACES}]|\\["\\b]|\\u00(?:0[0-7ef]|1[0-9ab]))'  # without what is stripped
_NAME = f'"{_AT_ENDS}(?:{_INSIDE}*{_AT_ENDS})?"'


def names_regex(fields: Sequence[str], *, least: int, most: int | None) -> str:
    """Returns the regular expression of a list of names, or of an object of one list per field, in their order.

    Args:
      fields: none = a list.
      least, most: names of a list; most None = any number.
    """
    more = f"(?:, {_NAME})*" if most is None else f"(?:, {_NAME}){{0,{most - 1}}}"
    names = _NAME + ("" if most == 1 else more)
    listed = rf"\[{names}\]" if least else rf"\[(?:{names})?\]"
    if not fields:
        return listed
    members = [f"{re.escape(json.dumps(field, ensure_ascii=False))}: {listed}" for field in fields]
    return r"\{" + ", ".join(members) + r"\}"
