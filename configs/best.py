"""Best: Residual-SUMNet with CE, LS and BD losses (bl6), mirrored along both axes in training and prediction.

python -m isles_jax.main --config=configs/best.py

Not a system of the paper. experiments/RESULTS.md says what it reaches beside nnU-Net, and what was tried.
"""

from isles_jax.config import baseline


def get_config():
    config = baseline(residual=True, adversarial=False, overlap=True)
    config.name = "best"
    config.augment.flips = "both"
    config.predict.flips = True
    return config
