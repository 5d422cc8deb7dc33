"""How a run is laid out does not change its numbers: tuning x packing x accumulation x mesh x processes.

Float32, no dropout. Of each cell, against one device with padded rows and no accumulation:
- losses and gradient norms of four updates agree within 1e-5 (relative), the parameters after them within 1e-4
  (relative L2 of each array): sums in another order, through Adam;
- what was saved on other devices, or in another number of processes, is loaded bit for bit, and the losses after it
  agree with those of the run that was not moved within 1e-5.
"""

from pathlib import Path

import numpy as np
import pytest
from grid import FACTORS, SAVED, cover, distances, every_cell, origin, pairs, run_jobs, with_references


def test_the_cover_holds_every_pair_in_few_cells():
    assert set().union(*map(pairs, cover())) == set().union(*map(pairs, every_cell()))
    assert len(every_cell()) == 2 * 2 * 2 * (5 * 2 - 1) and len(FACTORS) == 5
    assert len(cover()) <= 12


def run_all(cells, model_folder: Path, folder: Path) -> None:
    on_one, on_eight = ([c for c in cells if c.processes == 1 and (c.mesh == "one") == one] for one in (True, False))
    first = [(cell, True, None) for cell in on_one] + [(cell, True, cell.on_one_device) for cell in on_eight]
    run_jobs(first, 1, model_folder, folder)
    run_jobs([(cell, True, cell.on_one_device) for cell in cells if cell.processes == 2], 2, model_folder, folder)
    run_jobs([(cell, False, start) for cell in on_one if (start := origin(cell, cells))], 1, model_folder, folder)


def check(cells, folder: Path) -> None:
    found = {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}
    worst = {"losses": 0.0, "parameters": 0.0, "moved losses": 0.0}
    for cell in cells:
        ours, reference = found[cell.name], found[cell.reference.name]
        np.testing.assert_allclose(ours["losses"], reference["losses"], rtol=1e-5, err_msg=cell.name)
        worst["losses"] = max(worst["losses"], float(np.abs(ours["losses"] / reference["losses"] - 1).max()))
        names = [name for name in reference if name.startswith("final")]
        apart = distances((ours[name], reference[name]) for name in names)
        worst["parameters"] = max(worst["parameters"], apart)
        assert apart < 1e-4, cell.name
        if start := origin(cell, cells):
            moved, unmoved = found[f"{cell.name}.moved"], found[start.name]
            for name in (name for name in unmoved if name.startswith("state")):
                np.testing.assert_array_equal(moved[name], unmoved[name], err_msg=f"{start.name} -> {cell.name}")
            np.testing.assert_allclose(moved["losses"], unmoved["losses"][SAVED:], rtol=1e-5, err_msg=cell.name)
            apart = float(np.abs(moved["losses"] / unmoved["losses"][SAVED:] - 1).max())
            worst["moved losses"] = max(worst["moved losses"], apart)
    print({name: f"{value:.1e}" for name, value in worst.items()}, len(cells), "cells")


def test_a_pairwise_cover_of_the_grid_agrees(model_folder, tmp_path):
    cells = with_references(cover())
    run_all(cells, model_folder, tmp_path)
    check(cells, tmp_path)


@pytest.mark.slow
def test_the_full_grid_agrees(model_folder, tmp_path):
    run_all(every_cell(), model_folder, tmp_path)
    check(every_cell(), tmp_path)
