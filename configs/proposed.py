"""Proposed: Residual-SUMNet trained adversarially along with CE, LS and BD losses.

python -m isles_jax.main --config=configs/proposed.py
"""

from isles_jax.config import baseline


def get_config():
    return baseline(residual=True, adversarial=True, overlap=True)
