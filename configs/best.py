"""Best: a U-Net with CE, LS and BD losses, stronger augmentation than bl6, and mirrors in training and prediction.

python -m isles_jax.main --config=configs/best.py

Not a system of the paper. Its augmentation pays in trainings that are longer than the phantom's default. On a TPU,
rotations of more than 10 degrees gather single pixels, which is slower there.
"""

from isles_jax.config import baseline


def get_config():
    config = baseline(residual=True, adversarial=False, overlap=True)
    config.name = "best"
    config.model.network = "unet"
    config.model.batch_norm = "all"
    config.augment.flips = "both"
    config.augment.rotation_degrees = 30.0
    config.augment.scale = 0.25
    config.augment.intensity = 0.3
    config.predict.flips = True
    return config
