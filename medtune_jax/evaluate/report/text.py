"""What all reports say of scores, in the same words: families of tasks, protocols, figures, published ones' rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medtune_jax.tasks.source import UNSTATED

Entry = Mapping[str, Any]  # what scores.json says of one source

FAMILIES = {
    "Entities": ("ner",),
    "Relations and inference": ("relation", "nli", "label"),
    "Document labels": ("labels",),
    "Multiple choice": ("choice",),
    "Extraction": ("extract",),
    "Free text": ("text",),
}
OTHER = "Other tasks"
STATUSES = ("exact", "repaired", "unparsable")
COUNTS = ("gold", "predicted", "correct")
RATES = ("precision", "recall", "f1")
NOT_SHOWN = (
    "Texts of credentialed sources are not shown; they lie in errors.jsonl. To show them, score again with "
    "--show_credentialed and keep the reports to yourself."
)

_ABOUT = {
    "aligned": "Each answer is read by its source's task. An answer that cannot be read is unparsable and counts as "
    "wrong, never as the negative class, and so does a prompt that was too long; either touches its own row only.",
    "legacy_medtuned": "These figures follow the scoring scripts that the Llama2-MedTuned authors published, defects "
    "included. They can be set beside the papers' figures of such scripts only, and are not scores of the usual "
    "definitions; for these use protocol aligned.",
}
_READ = {
    "aligned": {
        "ner": "Lines `token : tag`, each split at its last ` : `, are aligned to the tokens of the input by longest "
        "common subsequence; a token without a line is O. f1 counts entities of exact span and type over the corpus, "
        "as seqeval by default; f1_strict lets no entity begin with I.",
        "relation": "One label by name; none or several named is unparsable. f1_positive is micro F1 over the labels "
        "other than the negative one, an unparsable answer counting as one label too many.",
        "nli": "One label by name; none or several named is unparsable.",
        "label": "One label by name; none or several named is unparsable.",
        "labels": "A set of labels, compared as a set; `None` is the empty set and no label. micro_f1 and macro_f1 are "
        "over the labels, in micro_f1 an unparsable answer counts as one label too many; example_f1 is the mean over "
        "rows, accuracy that of whole sets.",
        "choice": "The letter of one option; a letter beats the option's text, an ambiguous answer is unparsable. "
        "accuracy_parsed leaves out unparsable answers.",
        "extract": "A JSON list of names, or an object of such lists; names are compared normalised, any synonym of a "
        "gold item is right, and an item counts once.",
        "text": "The text as it is, line ends and outer white space aside. ROUGE is the mean F1 of rouge-score with "
        "its stemmer, bleu that of sacrebleu over the corpus; a blank answer earns nothing.",
    },
    "legacy_medtuned": {
        "ner": "Lines become a dictionary by token text, so a repeated token keeps one tag; they are cut at every "
        "colon; a token without a tag is O, and so is every tag but B, I and O, which leaves typed corpora no entity.",
        "relation": "The first label that is a substring of the answer counts, in an order that changes from run to "
        "run in the original and is fixed here. An answer without a label is left out, so that all later ones meet the "
        "gold of the row before, and the last gold row is dropped. micro_f1 over all labels is plain accuracy, where "
        "one constant negative answer scores high.",
        "nli": "The answer equals the gold label to the letter or is wrong; one that is no label stops the script.",
    },
}
# Metrics after the leading one; those that are not named here follow by name.
_ORDER = (
    *("f1", "precision", "recall", "f1_strict", "f1_positive", "micro_f1", "macro_f1", "example_f1"),
    *("exact_match", "accuracy", "accuracy_parsed", "accuracy_ll", "accuracy_ll_norm", "echo_rate"),
    *("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"),
)
_METRICS = {
    "accuracy_ll": "the likeliest allowed output by summed log-probability",
    "accuracy_ll_norm": "the likeliest allowed output by log-probability per byte",
}
_BASELINES = {
    "constant": "constant answer",
    "constant_negative": "always negative",
    "train_dictionary": "train dictionary",
}
_DOCUMENTS = ", documents"
_COLUMNS = ("MedTuned 7B", "MedTuned 13B", "BERT class", "other published")


@dataclass(frozen=True)
class Line:
    """One answerer of a source's table.

    Attributes:
      who: its name.
      metrics: metric name -> value in 0..1; empty where there is none, `note` then says why.
      ci95: metric name -> (low, high).
      note: what it was fitted on, or why there is no figure.
    """

    who: str
    metrics: Mapping[str, float]
    ci95: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    def text(self, metric: str) -> str:
        """Returns "64.60 [62.10, 67.02]" in percent, "64.60" without an interval, "" without a value."""
        return "" if metric not in self.metrics else value_text(self.metrics[metric], self.ci95.get(metric))


def lines(entry: Entry) -> list[Line]:
    """Returns this model, then the baselines, each followed by the same over documents where they are scored."""
    found = [Line("this model", entry["metrics"], entry["ci95"]), *_documents("this model", entry)]
    for name, figures in sorted(entry["baselines"].items()):
        who = _BASELINES.get(name, name)
        if "not_available" in figures:
            found.append(Line(who, {}, note=figures["not_available"]))
        else:
            note = f"fitted on {figures['fitted_on']}"
            found += [Line(who, figures["metrics"], figures["ci95"], note), *_documents(who, figures, note)]
    return found


def _documents(who: str, figures: Entry, note: str = "") -> list[Line]:
    documents = figures["documents"]
    return [Line(who + _DOCUMENTS, documents["metrics"], documents["ci95"], note)] if documents else []


def line_notes(entry: Entry) -> list[str]:
    """Returns a sentence for each baseline: what it was fitted on, or why it has no figures."""
    noted = [line for line in lines(entry) if line.note and not line.who.endswith(_DOCUMENTS)]
    return [f"{line.who.capitalize()}: {line.note}." for line in noted]


def family_of(kind: str) -> str:
    """Returns the family of a kind of task, OTHER for an unknown one."""
    return next((family for family, kinds in FAMILIES.items() if kind in kinds), OTHER)


def families(sources: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """Returns family -> source -> entry, families in the order of FAMILIES, only those that have a source."""
    found: dict[str, dict[str, Entry]] = {family: {} for family in (*FAMILIES, OTHER)}
    for name, entry in sources.items():
        found[family_of(entry["task"])][name] = entry
    return {family: entries for family, entries in found.items() if entries}


def protocol_about(protocol: str) -> str:
    """Returns what a protocol's figures are, in a sentence or two."""
    return _ABOUT.get(protocol, "")


def protocol_reading(protocol: str, kinds: Iterable[str]) -> dict[str, str]:
    """Returns kind of task -> how the protocol reads it, of these kinds; kinds read alike share a line."""
    said: dict[str, list[str]] = {}
    present = set(kinds)
    for kind, text in _READ.get(protocol, {}).items():
        if kind in present:
            said.setdefault(text, []).append(kind)
    return {", ".join(of): text for text, of in said.items()}


def metric_names(entry: Entry) -> list[str]:
    """Returns the entry's metrics, the leading one first."""
    ordered = dict.fromkeys((entry["metric"], *_ORDER, *sorted(entry["metrics"])))
    return [name for name in ordered if name in entry["metrics"]]


def metric_note(metric: str) -> str:
    """Returns what a metric is where its name does not say it, else ""."""
    return _METRICS.get(metric, "")


def percent(value: float, digits: int = 2) -> str:
    """Returns a value of 0..1 in percent."""
    return f"{100 * value:.{digits}f}"


def interval_text(ci95: Sequence[float]) -> str:
    """Returns "[62.10, 67.02]"."""
    return f"[{percent(ci95[0])}, {percent(ci95[1])}]"


def value_text(value: float, ci95: Sequence[float] | None = None) -> str:
    """Returns "64.60 [62.10, 67.02]", or "64.60" without an interval."""
    return percent(value) if ci95 is None else f"{percent(value)} {interval_text(ci95)}"


def shares(entry: Entry) -> list[float]:
    """Returns the shares of the rows whose answers were read exactly, read with repairs, not read."""
    return [entry["parse"][status] / entry["n"] for status in STATUSES]


def shares_text(entry: Entry) -> str:
    """Returns "96.7 / 0.0 / 3.3", in percent and in the order of STATUSES."""
    return " / ".join(percent(share, 1) for share in shares(entry))


def baseline_columns(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Returns name -> heading of the baselines that any entry has, the constant answer first."""
    names = {name for entry in entries.values() for name in entry["baselines"]}
    return {name: _BASELINES.get(name, name) for name in sorted(names)}


def published_columns(entries: Mapping[str, Entry]) -> list[str]:
    """Returns the headings under which any entry has a published figure."""
    found = {published_column(figure) for entry in entries.values() for figure in entry["published"]}
    return [column for column in _COLUMNS if column in found]


def published_column(figure: Mapping[str, Any]) -> str:
    """Returns the heading under which a published figure stands."""
    model = figure["model"].casefold()
    if "medtuned" in model and (size := re.search(r"\b(7|13)b\b", model)):
        return f"MedTuned {size[1]}B"
    return "BERT class" if "bert" in model else "other published"


def comparable(figure: Mapping[str, Any], metric: str) -> bool:
    """Returns whether a published figure may be read beside ours: same rows and metric, no scorer known to differ."""
    return figure["rows"] == "same rows" and figure["metric"] == metric and figure["scorer"] != "other scorer"


def marks(figure: Mapping[str, Any], metric: str) -> list[str]:
    """Returns what keeps a published figure apart from ours: its metric, its rows, its scorer."""
    found = [] if figure["metric"] == metric else [figure["metric"]]
    if figure["rows"] != "same rows" and not (figure["rows"] == "other rows" and figure["development"]):
        found.append(figure["rows"])
    found += ["development set"] if figure["development"] else []
    scorer = {"other scorer": "other scorer", "not stated": "scorer unstated"}.get(figure["scorer"])
    return found + ([scorer] if scorer else [])


def published_text(figure: Mapping[str, Any], metric: str) -> str:
    """Returns the value, in parentheses where it is not comparable."""
    value = percent(figure["value"])
    return value if comparable(figure, metric) else f"({value})"


def rows_text(figure: Mapping[str, Any]) -> str:
    """Returns "validation split, 923 rows; other rows" and the like."""
    if figure["split"] == UNSTATED:
        return "rows not stated"
    count = f", {figure['n']:,} rows" if figure["n"] else ""
    text = f"{figure['split']} split{' (inferred)' if figure['inferred'] else ''}{count}; {figure['rows']}"
    if figure["rows"] == "rows not verified" and figure["n"]:
        text += f", {'as many as ours' if figure['same_n'] else 'not as many as ours'}"
    return text


def scorer_text(figure: Mapping[str, Any]) -> str:
    """Returns "same scorer", "other scorer (inferred)" and the like."""
    return f"{figure['scorer']}{' (inferred)' if figure['inferred'] and figure['protocol'] else ''}"


def development_note(entries: Mapping[str, Entry]) -> str:
    """Returns a sentence on the published figures that were computed on development sets, "" where none was.

    Those of which this is inferred are named in a sentence of their own.
    """
    notes = []
    for inferred, how in ((False, ""), (True, ", as inferred from the authors' evaluation rows")):
        models: dict[str, list[str]] = {}
        for name, entry in entries.items():
            for figure in entry["published"]:
                if figure["development"] and figure["inferred"] == inferred:
                    count = f" ({figure['n']:,} rows)" if figure["n"] else ""
                    models.setdefault(figure["model"], []).append(f"{name}{count}")
        joined: dict[str, list[str]] = {}
        for model, names in models.items():
            joined.setdefault(", ".join(names), []).append(model)
        said = "; ".join(f"{' and '.join(of)} on {names}" for names, of in joined.items())
        notes += [f"Computed on development sets, not on test rows{how}: {said}."] if said else []
    return " ".join(notes)


def split_text(entry: Entry) -> str:
    """Returns which official split the rows are, by their gold hash."""
    return f"official {entry['split']} split" if entry["split"] else "not the rows of an official split we know"


def rows_line(entry: Entry) -> str:
    """Returns one sentence on which rows were scored and how they were resampled."""
    unit = f"{entry['groups']:,} groups" if entry["groups"] else "rows"
    documents = f"; {entry['documents']['n']:,} documents" if entry["documents"] else ""
    repaired = entry["gold"]["repaired"]
    gold = f"; {repaired:,} gold outputs are read with repairs" if repaired else ""
    return (
        f"{entry['n']:,} rows{documents}, {split_text(entry)}; 95% intervals, bootstrap over {unit}{gold}; "
        f"gold {entry['gold_sha256'][:12]}."
    )


def parse_line(entry: Entry) -> str:
    """Returns one sentence on how the answers could be read."""
    text = ", ".join(f"{status} {percent(share)}%" for status, share in zip(STATUSES, shares(entry), strict=True))
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in entry["parse"]["kinds"].items())
    cut = {"length": "cut off at the budget", "prompt_too_long": "prompt too long"}
    ends = entry["finish_reasons"]
    ended = ", ".join(f"{said} {ends[why]:,}" for why, said in cut.items() if why in ends)
    return f"Answers: {text}." + (f" Defects: {kinds}." if kinds else "") + (f" Rows {ended}." if ended else "")


def legacy_line(entry: Entry) -> str:
    """Returns what the authors' script does on these answers, "" where there is nothing to say."""
    legacy = entry.get("legacy") or {}
    said = []
    if legacy.get("crash"):
        said.append(f"The authors' script stops here ({legacy['crash']}); figures: {legacy['crash_figures']}.")
    if legacy.get("label_order"):
        said.append(f"Order of labels: {', '.join(legacy['label_order'])}.")
    found = [(name, legacy[f"{name}_order"]) for name in ("best", "worst") if legacy.get(f"{name}_order")]
    said += [f"{name.capitalize()} order: micro_f1 {percent(of['micro_f1'])}." for name, of in found]
    return " ".join(said)


def stops(entry: Entry) -> bool:
    """Returns whether the authors' script stops with an error on these answers."""
    return bool((entry.get("legacy") or {}).get("crash"))


def kinds_text(errors: Sequence[Mapping[str, Any]]) -> str:
    """Returns "boundary 12, missed 3" of errors."""
    counts = sorted(Counter(error["kind"] for error in errors).items())
    return ", ".join(f"{kind} {count:,}" for kind, count in counts)


def by_source(errors: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns source -> its errors, in their order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for error in errors:
        found.setdefault(error["source"], []).append(error)
    return found


def label_rates(breakdown: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns label -> gold, predicted and correct counts with precision, recall and f1, of either kind of breakdown.

    A rate without any case is left out.
    """
    counts = breakdown.get("per_label")
    if counts is None:
        confusion = breakdown.get("confusion", {})
        counts = {
            label: {
                "gold": sum(row.values()),
                "predicted": sum(other[label] for other in confusion.values()),
                "correct": row[label],
            }
            for label, row in confusion.items()
        }
    found = {}
    for label, of in counts.items():
        parts = {"precision": of["predicted"], "recall": of["gold"], "f1": (of["gold"] + of["predicted"]) / 2}
        found[label] = {**of, **{name: of["correct"] / whole for name, whole in parts.items() if whole}}
    return found


def provenance_items(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (name, value) pairs of the provenance, nested names joined by a dot."""
    items: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value):
                walk(f"{prefix}.{key}" if prefix else str(key), value[key])
        elif isinstance(value, list | tuple):
            items.append((prefix, ", ".join(map(str, value))))
        else:
            items.append((prefix, "" if value is None else str(value)))

    walk("", document["provenance"])
    return items


def chips(document: Mapping[str, Any]) -> list[str]:
    """Returns what tells this evaluation from another, each in a few words."""
    provenance = document["provenance"]
    decoding = provenance.get("decoding")
    found = [f"protocol {document['protocol']}"]
    if isinstance(decoding, Mapping) and "method" in decoding:
        found.append(f"{decoding['method']} decoding")
    if provenance.get("shots"):
        found.append(f"{provenance['shots']}-shot")
    found += [f"{name} {provenance[name]}" for name in ("template", "split") if provenance.get(name)]
    if provenance.get("limit"):
        found.append(f"only the first {provenance['limit']} rows per source")
    return found
