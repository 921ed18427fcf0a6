"""BL7: Residual-SUMNet trained adversarially along with CE loss.

python -m isles_jax.main --config=configs/bl7.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=True, adversarial=True, overlap=False)
