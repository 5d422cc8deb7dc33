"""Writing a result file: whole or not at all, and readable by its owner only where its rows are gated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_file(path: Path, data: bytes, private: bool = False) -> None:
    """Writes `data` under a temporary name, syncs it, then renames it to `path` (mode 0600 if private)."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        if private:
            os.chmod(temporary, 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_json(value: Any) -> bytes:
    """Returns indented JSON with sorted keys, the same bytes for the same value; NaN is refused by ValueError."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def to_json_line(value: Any) -> bytes:
    """Returns one line of JSON with its keys in the order of `value`."""
    # A lone surrogate can stand in a str but not in UTF-8; it is escaped so that every text can be written.
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value, allow_nan=False) + "\n").encode()
