"""BL6: Residual-SUMNet with CE, LS and BD losses.

python -m isles_jax.main --config=configs/bl6.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=True, adversarial=False, overlap=True)
