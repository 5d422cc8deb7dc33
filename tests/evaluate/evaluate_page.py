"""A report page taken apart, as tests look at it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Collects tags, attributes, tables, the text outside scripts and the error data; complains about unbalanced tags.

    Attributes:
      open: what was left open.
      tables: caption -> rows of cell texts, the head first.
    """

    VOID = frozenset({"meta", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self._data = self._caption = ""
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the error list."""
        return json.loads(self._data) if self._data else []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes)))
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if self.open and self.open[-1][1].get("id") == "errors-data":
            self._data += data
        elif not {"script", "style"} & set(inside):
            self.pieces.append(data)
            if "caption" in inside:
                self._caption += data
            elif {"td", "th"} & set(inside):
                row = self.tables[self._caption][-1]
                row[-1] = " ".join(f"{row[-1]} {data}".split())

    def table(self, caption: str) -> list[list[str]]:
        """Returns the table whose caption begins so."""
        (found,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        return found
