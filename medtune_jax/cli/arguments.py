"""Flags of one verb: absl's own parsing, `--config.group.leaf=value`, values in a row, and the help text."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from absl import flags as absl_flags

from medtune_jax import config_values
from medtune_jax.cli import experiments
from medtune_jax.config import Config
from medtune_jax.errors import UserError

_AS_WRITTEN: Any = {"subsequent_indent": " " * 6, "break_long_words": False, "break_on_hyphens": False}
HELP = ("--help", "-h", "-help", "--helpfull")


def parse(module: ModuleType, argv: Sequence[str]) -> tuple[absl_flags.FlagValues | None, Config | None]:
    """Reads a verb's command line.

    Returns (flags, config): flags is None when help is asked for; config is None unless the verb takes one.
    Raises UserError for an unknown flag (with absl's suggestion), a bad value, or a stray argument.
    """
    if any(argument in HELP for argument in argv):
        return None, None
    overrides: dict[str, str] = {}
    rest = list(argv)
    takes_config = getattr(module, "TAKES_CONFIG", False)
    if takes_config:
        rest, overrides = split_overrides(rest)
    flags = define(module)
    rest = repeat_flags(rest, getattr(module, "MANY_VALUES", ()))
    try:
        stray = flags(["medtune", *rest])[1:]
    except absl_flags.Error as error:
        raise UserError(_plain(error)) from None
    if stray:
        raise UserError(f"Unexpected argument '{stray[0]}': flags are written --name=value.")
    if not takes_config:
        return flags, None
    if flags.config:
        base = experiments.load(flags.config)
    else:
        base = module.base_config(flags) if hasattr(module, "base_config") else Config()
    return flags, config_values.override(base, overrides)


def define(module: ModuleType) -> absl_flags.FlagValues:
    """Returns fresh FlagValues holding the verb's flags and the common ones."""
    flags = absl_flags.FlagValues()
    flags.set_gnu_getopt(True)
    module.define_flags(flags)
    absl_flags.DEFINE_bool(
        "json", False, "Print the result as one JSON object on the last line of stdout.", flag_values=flags
    )
    if getattr(module, "TAKES_CONFIG", False):
        absl_flags.DEFINE_string(
            "config", None, "Experiment: a name below, or a Python file with get_config().", flag_values=flags
        )
    return flags


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.group.leaf=value` (or ` value`) out; returns (the other words, {"group.leaf": "value"})."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith(("--config.", "-config.")):
            rest.append(word)
            continue
        path, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"--config.{path} needs a value: --config.{path}=VALUE.")
        overrides[path] = value
    return rest, overrides


def repeat_flags(argv: Sequence[str], many: Sequence[str]) -> list[str]:
    """Rewrites `--name A B` as `--name=A --name=B` for the flags named in `many`."""
    written: list[str] = []
    current = ""
    for word in argv:
        if word.startswith("-") and word != "-":
            name, equals, _ = word.lstrip("-").partition("=")
            current = name if name in many else ""
            if current and not equals:
                continue
            written.append(word)
        else:
            written.append(f"--{current}={word}" if current else word)
    return written


def refuse_given(flags: absl_flags.FlagValues, names: Sequence[str], where: str, instead: str) -> None:
    """Raises UserError for the first of the flags `names` that has another value than its default."""
    for name in names:
        if flags[name].value != flags[name].default:
            raise UserError(f"--{name} has no effect on {where}: add {instead}, or leave it out.")


def verb_help(module: ModuleType, verb: str, example: str) -> str:
    """Returns what `medtune <verb> --help` prints."""
    flags = define(module)
    lines = [f"medtune {verb}: {module.SUMMARY}", "", inspect.cleandoc(module.__doc__ or ""), "", "Example:"]
    lines += [f"  {example}", "", "Flags:"]
    for name in sorted(set(flags)):
        flag = flags[name]
        value = "" if flag.boolean else "=VALUE"
        shown = "" if flag.default in (None, "", [], False) else f" (default: {flag.default_as_str})"
        lines.append(f"  --{name}{value}")
        lines += textwrap.wrap(f"{' '.join(flag.help.split())}{shown}", 120, initial_indent=" " * 6, **_AS_WRITTEN)
    if getattr(module, "TAKES_CONFIG", False):
        lines += ["", f"Experiments: {', '.join(experiments.names())}", "", "Overrides, with their defaults:"]
        lines += [
            f"  --config.{path}={_typed(config_values.get(Config(), path))}" for path, _, _ in config_values.leaves()
        ]
    return "\n".join(lines)


def _typed(value: Any) -> str:
    """Returns a default as it would be typed after --config.group.leaf=."""
    return ",".join(value) if isinstance(value, tuple) else str(value).lower()


def _plain(error: Exception) -> str:
    """Returns absl's message as a sentence of ours."""
    text = " ".join(str(error).split())
    if text.endswith("must have a value other than None."):
        return f"{text.split('=')[0].removeprefix('flag ')} is required."
    return text if text.endswith((".", "?")) else f"{text}."
