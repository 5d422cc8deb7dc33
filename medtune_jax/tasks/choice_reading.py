"""Finding the letter of one option in a model's answer; a letter beats text.

Kinds of problems, of a repaired answer: case ("b"), punctuation ("B.", "(B)"), extra_text, option_text (the answer is
the option's words, not its letter), trailing_text, cut_at_marker. Of an unparsable one: empty_output, no_answer,
no_such_option, ambiguous.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from string import ascii_uppercase

from medtune_jax.tasks.label_text import Scanner, answer_lines, phrase_pattern

_ALONE = re.compile(r"[(\[\"'*]{0,3}([A-Za-z])[)\]\"'*.:,;]{0,4}")
# What may follow a bare letter: without it, "A patient" and "B cells" are words.
_AFTER = r"(?=\s*(?:$|[.,;:!?()\[\]\"'*])|\s+(?:[\u2013-]|(?:because|since|as|is|was)(?!\w)))"
_CUE = r"(?<!\w)(?i:answer|option|choice)(?i:\s{1,4}is)?[\s:=*\"'(\[-]{0,8}(?<!\w)"
_STARTS_LIKE_A_LETTER = re.compile(r"[A-Za-z](?!\w)..")
_ITS_LETTER = re.compile(r"\W*([A-Za-z])(?!\w)|.*?([A-Za-z])\W*$", re.DOTALL)
_ANOTHER = re.compile(r"[)\]\s]{0,3}(?:[,/&]\s{0,2}(?:and\s|or\s)?|(?:and|or)\s)[(\[]?[A-Z](?!\w|\s+\w)")
_LISTED = re.compile(r"[(\[*]{0,2}([A-Za-z])(?:[.):\]]|$)")
_SHORTEST_IN_PROSE = 3  # option texts such as "a" or "ac" are read only where they are the whole answer


def find_letter(text: str, options: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Returns (letter, problems), or (None, problems) where no option or more than one is named.

    The first line that is not blank counts, or the next where it names nothing and ends in ":". A letter is one that
    stands alone, in brackets, at the start before punctuation or "because", "is", ..., after "answer", "option" or
    "choice", or right before its own option's text; so the article "A" is none, nor is the "B" of "B cells". Where no
    letter is found, an option's whole text in any case is; a text that several options share is ambiguous, even where
    the right one is among them, for the reader does not know which is right. A denied option ("not (B)", "option B is
    wrong"), a second letter, and a next line that starts with another option's letter (an echoed list) are ambiguous.
    Linear time (see `Scanner`) for given options.
    """
    letters = ascii_uppercase[: len(options)]
    if len(answer := text.strip()) == 1 and answer in letters:
        return answer, ()
    lines, problems = answer_lines(text)
    if not lines:
        return None, (*problems, "empty_output")
    chosen, found = _read_line(lines[0], options)
    if chosen is None and found == ["no_answer"] and lines[0].endswith(":") and len(lines) > 1:
        problems.append("extra_text")
        lines = lines[1:]
        chosen, found = _read_line(lines[0], options)
    if len(lines) > 1:
        problems.append("trailing_text")
        listed = _LISTED.match(lines[1])
        if chosen is not None and listed and listed[1].upper() in letters and listed[1].upper() != chosen:
            chosen, found = None, ["ambiguous"]
    return chosen, (*problems, *found)


def _read_line(line: str, options: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns (letter or None, problems) of one line."""
    letters = ascii_uppercase[: len(options)]
    texts = [option.strip() for option in options]
    alone = _ALONE.fullmatch(line)
    if alone and alone[1].upper() in letters:
        problems = ["case"] if alone[1].islower() else []
        return alone[1].upper(), problems + ["punctuation"] * (len(line) > 1)
    marked = list(Scanner(_letter_pattern(texts)).named(line))
    if marked:
        named = {_letter_of(one.phrase) for one in marked}
        if len(named) > 1 or any(one.denied or _ANOTHER.match(line, one.end) for one in marked):
            return None, ["ambiguous"]
        letter = named.pop()
        if letter in letters:
            return letter, ["extra_text"]
        if not alone:
            return None, ["no_such_option"]
    chosen, problems = _read_text(line.casefold(), [text.casefold() for text in texts])
    return chosen, ["no_such_option"] if alone and chosen is None else problems


def _letter_pattern(texts: Sequence[str]) -> str:
    """Returns the pattern of a letter in prose: in brackets, at the start, after a cue, before its own option's text.

    The "E." of an option "E. coli" is no letter where the whole text stands there.
    """
    guarded = [re.escape(text) for text in texts if _STARTS_LIKE_A_LETTER.match(text)]
    guard = rf"(?!(?i:{'|'.join(guarded)})(?!\w))" if guarded else ""
    with_text = [
        rf"(?<!\w){letter}[.):]?\s{{1,4}}(?i:{re.escape(text)})(?!\w)"
        for letter, text in zip(ascii_uppercase, texts, strict=False)
        if text
    ]
    return "|".join(
        (
            r"[(\[][A-Za-z][)\]]",
            rf"^{guard}[A-Za-z]\)",
            rf"^\*{{0,2}}{guard}[A-Z]{_AFTER}",
            rf"{_CUE}{guard}[A-Z]{_AFTER}",
            *with_text,
        )
    )


def _letter_of(phrase: str) -> str:
    found = _ITS_LETTER.match(phrase)
    assert found is not None  # every pattern of a letter holds one
    return (found[1] or found[2]).upper()


def _read_text(line: str, texts: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns (letter or None, problems) of a folded line that names no letter; `texts` are folded too."""
    letters_of = defaultdict(list)
    for letter, text in zip(ascii_uppercase, texts, strict=False):
        if text:
            letters_of[text].append(letter)
    for whole in (line, line.strip(" .\"'*")):
        if whole in letters_of:
            letters = letters_of[whole]
            return (letters[0], ["option_text"]) if len(letters) == 1 else (None, ["ambiguous"])
    long = [text for text in letters_of if len(text) >= _SHORTEST_IN_PROSE]
    named = list(Scanner(phrase_pattern(long)).named(line)) if long else []
    if not named:
        return None, ["no_answer"]
    letters = sorted({letter for one in named for letter in letters_of[one.phrase]})
    if len(letters) > 1 or any(one.denied for one in named):
        return None, ["ambiguous"]
    return letters[0], ["option_text", "extra_text"]
