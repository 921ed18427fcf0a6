"""BL2: SUMNet with CE, LS and BD losses.

python -m isles_jax.main --config=configs/bl2.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=False, adversarial=False, overlap=True)
