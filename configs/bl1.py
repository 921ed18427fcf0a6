"""BL1: SUMNet trained using only CE loss.

python -m isles_jax.main --config=configs/bl1.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=False, adversarial=False, overlap=False)
