"""One training step on one device: pure, compiled, the segmenter and its critics together."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array, lax

from isles_jax import losses
from isles_jax.training import optimizers
from isles_jax.training.augment import augment, keep_channels
from isles_jax.training.critics import Metrics, Terms, make_critics
from isles_jax.training.state import State
from isles_jax.training.task import Task

Step = Callable[[State, tuple[Array, Array], Array], tuple[State, Metrics]]


def make_step(task: Task, steps: int, axis_name: str, platform: str | None = None) -> Step:
    """Builds the step of a training of `steps` steps, on one device of the axis `axis_name`.

    The step has no losses with a weight of 0, and no critics if training is not adversarial. The platform, "cpu", "gpu"
    or "tpu", decides how the networks run; None: JAX's default.

    Returns:
      step(state, (images [N, H, W, M], labels [N, H, W]), indices [K, B]) -> (state, metrics): K steps on the slices
      that each row of indices names, B of them on this device; metrics are [K] arrays.
    """
    config = task.config
    rate = optimizers.learning_rate(config, steps)
    optimizer = optimizers.of_segmenter(config, steps)
    platform = platform or jax.default_backend()
    segmenter = task.segmenter(axis_name, steps, platform)
    update_critics, fool_critics = make_critics(task, steps, axis_name, platform)

    def one_step(state: State, data: tuple[Array, Array], indices: Array) -> tuple[State, Metrics]:
        with jax.named_scope("augmentation"):
            images, labels = _load(config, state, data, indices, axis_name)
        where = labels >= 0

        def forward(params: Any) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": state.segmenter.batch_stats}
            logits, updates = segmenter.apply(variables, images, train=True, mutable=["batch_stats"])
            return logits, updates.get("batch_stats", {})

        # The segmenter runs once. Its logits serve the critics' update. Its own update follows with the pullback.
        logits, pullback, batch_stats = jax.vjp(forward, state.segmenter.params, has_aux=True)
        with jax.named_scope("critics"):
            critics, critic_metrics = update_critics(state.critics, logits, labels, where)

        def supervised(logits: Array) -> Terms:
            return _supervised(config, logits, labels, where, axis_name)

        def adversarial(logits: Array) -> Terms:
            return fool_critics(critics, logits, labels, where)

        total, terms, gradient = _weighted("losses", supervised, logits)
        if critics:
            fooling, of_critics, push = _weighted("critics", adversarial, logits)
            # The size of the critics' gradient for the prediction relative to that of the labels; 0 where both are 0.
            beside = jnp.maximum(optax.tree.norm(gradient), jnp.finfo(jnp.float32).tiny)
            critic_metrics["critic_gradient"] = optax.tree.norm(push) / beside
            total += fooling
            terms |= of_critics
            gradient += push
        gradients = lax.pmean(pullback(gradient)[0], axis_name)
        trained = state.segmenter.updated(optimizer, gradients, batch_stats)
        metrics = lax.pmean({"loss": total, **terms, **critic_metrics}, axis_name)
        metrics["learning_rate"] = rate(state.step)
        return dataclasses.replace(state, step=state.step + 1, segmenter=trained, critics=critics), metrics

    def step(state: State, data: tuple[Array, Array], indices: Array) -> tuple[State, Metrics]:
        # A scan of one would still be a loop, and on CPU convolutions inside a loop are many times slower.
        if indices.shape[0] == 1:
            state, metrics = one_step(state, data, indices[0])
            return state, jax.tree.map(lambda x: x[None], metrics)
        return lax.scan(lambda carry, rows: one_step(carry, data, rows), state, indices)

    return step


def _load(
    config: ml_collections.ConfigDict, state: State, data: tuple[Array, Array], indices: Array, axis_name: str
) -> tuple[Array, Array]:
    """This device's slices of the batch, augmented. The keys depend only on the places in the whole batch."""
    images = data[0][indices].astype(jnp.float32)
    labels = data[1][indices].astype(jnp.int32)
    leave_out = config.data.missing == "zero"
    if not (config.augment.enabled or leave_out):
        return images, labels
    places = lax.axis_index(axis_name) * len(indices) + jnp.arange(len(indices))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, state.step), places)
    stored = images
    if config.augment.enabled:
        images, labels = augment(keys, images, labels, **augment_options(config))
    if leave_out:
        # A channel without a file is 0 as stored, and augmentation adds an offset to it.
        kept = keep_channels(keys, jnp.any(stored != 0, axis=(1, 2)))
        images = jnp.where(kept[:, None, None], images, 0.0)
    return images, labels


def augment_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The options of `augment` that a configuration sets."""
    options = config.augment
    return {
        "rotation_degrees": options.rotation_degrees,
        "scale": options.scale,
        "intensity": options.intensity,
        "both": options.flips == "both",
    }


def _weighted(scope: str, losses_of: Callable[[Array], Terms], logits: Array) -> tuple[Array, Metrics, Array]:
    """The weighted sum of some losses, their values by name, and the sum's gradient at the logits."""

    def loss(logits: Array) -> tuple[Array, Metrics]:
        with jax.named_scope(scope):
            terms = losses_of(logits)
        total = jnp.asarray(sum(weight * value for weight, value in terms.values()))
        return total, {name: value for name, (_, value) in terms.items()}

    (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    return total, terms, gradient


def _supervised(config: ml_collections.ConfigDict, logits: Array, labels: Array, where: Array, axis_name: str) -> Terms:
    """The supervised losses that have a weight."""
    weights = config.loss
    # A loss that is a mean over this device's pixels gets this factor: then the mean over devices is the mean over all
    # pixels. Dice and Lovasz-softmax are ratios of sums over pixels, and stay those of this device.
    count = where.sum().astype(jnp.float32)
    share = count / jnp.maximum(lax.pmean(count, axis_name), 1.0)
    lovasz = partial(losses.lovasz_softmax, per_image=weights.lovasz_per_image)
    boundary = partial(losses.boundary_weighted_nll, weight=weights.boundary_weight, size=weights.boundary_size)
    values = {
        "cross_entropy": (weights.cross_entropy, lambda: share * losses.cross_entropy(logits, labels, where=where)),
        "lovasz": (weights.lovasz, lambda: lovasz(logits, labels, where=where)),
        "boundary": (weights.boundary, lambda: share * boundary(logits, labels, where=where)),
        "dice": (weights.dice, lambda: losses.soft_dice(logits, labels, where=where)),
        "focal": (weights.focal, lambda: share * losses.focal(logits, labels, where=where)),
    }
    return {name: (weight, value()) for name, (weight, value) in values.items() if weight}
