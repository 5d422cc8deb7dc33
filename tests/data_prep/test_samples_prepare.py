"""The quickstart's invented corpora lie where the registry expects them, and their answers are not given away."""

import numpy as np

from medtune_jax.data_prep.prepare import prepare
from medtune_jax.data_prep.samples import write_samples
from medtune_jax.tasks.registry import SOURCES
from medtune_jax.tasks.rows import read_rows

NAMES = ("sample-disease", "sample-relation", "sample-nli")


def test_every_split_of_the_samples_is_prepared_and_no_constant_answer_exceeds_one_half(tmp_path):
    write_samples(tmp_path / "raw")
    prepare(tmp_path / "rows", raw_dir=tmp_path / "raw", sources=NAMES)
    for name in NAMES:
        task = SOURCES[name].task
        train, _, test = (read_rows(tmp_path / "rows", split, [name]) for split in ("train", "validation", "test"))
        constant = task.baselines([(row.input, row.output) for row in train])["constant"]
        counts = [
            task.statistics(
                task.parse(row.output, row.input).annotation, task.parse(constant(row.input), row.input), ""
            )
            for row in test
        ]
        totals = {key: np.array(sum(count[key] for count in counts)) for key in counts[0]}
        assert task.metrics(totals)[task.metric] <= 0.5
