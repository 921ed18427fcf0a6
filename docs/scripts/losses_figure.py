"""Draws docs/figures/losses_weights.png (the boundary band and the weight of an error) and losses_lesions.png (the
gradient of each loss for a large and a small lesion).

python docs/scripts/losses_figure.py
"""

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from isles_jax import losses

SIDE = 72


def lesion() -> np.ndarray:
    """A made-up slice: penumbra 1 round an irregular core 2."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE / 2) - 1
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    penumbra = radius < 0.68 + 0.10 * np.sin(3 * angle) + 0.05 * np.cos(5 * angle)
    core = np.hypot(x - 0.1, y + 0.08) < 0.3 + 0.06 * np.sin(4 * angle)
    return (penumbra.astype(int) + (penumbra & core)).astype(np.int32)


def draw_lesions() -> None:
    """The gradient by the lesion's logit in each loss, for the same prediction of a large and of a small lesion."""
    y, x = np.mgrid[:128, :128] - 63.5
    chosen = {"classes": (1,)}
    functions = {
        "cross-entropy": losses.cross_entropy,
        "focal, gamma 2": losses.focal,
        "soft Dice": lambda *a: losses.soft_dice(*a, **chosen),
        "Tversky, beta 0.9": lambda *a: losses.tversky(*a, alpha=0.1, beta=0.9, **chosen),
        "Lovász-softmax": lambda *a: losses.lovasz_softmax(*a, **chosen),
        "boundary-weighted nll": losses.boundary_weighted_nll,
        "boundary distance": lambda a, b: losses.boundary_distance(a, losses.signed_distances(b, 2, (1.0, 1.0))),
    }
    figure, axes = plt.subplots(2, len(functions), figsize=(13, 4.3), layout="constrained")
    for row, (size, radius) in zip(axes, {"large": 30, "small": 5}.items(), strict=True):
        labels = jnp.asarray(np.hypot(x, y) < radius, jnp.int32)
        # The predicted disk is as large as the lesion and lies a quarter of a diameter too far to the right.
        score = jnp.asarray(np.clip(12 - 12 * np.hypot(x - radius / 2, y) / radius, -4, 4), jnp.float32)
        logits = jnp.stack([jnp.zeros_like(score), score], -1)
        for axis, (name, loss) in zip(row, functions.items(), strict=True):
            value, gradient = jax.value_and_grad(loss)(logits, labels)
            descent = -np.asarray(gradient)[..., 1] * labels.size
            extent = np.abs(descent).max()
            axis.imshow(descent, cmap="RdBu_r", vmin=-extent, vmax=extent, interpolation="nearest")
            axis.contour(labels, [0.5], colors="black", linewidths=0.7)
            side = 1.7 * radius
            axis.set(xlim=(63.5 - side + radius / 4, 63.5 + side + radius / 4), ylim=(63.5 + side, 63.5 - side))
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{name}\n" if size == "large" else "", fontsize=9)
            axis.set_xlabel(f"loss {value:.3f}\ngradient up to {extent:.2g}", fontsize=8)
        row[0].set_ylabel(f"{size}: {int(labels.sum())} pixels", fontsize=9)
    figure.savefig("docs/figures/losses_lesions.png", dpi=110)


def draw_weights() -> None:
    labels = lesion()
    rng = np.random.default_rng(0)
    # A network that is mostly right: the core against everything else.
    logits = rng.normal(2.0, 1.6, labels.shape) * np.where(labels == 2, 1, -1)
    core = jnp.asarray(labels == 2, jnp.int32)
    two = jnp.stack([jnp.zeros(labels.shape), jnp.asarray(logits)], -1)
    error = np.asarray(jnp.where(core == 1, 1 - jax.nn.softmax(two)[..., 1], jax.nn.softmax(two)[..., 1]))

    def weights(loss) -> np.ndarray:
        """|d loss / d error|: the gradient by the logit, without the softmax's own factor p (1 - p)."""
        return np.abs(jax.grad(loss)(two)[..., 1]) / (error * (1 - error))

    lovasz = weights(lambda x: losses.lovasz_softmax(x, core, classes=(1,)))
    cross = weights(lambda x: losses.cross_entropy(x, core))

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1, 1.5), layout="constrained")
    palette = np.array([[0.93, 0.93, 0.93], [0.99, 0.78, 0.49], [0.80, 0.33, 0.31]])
    picture = palette[labels]
    picture[np.asarray(losses.boundary_mask(labels, 3))] = (0.13, 0.27, 0.53)
    left.imshow(picture, interpolation="nearest")
    left.set(title="boundary_mask(labels, 3), in blue", xticks=[], yticks=[])
    on = labels == 2
    options = {"s": 5, "linewidths": 0}
    right.scatter(error[on], lovasz[on], color=palette[2], label="Lovász-softmax, pixels of the class", **options)
    right.scatter(error[~on], lovasz[~on], color="0.55", label="Lovász-softmax, other pixels", **options)
    right.scatter(error, cross, color=(0.13, 0.27, 0.53), label="cross-entropy, every pixel", **options)
    right.set(yscale="log", xlabel="error of a pixel (0: right, 1: wrong)", ylabel="weight of the error in the loss")
    right.set(title=f"one class with {on.mean():.0%} of the pixels", ylim=(1e-7, 3e-2))
    right.legend(frameon=False, fontsize=8, loc="lower right", markerscale=2)
    figure.savefig("docs/figures/losses_weights.png", dpi=110)


if __name__ == "__main__":
    draw_weights()
    draw_lesions()
