"""rows.parquet: what each row contributed to its source's score, so that any two runs can be tested as pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtune_jax.errors import UserError
from medtune_jax.evaluate import bootstrap
from medtune_jax.tasks.base import Task

RESERVED = ("source", "row", "group", "status")  # columns of rows.parquet that are not statistics


@dataclass(frozen=True)
class Table:
    """What one source's rows contributed; N rows, K statistics.

    Attributes:
      rows: [N] positions in the evaluated split.
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

    def metrics(self, task: Task) -> dict[str, float]:
        """Returns the corpus metrics, from exactly rounded sums."""
        totals = {name: np.array(math.fsum(column)) for name, column in zip(self.names, self.statistics.T, strict=True)}
        return {name: float(value) for name, value in task.metrics(totals).items()}

    def resampled(self, task: Task, seed: int = 0, resamples: int = bootstrap.RESAMPLES) -> dict[str, np.ndarray]:
        """Returns metric name -> float64 [resamples], resampling groups."""
        totals = bootstrap.resampled_totals(
            self.statistics, bootstrap.group_index(self.groups), resamples=resamples, seed=seed
        )
        return bootstrap.resampled_metrics(totals, self.names, task.metrics)


def rows_parquet(tables: Mapping[str, Table]) -> bytes:
    """Returns rows.parquet: source, row, group, status, then every statistic (null where it is another task's)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted({name for table in tables.values() for name in table.names})
    parts = []
    for source, table in tables.items():
        columns: dict[str, Any] = {
            "source": pa.array([source] * len(table.rows), pa.string()),
            "row": pa.array(table.rows, pa.int64()),
            "group": pa.array(table.groups, pa.string()),
            "status": pa.array(table.status, pa.string()),
        }
        for name in names:
            values = table.statistics[:, table.names.index(name)] if name in table.names else [None] * len(table.rows)
            columns[name] = pa.array(values, pa.float64())
        parts.append(pa.table(columns))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(parts), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_tables(path: Path) -> dict[str, Table]:
    """Reads rows.parquet back; raises UserError where it is missing or not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        whole = pq.read_table(path)
        sources = whole["source"].to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}). `medtune score` writes it beside scores.json.") from None
    tables = {}
    for source in dict.fromkeys(sources):
        part = whole.filter(pa.compute.equal(whole["source"], source))
        names = tuple(sorted(n for n in part.column_names if n not in RESERVED and part[n].null_count == 0))
        tables[source] = Table(
            rows=tuple(part["row"].to_pylist()),
            groups=tuple(part["group"].to_pylist()),
            status=tuple(part["status"].to_pylist()),
            names=names,
            statistics=np.stack([part[name].to_numpy() for name in names], axis=1),
        )
    return tables
