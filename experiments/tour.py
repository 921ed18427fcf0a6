# %% [markdown]
# A tour in two minutes: a phantom, one fold of Residual-SUMNet trained on it, a look at a patient it has not seen.
#
# Run it whole, `python -m experiments.tour --workdir=runs/tour`, or cell by cell where the editor knows `# %%` (Colab,
# VS Code, Jupyter with jupytext). Any `--config.KEY=VALUE` of the main command may follow. Everything here is made up
# by the phantom; no patient is shown. Needs the extra `report`.

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from experiments.table1 import override
from isles_jax import config, losses, metrics
from isles_jax.cross_validation import cross_validate
from isles_jax.data import layouts

parser = argparse.ArgumentParser(
    prog="python -m experiments.tour", description="Trains one small fold on the phantom and draws a held-out case."
)
parser.add_argument("--workdir", type=Path, default=Path("runs/tour"), help="where all goes (default %(default)s)")
options, others = parser.parse_known_args()  # a notebook's kernel has flags of its own
workdir = options.workdir

# %% [markdown]
# The system without critics (BL6), a quarter of the paper's width, on 12 phantom patients: one fold of the three.

# %%
settings = config.baseline(residual=True, adversarial=False, overlap=True)
settings.update_from_flattened_dict(
    {"data.phantom.cases": 12, "data.phantom.shape": (64, 64, 12), "model.width": 16, "train.epochs": 10, "fold": 0}
)
settings = override(settings, [word for word in others if word.startswith("--config.")])
print(cross_validate(settings, workdir))

# %% [markdown]
# A patient of the held-out fold: the images, what the reference says, what the network says, and its scores.

# %%
dataset = layouts.load(Path(settings.data.root or workdir / "phantom"), penumbra=1, core=2)
cases = {case.name: case for case in dataset.cases}
path = sorted((workdir / "fold_0" / "predictions").iterdir())[0]
case, found = cases[path.name.removesuffix(".nii.gz")], np.asarray(nib.load(path).dataobj)
for value, word in enumerate(dataset.classes, start=1):
    scores = metrics.score(found == value, case.labels == value, case.spacing_mm)
    print(f"{word} of case {case.name}: Dice {scores['dice']:.3f}, volume {scores['volume_pred_ml']:.1f} ml of "
          f"{scores['volume_true_ml']:.1f}")  # fmt: skip

slice_ = int((case.labels > 0).sum(axis=(0, 1)).argmax())
figure, axes = plt.subplots(1, 5, figsize=(13, 3), layout="constrained")
for axis, channel, plane in zip(axes, dataset.channels, np.moveaxis(case.images[:, :, slice_], -1, 0), strict=False):
    axis.imshow(plane.T, cmap="gray")
    axis.set_title(channel)
for axis, title, labels in zip(axes[3:], ("reference", "prediction"), (case.labels, found), strict=True):
    axis.imshow(labels[:, :, slice_].T, cmap="magma", vmin=0, vmax=2, interpolation="nearest")
    axis.set_title(title)
for axis in axes:
    axis.set_axis_off()
figure.suptitle(f"phantom case {case.name}, slice {slice_}: penumbra red, core pale")
figure.savefig(workdir / "tour.png", dpi=110)
print(workdir / "tour.png")

# %% [markdown]
# The losses are plain functions of logits and labels, for any JAX project: here the boundary band of that slice.

# %%
band = losses.boundary_mask(np.asarray(case.labels[:, :, slice_], np.int32), 3)
print(f"{int(band.sum())} of {band.size} pixels of the slice lie on a boundary")
