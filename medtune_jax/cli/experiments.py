"""Experiments by name (the modules of configs/) or by path (any Python file with `get_config() -> Config`)."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import traceback
from pathlib import Path

import medtune_jax.configs as configs
from medtune_jax.config import Config
from medtune_jax.errors import UserError, did_you_mean


def names() -> list[str]:
    """Returns the names that --config knows, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def load(name_or_path: str) -> Config:
    """Returns the experiment; raises UserError for an unknown name or a file that gives no Config."""
    if name_or_path.endswith(".py") or "/" in name_or_path:
        return _at(Path(name_or_path))
    if name_or_path not in names():
        raise UserError(
            f"No experiment is called '{name_or_path}'.{did_you_mean(name_or_path, names())} "
            f"--config takes one of {', '.join(names())}, or the path of a Python file."
        )
    return importlib.import_module(f"{configs.__name__}.{name_or_path}").get_config()


def _at(path: Path) -> Config:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--config={path}: no such Python file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py always has both
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(f"{where}: {traceback.format_exception_only(error)[-1].strip()}") from error
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}; it must return a Config.")
    return config
