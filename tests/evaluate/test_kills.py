"""A killed evaluation ends with the bytes of an undisturbed one, whatever the moment of the kill."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from evaluate_samples import NER, NLI, perfect

from medtune_jax.convert.tiny import write_tiny_model
from medtune_jax.errors import EXIT_INTERRUPTED
from medtune_jax.tasks.rows import Row, write_rows

WAYS = {  # free text is written up to the last position
    "template": ["--decode=template", "--dtype=bfloat16", "--check_rows=0", "--max_positions=160"],
    "template, 1 shot": ["--decode=template", "--shots=1", "--max_positions=320"],
    "sample": ["--decode=sample", "--seed=3", "--max_new_tokens=12"],
    "greedy": ["--decode=greedy", "--dtype=bfloat16", "--max_new_tokens=12"],
    "drafted": ["--decode=greedy", "--draft=template", "--max_new_tokens=12"],
    "beam": ["--decode=beam", "--num_beams=2", "--dtype=bfloat16", "--max_new_tokens=8"],
}
MOMENTS = [
    *(["answers", 0], ["answers", 1], ["answers", 11], ["answers", 19], ["line", 1], ["line", 4]),
    *(["before", "predictions.jsonl"], ["after", "predictions.jsonl"], ["before", "provenance.json"], ["scoring", 0]),
    *(["before", "rows.parquet"], ["after", "report.html"], ["before", "scores.json"], ["before", "timing.json"]),
]


class Home:
    """A tiny model, rows, and a process that runs evaluations of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        texts = [f"{one.input} {one.output}" for one in perfect()]
        write_tiny_model(folder / "model", texts, max_positions=512)
        (folder / "rows").mkdir()
        rows = [Row("Tag it.", one.input, one.output, NER) for one in perfect(NER)] * 2
        rows += [Row("Which?", one.input, one.output, NLI) for one in perfect(NLI)] * 2
        rows += [Row("Answer.", question, "Rest.", "iCliniq") for question in ("My head aches.", "I fell.")]
        write_rows(folder / "rows" / "test.parquet", rows)
        shown = [Row(one.instruction, f"{one.input} Well .", "", one.source) for one in rows[10:]]
        solved = [("Sick as a dog .", "O O O O O"), ("A gout case .", "O B O O")]
        train = [
            Row("Tag it.", text, "\n".join(f"{a} : {b}" for a, b in zip(text.split(), tags.split(), strict=True)), NER)
            for text, tags in solved
        ]
        train += [Row("Which?", one.input, "Neutral", NLI) for one in shown if one.source == NLI]
        write_rows(folder / "rows" / "train.parquet", [*train, Row("Answer.", "My toe aches.", "Rest.", "iCliniq")])
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "XLA_FLAGS": ""}  # one device
        self._log = open(folder / "log", "wb")  # noqa: SIM115 - closed by `close`
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def evaluate(self, way: str, out: Path, moment: list | None = None, number: int = signal.SIGKILL) -> int:
        """Returns how the process of an evaluation ended: its exit status, or minus the signal that ended it."""
        argv = ["evaluate", f"--model={self.folder / 'model'}", f"--data={self.folder / 'rows'}", f"--out={out}"]
        argv += ["--template=medtuned_train", "--batch_size=4", *WAYS[way]]
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps({"argv": argv, "moment": moment, "number": number}), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline() or 1)

    def undisturbed(self, way: str) -> Path:
        folder = self.folder / way
        if not folder.exists():
            assert self.evaluate(way, folder) == 0, self.log()
        return folder

    def log(self) -> str:
        return (self.folder / "log").read_text()[-3000:]

    def close(self) -> None:
        self._server.communicate()
        self._log.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = Home(tmp_path_factory.mktemp("kills"))
    yield made
    made.close()


def files(folder: Path) -> dict[str, bytes]:
    """Returns name -> bytes of what a result folder holds; times and the lock aside."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("timing.json", ".lock")}


def ended(number: int) -> int:
    return EXIT_INTERRUPTED if number == signal.SIGTERM else -number


def assert_same(home: Home, way: str, out: Path) -> None:
    assert home.evaluate(way, out) == 0, home.log()
    assert files(out) == files(home.undisturbed(way))


@pytest.mark.parametrize(
    ("way", "moments"),
    [
        ("template", [["line", 2], ["answers", 5], ["before", "predictions.jsonl"]]),
        pytest.param("sample", [["answers", 5], ["before", "report.html"]], marks=pytest.mark.slow),
    ],
)
def test_killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run(home, tmp_path, way, moments):
    numbers = itertools.cycle([signal.SIGKILL, signal.SIGTERM])
    for moment, number in zip(moments, numbers, strict=False):
        assert home.evaluate(way, tmp_path / "out", moment, number) == ended(number), home.log()
    assert_same(home, way, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_moment_in_any_way_of_decoding_it_ends_with_the_same_bytes(home, tmp_path, way):
    for index, moment in enumerate(MOMENTS):
        number = (signal.SIGKILL, signal.SIGTERM)[(index + list(WAYS).index(way)) % 2]
        out = tmp_path / str(index)
        assert home.evaluate(way, out, moment, number) == ended(number), (moment, home.log())
        assert_same(home, way, out)
