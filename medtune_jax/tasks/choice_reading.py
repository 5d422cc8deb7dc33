"""Finding the letter of one option in a model's answer; a letter beats text.

Kinds of problems, of a repaired answer: case ("b"), punctuation ("B.", "(B)"), extra_text, option_text (the answer is
the option's words, not its letter), trailing_text, cut_at_marker. Of an unparsable one: empty_output, no_answer,
no_such_option, ambiguous.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase

from medtune_jax.tasks.label_text import Scanner, answer_lines, phrase_pattern

_ALONE = re.compile(r"[(\[\"'*]{0,3}([A-Za-z])[)\]\"'*.:,;]{0,4}")
# What may follow a bare letter: without it, "A patient" and "B cells" are words.
_AFTER = r"(?=\s*(?:$|[.,;:!?()\[\]\"'*])|\s+(?:[\u2013-]|(?:because|since|as|is|was)(?!\w)))"
_OPENS = r"[\s:=*\"'(\[-]{0,8}(?<!\w)"
_CUE = (
    r"(?<!\w)(?i:(?:answer|ans|option|choice|correct|letter)\.?"
    r"(?:\s{1,4}(?:is|was|(?:would|should|must|will)\s{1,4}be))?"
    r"(?:\s{1,4}(?:therefore|thus|hence|clearly|probably|(?:most\s{1,4})?likely|option|choice|letter))?"
    rf"|it(?:['\u2019]s|\s{{1,4}}is|\s{{1,4}}would\s{{1,4}}be)){_OPENS}"
)
_BOXED = r"\\boxed\{\s{0,2}(?:\\text\{)?"
# "the answer is a .." is an article; "option a", "answer: a" are not.
_CUE_OF_SMALL = rf"(?<!\w)(?i:option|choice|(?:answer|ans)\s{{0,2}}[.:=]){_OPENS}"
_ANSWER_IS = (
    r"[*_]{0,3}(?i:(?:so|therefore|thus|hence|the|my|final|correct|best)[\s,]{1,4}){0,4}"
    r"(?i:answer|ans)(?:[.:=]|\s{1,4}is:?)\s{0,4}"
)
_ONLY_ANSWER = re.compile(rf"{_ANSWER_IS}[*(\[]{{0,4}}([A-Za-z])[)\].*\s]{{0,4}}")
_LEADING = re.compile(rf"(?:{_ANSWER_IS})?[(\[*]{{0,3}}([A-Z])(?:[.):\]*]{{1,4}}\s*|,\s+|\s+)(.+)", re.DOTALL)
_STARTS_LIKE_A_LETTER = re.compile(r"[A-Za-z](?!\w)..")
_ITS_LETTER = re.compile(rf"(?:{_BOXED}|{_CUE}|\W{{0,8}})([A-Za-z])(?!\w)")
_LETTER_AFTER_TEXT = re.compile(r"(.+?)\s{0,2}[(\[]([A-Z])[)\]]", re.DOTALL)
_ARTICLE = re.compile(r"(?:.*\W)?A\s+(\S.*)", re.DOTALL)
_ANOTHER = re.compile(r"[)\]\s]{0,3}(?:[,/&]\s{0,2}(?:and\s|or\s)?|(?:and|or)\s)[(\[]?[A-Z](?!\w|\s+\w)")
_LISTED = re.compile(r"[(\[*]{0,2}([A-Za-z])(?:[.):\]]|$)")
_SHORTEST_IN_PROSE = 3  # option texts such as "a" or "ac" are read only where they are the whole answer
_EDGES = " .\"'*"


def find_letter(text: str, options: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Returns (letter, problems), or (None, problems) where no option or more than one is named.

    The first line that is not blank counts, or the next where it names nothing and ends in ":", or else a later line
    that is only "Answer: B". A letter is one that stands alone, in brackets, in `\\boxed{}`, at the start before
    punctuation or "because", "is", .., after "answer", "option", "correct", "it is" and the like, right before or, in
    brackets, after its own option's text, which is then read as a whole ("D. Cannot survive" denies nothing); so the
    article "A" is none, nor is the "B" of "B cells". A letter before another option's text is that letter ("B
    aspirin"), but for "A", which may be the article: ambiguous. Where no letter is found, an option's whole text in any
    case is; a text that several options share is ambiguous, even where the right one is among them, for the reader
    does not know which is right.

    Options that are denied beside exactly one that is not leave that one ("B, not A"); a denied option alone ("option B
    is wrong"), a second letter, and a next line that starts with another option's letter (an echoed list) are
    ambiguous. Linear time (see `Scanner`) for given options; common short forms are read without a pattern of the
    row's options, which takes a hundred times as long to build.
    """
    letters = ascii_uppercase[: len(options)]
    if len(answer := text.strip()) == 1 and answer in letters:
        return answer, ()
    lines, problems = answer_lines(text)
    if not lines:
        return None, (*problems, "empty_output")
    chosen, found = _read_line(lines[0], options)
    if chosen is None and found == ["no_answer"] and len(lines) > 1:
        if lines[0].endswith(":"):
            problems.append("extra_text")
            lines = lines[1:]
            chosen, found = _read_line(lines[0], options)
        else:
            later = {only[1].upper() for only in map(_ONLY_ANSWER.fullmatch, lines) if only} & {*letters}
            if later:
                return (later.pop(), (*problems, "extra_text")) if len(later) == 1 else (None, (*problems, "ambiguous"))
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
    letters_of = defaultdict(list)
    for letter, text in zip(letters, texts, strict=True):
        if text:
            letters_of[text.casefold()].append(letter)
    folded = line.casefold()
    for whole in (folded, folded.strip(_EDGES)):
        if whole in letters_of:
            same = letters_of[whole]
            return (same[0], ["option_text"]) if len(same) == 1 else (None, ["ambiguous"])
    only = _ONLY_ANSWER.fullmatch(line)
    if only and only[1].upper() in letters:
        return only[1].upper(), ["extra_text"]
    for letter, text in _beside(line):
        if letter in letters and text and text == texts[letters.index(letter)].strip(_EDGES).casefold():
            return letter, ["extra_text"]
    marked = Scanner(_letter_pattern(texts)).named(line)
    if marked:
        named = [(_letter_of(one.phrase, texts), one) for one in marked]
        affirmed = {letter for letter, one in named if not one.denied}
        if (
            len(affirmed) != 1
            or any(one.denied and letter in affirmed for letter, one in named)
            or any(_ANOTHER.match(line, one.end) or _may_be_article(one.phrase, texts) for _, one in named)
        ):
            return None, ["ambiguous"]
        chosen = affirmed.pop()
        if chosen in letters:
            return chosen, ["extra_text"]
        if not alone:
            return None, ["no_such_option"]
    found, problems = _read_text(folded, letters_of)
    return found, ["no_such_option"] if alone and found is None else problems


def _beside(line: str) -> Iterator[tuple[str, str]]:
    """Yields (letter, folded text) of a line that is "B. text", "Answer: (B) text" or "text (B)" and nothing else."""
    if leading := _LEADING.fullmatch(line):
        yield leading[1], leading[2].strip(_EDGES).casefold()
    if after := _LETTER_AFTER_TEXT.fullmatch(line.rstrip(_EDGES)):
        yield after[2], after[1].strip(_EDGES).casefold()


def _letter_pattern(texts: Sequence[str]) -> str:
    """Returns the pattern of a letter in prose, with its own option's text where that stands beside it.

    The "E." of an option "E. coli" is no letter where the whole text stands there.
    """
    guarded = [re.escape(text) for text in texts if _STARTS_LIKE_A_LETTER.match(text)]
    guard = rf"(?!(?i:{'|'.join(guarded)})(?!\w))" if guarded else ""
    last = ascii_uppercase[len(texts) - 1]
    own = [
        (letter, rf"(?i:{re.escape(text)})(?!\w)") for letter, text in zip(ascii_uppercase, texts, strict=False) if text
    ]
    before = [rf"(?:[{one}{one.lower()}][.):\]]|{one}[\s,;*])[)\].:,;*\s\"'\u2013-]{{0,6}}{text}" for one, text in own]
    after = [rf"(?<!\w){text}\s{{0,2}}[(\[]{one}[)\]]" for one, text in own]
    return "|".join(
        (
            *after,
            *([rf"(?:{_CUE}|(?<!\w)[(\[*]{{0,3}})(?:{'|'.join(before)})"] if own else []),
            r"[(\[][A-Za-z][)\]]",
            rf"{_BOXED}[A-Z]\}}",
            *([rf"(?:{_CUE}|^){guard}[A-{last}]\s{{1,4}}(?:{'|'.join(text for _, text in own)})"] if own else []),
            rf"^{guard}[A-Za-z]\)",
            rf"^\*{{0,2}}{guard}[A-Z]{_AFTER}",
            rf"{_CUE}{guard}[A-Zb-{last.lower()}]{_AFTER}",
            rf"{_CUE_OF_SMALL}{guard}[a-z]{_AFTER}",
        )
    )


def _letter_of(phrase: str, texts: Sequence[str]) -> str:
    after = _LETTER_AFTER_TEXT.fullmatch(phrase)
    if after is not None:
        at = ascii_uppercase.index(after[2])
        if at < len(texts) and after[1].casefold() == texts[at].casefold():
            return after[2]
    found = _ITS_LETTER.match(phrase)
    assert found is not None  # every other pattern of a letter begins so
    return found[1].upper()


def _may_be_article(phrase: str, texts: Sequence[str]) -> bool:
    """Whether the letter is an "A" before the text of another option."""
    found = _ARTICLE.fullmatch(phrase)
    return found is not None and found[1].casefold() in {text.casefold() for text in texts[1:]} - {texts[0].casefold()}


def _read_text(line: str, letters_of: Mapping[str, Sequence[str]]) -> tuple[str | None, list[str]]:
    """Returns (letter or None, problems) of a folded line that names no letter but, perhaps, options in words."""
    long = [text for text in letters_of if len(text) >= _SHORTEST_IN_PROSE]
    named = Scanner(phrase_pattern(long)).named(line) if long else []
    if not named:
        return None, ["no_answer"]
    affirmed = {letter for one in named if not one.denied for letter in letters_of[one.phrase]}
    if len(affirmed) != 1 or any(one.denied and affirmed & {*letters_of[one.phrase]} for one in named):
        return None, ["ambiguous"]
    return affirmed.pop(), ["option_text", "extra_text"]
