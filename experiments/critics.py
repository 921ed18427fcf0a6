"""How the critics of a study's rows do while they train."""

import csv
import io
from pathlib import Path

import numpy as np

from experiments.study import Seeds, refuse_table
from isles_jax.runtime import files
from isles_jax.scoring.notes import ACCURACY, GRADIENT

# Into so many parts of equal length a training is cut.
PARTS = 8


def write(path: Path, runs: Seeds) -> None:
    """Writes a CSV with one line for each row that has critics and each part of its training.

    `accuracy` is the share of the pairs in which a critic ranks the reference above the prediction: 0.5 is chance.
    `gradient` is that of the adversarial losses at the logits, as a share of that of the other losses. Both are means
    over steps, folds and seeds, and over the critics.
    """
    refuse_table(path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "until_step", "accuracy", "gradient"])
    for name, row in runs.items():
        lines = [line for run in row for fold in run.curves for line in fold if GRADIENT in line]
        last = max((line["step"] for line in lines), default=0)
        for part in range(1, PARTS + 1) if lines else ():
            chosen = [line for line in lines if part - 1 < PARTS * line["step"] / last <= part]
            accuracy = [value for line in chosen for key, value in line.items() if key.startswith(ACCURACY)]
            gradient = [line[GRADIENT] for line in chosen]
            writer.writerow([name, round(part * last / PARTS), f"{np.mean(accuracy):.4f}", f"{np.mean(gradient):.6f}"])
    files.write_atomic(path, text.getvalue())
