"""One training step on one device: pure, compiled, the segmenter and its critics together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array, lax

from isles_jax import losses
from isles_jax.networks import critic_channels, make_critic, make_segmenter
from isles_jax.training.augment import augment
from isles_jax.training.state import Network, State, critic_optimizer, learning_rate, segmenter_optimizer

Metrics = dict[str, Array]
Step = Callable[[State, tuple[Array, Array], Array], tuple[State, Metrics]]


def make_step(config: ml_collections.ConfigDict, classes: tuple[str, ...], steps: int, axis_name: str) -> Step:
    """Builds the training step of a configuration.

    Args:
      config: the whole configuration; a loss whose weight is 0, and everything adversarial where it is not enabled,
        is absent from the step.
      classes: names of the foreground classes.
      steps: steps of the whole training, for the schedule.
      axis_name: the device axis.

    Returns:
      step(state, (images [N, H, W, M], labels [N, H, W]), indices [K, B]) -> (state, metrics): K steps on the slices
      that each row of indices names, B of them on this device; metrics are [K] arrays.
    """
    rate = learning_rate(config, steps)
    optimizer = segmenter_optimizer(config, steps)
    segmenter = make_segmenter(config, len(classes) + 1, axis_name, steps)
    update_critics, fool_critics = _adversary(config, classes, steps, axis_name)

    def one_step(state: State, data: tuple[Array, Array], indices: Array) -> tuple[State, Metrics]:
        images, labels = _load(config, state, data, indices, axis_name)
        where = labels >= 0

        def forward(params: Any) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": state.segmenter.batch_stats}
            logits, updates = segmenter.apply(variables, images, train=True, mutable=["batch_stats"])
            return logits, updates.get("batch_stats", {})

        # The segmenter runs once; its logits serve the critics' update and, through the pullback, its own.
        logits, pullback, batch_stats = jax.vjp(forward, state.segmenter.params, has_aux=True)
        critics, critic_metrics = update_critics(state.critics, logits, labels, where)

        def loss(logits: Array) -> tuple[Array, Metrics]:
            terms = _supervised(config, logits, labels, where, axis_name) | fool_critics(critics, logits, labels, where)
            return sum(weight * value for weight, value in terms.values()), {k: v for k, (_, v) in terms.items()}

        (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
        gradients = lax.pmean(pullback(gradient)[0], axis_name)
        updates, opt_state = optimizer.update(gradients, state.segmenter.opt_state, state.segmenter.params)
        params = optax.apply_updates(state.segmenter.params, updates)
        trained = Network(params, batch_stats, opt_state)
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
    """This device's slices of the batch, augmented with keys that depend on the place in the whole batch only."""
    images, labels = (array[indices] for array in data)
    images, labels = images.astype(jnp.float32), labels.astype(jnp.int32)
    options = config.augment
    if not options.enabled:
        return images, labels
    places = lax.axis_index(axis_name) * len(indices) + jnp.arange(len(indices))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, state.step), places)
    return augment(
        keys, images, labels,
        rotation_degrees=options.rotation_degrees, scale=options.scale, intensity=options.intensity,
    )  # fmt: skip


def _supervised(
    config: ml_collections.ConfigDict, logits: Array, labels: Array, where: Array, axis_name: str
) -> dict[str, tuple[float, Array]]:
    """The supervised losses that have a weight: name -> (weight, value)."""
    weights = config.loss
    # A masked mean divides by this device's pixels; this makes the mean over devices the mean over all pixels.
    count = where.sum().astype(jnp.float32)
    share = count / jnp.maximum(lax.pmean(count, axis_name), 1.0)
    terms: dict[str, tuple[float, Array]] = {}
    if weights.cross_entropy:
        value = losses.cross_entropy(logits, labels, where=where)
        terms["cross_entropy"] = weights.cross_entropy, share * value
    if weights.lovasz:
        value = losses.lovasz_softmax(logits, labels, per_image=weights.lovasz_per_image, where=where)
        terms["lovasz"] = weights.lovasz, value
    if weights.boundary:
        value = losses.boundary_weighted_nll(
            logits, labels, weight=weights.boundary_weight, size=weights.boundary_size, where=where
        )
        terms["boundary"] = weights.boundary, share * value
    if weights.dice:
        terms["dice"] = weights.dice, losses.soft_dice(logits, labels, where=where)
    if weights.focal:
        terms["focal"] = weights.focal, share * losses.focal(logits, labels, where=where)
    return terms


def _adversary(
    config: ml_collections.ConfigDict, classes: tuple[str, ...], steps: int, axis_name: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The critics' side of a step, as two functions: their update, and the loss by which the segmenter fools them."""
    critic, optimizer = make_critic(config, axis_name, steps), critic_optimizer(config)
    views = critic_channels(config, classes)
    average, weight = config.discriminator.average, config.loss.adversarial

    def maps(logits: Array, labels: Array, where: Array, view: slice) -> tuple[Array, Array]:
        """Ground truth as one-hot maps and the prediction as softmax maps, 0 where there is no pixel."""
        inside = where[..., None]
        real = jax.nn.one_hot(labels, len(classes) + 1) * inside
        fake = jax.nn.softmax(logits) * inside
        return real[..., view], fake[..., view]

    # Compiled as part of the step; the jit saves tracing the same network for each critic again.
    @jax.jit
    def judge(params: Any, batch_stats: Any, real: Array, fake: Array) -> tuple[Array, Array, Any]:
        verdicts = []
        for batch in (real, fake):
            variables = {"params": params, "batch_stats": batch_stats}
            verdict, updates = critic.apply(variables, batch, train=True, mutable=["batch_stats"])
            verdicts.append(verdict)
            batch_stats = updates["batch_stats"]
        return *verdicts, batch_stats

    def update(critics: dict[str, Network], logits: Array, labels: Array, where: Array) -> tuple[Any, Metrics]:
        updated, metrics = {}, {}
        for name, view in views.items():
            network = critics[name]
            real, fake = maps(lax.stop_gradient(logits), labels, where, view)

            def loss(params: Any, network: Network = network, real: Array = real, fake: Array = fake) -> Any:
                on_real, on_fake, batch_stats = judge(params, network.batch_stats, real, fake)
                value = losses.relativistic_discriminator_loss(on_real, on_fake, average=average)
                return value, batch_stats

            (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(network.params)
            gradients = lax.pmean(gradients, axis_name)
            changes, opt_state = optimizer.update(gradients, network.opt_state, network.params)
            updated[name] = Network(optax.apply_updates(network.params, changes), batch_stats, opt_state)
            metrics[f"critic/{name}"] = value
        return updated, metrics

    def fool(critics: dict[str, Network], logits: Array, labels: Array, where: Array) -> dict:
        terms = {}
        for name, view in views.items():
            real, fake = maps(logits, labels, where, view)
            # The updated critic; the real maps are judged again, and their statistics are not kept.
            on_real, on_fake, _ = judge(critics[name].params, critics[name].batch_stats, real, fake)
            value = losses.relativistic_generator_loss(on_real, on_fake, average=average)
            terms[f"adversarial/{name}"] = weight, value
        return terms

    return update, fool
