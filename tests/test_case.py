"""A case: where its brain is, and the size of its voxels."""

import nibabel as nib
import numpy as np
from helpers import OBLIQUE, spes_folder

from isles_jax.data import layouts
from isles_jax.data.case import Case


def test_brain_mask_and_spacing(tmp_path):
    images = np.zeros((2, 2, 1, 3), np.float32)
    images[0, 0, 0] = (0, np.nan, 0)
    images[0, 1, 0] = (np.nan, 0, -2)
    images[1, 0, 0] = (np.inf, 0, 0)
    np.testing.assert_array_equal(
        Case("a", images, None, np.eye(4), nib.Nifti1Header()).brain[..., 0], [[False, True], [False, False]]
    )
    case = layouts.load(spes_folder(tmp_path), penumbra=1, core=2).cases[0]
    np.testing.assert_allclose(case.spacing_mm, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-6)
