"""BL3: SUMNet trained adversarially along with CE loss.

python -m isles_jax.main --config=configs/bl3.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=False, adversarial=True, overlap=False)
