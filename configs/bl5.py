"""BL5: Residual-SUMNet trained using only CE loss.

python -m isles_jax.main --config=configs/bl5.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=True, adversarial=False, overlap=False)
