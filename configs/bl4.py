"""BL4: SUMNet trained adversarially along with CE, LS and BD losses.

python -m isles_jax.main --config=configs/bl4.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=False, adversarial=True, overlap=True)
