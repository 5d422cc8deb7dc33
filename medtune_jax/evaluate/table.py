"""rows.parquet: what each row and document contributed to its source's score, so that any two runs can be paired."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.evaluate import bootstrap, loglikelihood
from medtune_jax.tasks.base import Task

ROW, DOCUMENT = "row", "document"  # what a line of rows.parquet stands for
RESERVED = ("source", "unit", "row", "group", "status")  # columns of rows.parquet that are not statistics


@dataclass(frozen=True)
class Table:
    """What one source's rows (or documents) contributed; N rows, K statistics.

    Attributes:
      rows: [N] positions in the evaluated split; of a document, that of its first row.
      groups: [N] the unit of resampling ("" = the row itself).
      status: [N] exact, repaired or unparsable.
      names: [K] names of the statistics, sorted.
      statistics: float64 [N, K].
    """

    rows: tuple[int, ...]
    groups: tuple[str, ...]
    status: tuple[str, ...]
    names: tuple[str, ...]
    statistics: np.ndarray

    def totals(self) -> dict[str, float]:
        """Returns the exactly rounded sum of each statistic."""
        columns = self.statistics.T.tolist()  # Python floats: fsum walks them far faster than numpy's
        return {name: math.fsum(column) for name, column in zip(self.names, columns, strict=True)}

    def metrics(self, task: Task) -> dict[str, float]:
        """Returns the corpus metrics."""
        totals = {name: np.array(total) for name, total in self.totals().items()}
        return {name: float(value) for name, value in _metrics(task, totals).items()}

    def resampled(self, task: Task, seed: int = 0, resamples: int = bootstrap.RESAMPLES) -> dict[str, np.ndarray]:
        """Returns metric name -> float64 [resamples], resampling groups."""
        totals = bootstrap.resampled_totals(
            self.statistics, bootstrap.group_index(self.groups), resamples=resamples, seed=seed
        )
        return bootstrap.resampled_metrics(totals, self.names, lambda totals: _metrics(task, totals))


def _metrics(task: Task, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**task.metrics(totals), **loglikelihood.metrics(totals)}


def matrix(rows: Sequence[Mapping[str, float]]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns (the sorted names [K], the statistics float64 [N, K]) of rows that all have the same names."""
    names = tuple(sorted(rows[0]))
    statistics = np.empty((len(rows), len(names)))
    for column, name in enumerate(names):
        statistics[:, column] = list(map(itemgetter(name), rows))
    return names, statistics


def rows_parquet(tables: Mapping[str, Table], documents: Mapping[str, Table]) -> bytes:
    """Returns rows.parquet: the RESERVED columns, then every statistic (null where it is another task's)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    units = [(ROW, source, table) for source, table in tables.items()]
    units += [(DOCUMENT, source, table) for source, table in documents.items()]
    names = sorted({name for _, _, table in units for name in table.names})
    parts = []
    for unit, source, table in units:
        columns: dict[str, Any] = {
            "source": pa.array([source] * len(table.rows), pa.string()),
            "unit": pa.array([unit] * len(table.rows), pa.string()),
            "row": pa.array(table.rows, pa.int64()),
            "group": pa.array(table.groups, pa.string()),
            "status": pa.array(table.status, pa.string()),
        }
        for name in names:
            columns[name] = (
                pa.array(table.statistics[:, table.names.index(name)], pa.float64())
                if name in table.names
                else pa.nulls(len(table.rows), pa.float64())
            )
        parts.append(pa.table(columns))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(parts), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_tables(path: Path) -> tuple[dict[str, Table], dict[str, Table]]:
    """Returns (source -> table of its rows, source -> table of its documents where it has one) of a rows.parquet.

    Raises:
      UserError: it is missing, or not one that this version writes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        whole = pq.read_table(path)
        units = list(dict.fromkeys(zip(whole["source"].to_pylist(), whole["unit"].to_pylist(), strict=True)))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}). `medtune score` writes it beside scores.json.") from None
    tables: dict[str, dict[str, Table]] = {ROW: {}, DOCUMENT: {}}
    for source, unit in units:
        part = whole.filter(pc.and_(pc.equal(whole["source"], source), pc.equal(whole["unit"], unit)))
        names = tuple(sorted(n for n in part.column_names if n not in RESERVED and part[n].null_count == 0))
        tables[unit][source] = Table(
            rows=tuple(part["row"].to_pylist()),
            groups=tuple(part["group"].to_pylist()),
            status=tuple(part["status"].to_pylist()),
            names=names,
            statistics=np.stack([part[name].to_numpy() for name in names], axis=1),
        )
    return tables[ROW], tables[DOCUMENT]
