"""One training step on one device: pure, compiled, the segmenter and its critics together."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array, lax

from isles_jax import losses
from isles_jax.models import MOMENTUM, Discriminator
from isles_jax.training.augment import augment
from isles_jax.training.networks import critic_channels, make_critic, make_segmenter
from isles_jax.training.state import Network, State, critic_optimizer, learning_rate, segmenter_optimizer

Metrics = dict[str, Array]
Step = Callable[[State, tuple[Array, Array], Array], tuple[State, Metrics]]


def make_step(
    config: ml_collections.ConfigDict, classes: tuple[str, ...], steps: int, axis_name: str, platform: str | None = None
) -> Step:
    """Builds the training step of a configuration.

    Args:
      config: the whole configuration; a loss whose weight is 0, and everything adversarial where it is not enabled,
        is absent from the step.
      classes: names of the foreground classes.
      steps: steps of the whole training, for the schedule.
      axis_name: the device axis.
      platform: "cpu", "gpu" or "tpu", what the step will run on; None: JAX's default. It decides how the critics run.

    Returns:
      step(state, (images [N, H, W, M], labels [N, H, W]), indices [K, B]) -> (state, metrics): K steps on the slices
      that each row of indices names, B of them on this device; metrics are [K] arrays.
    """
    rate = learning_rate(config, steps)
    optimizer = segmenter_optimizer(config, steps)
    segmenter = make_segmenter(config, len(classes) + 1, axis_name, steps)
    platform = platform or jax.default_backend()
    update_critics, fool_critics = _adversary(config, classes, steps, axis_name, platform)

    def one_step(state: State, data: tuple[Array, Array], indices: Array) -> tuple[State, Metrics]:
        with jax.named_scope("augmentation"):
            images, labels = _load(config, state, data, indices, axis_name)
        where = labels >= 0

        def forward(params: Any) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": state.segmenter.batch_stats}
            logits, updates = segmenter.apply(variables, images, train=True, mutable=["batch_stats"])
            return logits, updates.get("batch_stats", {})

        # The segmenter runs once; its logits serve the critics' update and, through the pullback, its own.
        logits, pullback, batch_stats = jax.vjp(forward, state.segmenter.params, has_aux=True)
        with jax.named_scope("critics"):
            critics, critic_metrics = update_critics(state.critics, logits, labels, where)

        total, terms, gradient = _weighted(
            "losses", lambda logits: _supervised(config, logits, labels, where, axis_name), logits
        )
        if critics:
            fooling, more, push = _weighted(
                "critics", lambda logits: fool_critics(critics, logits, labels, where), logits
            )
            # How much the critics say, beside the labels, where both act on the prediction; 0 where both are 0.
            beside = jnp.maximum(optax.tree.norm(gradient), jnp.finfo(jnp.float32).tiny)
            critic_metrics["critic_gradient"] = optax.tree.norm(push) / beside
            total, terms, gradient = total + fooling, terms | more, gradient + push
        gradients = lax.pmean(pullback(gradient)[0], axis_name)
        trained = _updated(optimizer, state.segmenter, gradients, batch_stats)
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
        both=options.flips == "both",
    )  # fmt: skip


def _weighted(
    scope: str, losses_of: Callable[[Array], dict[str, tuple[float, Array]]], logits: Array
) -> tuple[Array, Metrics, Array]:
    """The weighted sum of some losses, their values by name, and the sum's gradient at the logits."""

    def loss(logits: Array) -> tuple[Array, Metrics]:
        with jax.named_scope(scope):
            terms = losses_of(logits)
        total = cast(Array, sum(weight * value for weight, value in terms.values()))
        return total, {name: value for name, (_, value) in terms.items()}

    (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    return total, terms, gradient


@jax.named_scope("optimiser")
def _updated(optimizer: optax.GradientTransformation, network: Network, gradients: Any, batch_stats: Any) -> Network:
    """The network after one step of its optimiser."""
    updates, opt_state = optimizer.update(gradients, network.opt_state, network.params)
    return Network(optax.apply_updates(network.params, updates), batch_stats, opt_state)


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
    config: ml_collections.ConfigDict, classes: tuple[str, ...], steps: int, axis_name: str, platform: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The critics' side of a step, as two functions: their update, and the loss by which the segmenter fools them."""
    critic, optimizer = make_critic(config, axis_name, steps), critic_optimizer(config)
    views = critic_channels(config, classes)
    average, weight = config.discriminator.average, config.loss.adversarial
    # Compiled as part of the step; the jit saves tracing the same network for each critic again.
    judge_in_turn, judge_together = (jax.jit(partial(f, critic)) for f in (_judge_in_turn, _judge_together))
    # On a TPU, a loop over the critics makes the program smaller. On a GPU, critics side by side need fewer launches.
    # Both are slow on a CPU.
    each, each_for_segmenter, judge = _in_turn, _in_turn, judge_in_turn
    if platform != "cpu" and views:
        each, judge = partial(_stacked, jax.vmap if platform == "gpu" else _loop), judge_together
        each_for_segmenter = partial(_with_gradients, each)

    def critic_loss(params: Any, batch_stats: Any, real: Array, fake: Array) -> tuple[Array, Any]:
        on_real, on_fake, batch_stats = judge(params, batch_stats, real, fake)
        loss = losses.relativistic_discriminator_loss(on_real, on_fake, average=average)
        return loss, (batch_stats, _accuracy(on_real, on_fake, average))

    def segmenter_loss(fake: Array, real: Array, params: Any, batch_stats: Any) -> Array:
        # The updated critic. It judges the real maps again, apart: they need no backward pass, and no statistics.
        on_real, on_fake, _ = judge_in_turn(params, batch_stats, real, fake)
        return losses.relativistic_generator_loss(on_real, on_fake, average=average)

    def update(critics: dict[str, Network], logits: Array, labels: Array, where: Array) -> tuple[Any, Metrics]:
        updated, metrics = {}, {}
        real, fake = _maps(lax.stop_gradient(logits), labels, where, config.discriminator.hard)
        arguments = [
            (critics[name].params, critics[name].batch_stats, real[..., view], fake[..., view])
            for name, view in views.items()
        ]
        results = each(jax.value_and_grad(critic_loss, has_aux=True), arguments)
        for name, ((value, (batch_stats, accuracy)), gradients) in zip(views, results, strict=True):
            updated[name] = _updated(optimizer, critics[name], lax.pmean(gradients, axis_name), batch_stats)
            metrics[f"critic/{name}"], metrics[f"critic_accuracy/{name}"] = value, accuracy
        return updated, metrics

    def fool(critics: dict[str, Network], logits: Array, labels: Array, where: Array) -> dict:
        real, fake = _maps(logits, labels, where, config.discriminator.hard)
        arguments = [
            (fake[..., view], real[..., view], critics[name].params, critics[name].batch_stats)
            for name, view in views.items()
        ]
        values = each_for_segmenter(segmenter_loss, arguments)
        return {f"adversarial/{name}": (weight, value) for name, value in zip(views, values, strict=True)}

    return update, fool


def _maps(logits: Array, labels: Array, where: Array, hard: bool) -> tuple[Array, Array]:
    """What critics see of the ground truth and of a prediction, [B, H, W, C], 0 where there is no pixel.

    The ground truth is one-hot. So is the prediction if `hard`: probabilities would tell the two apart, whatever their
    shapes. Its gradient is that of the probabilities all the same (straight-through; Bengio et al. 2013).
    """
    inside, count = where[..., None], logits.shape[-1]
    fake = jax.nn.softmax(logits)
    if hard:
        fake = jax.nn.one_hot(logits.argmax(-1), count) + (fake - lax.stop_gradient(fake))
    return jax.nn.one_hot(labels, count) * inside, fake * inside


def _accuracy(on_real: Array, on_fake: Array, average: bool) -> Array:
    """How often a critic ranks real above fake, pair by pair; with `average`, above or below the other kind's mean."""
    if not average:
        return (on_real > on_fake).mean()
    return ((on_real > on_fake.mean()).mean() + (on_fake < on_real.mean()).mean()) / 2


# What a critic makes of a batch of real and fake maps: (verdicts on real, on fake, running statistics after both).


def _judge_in_turn(critic: Discriminator, params: Any, batch_stats: Any, real: Array, fake: Array) -> tuple:
    verdicts = []
    for batch in (real, fake):
        variables = {"params": params, "batch_stats": batch_stats}
        verdict, updates = critic.apply(variables, batch, train=True, mutable=["batch_stats"])
        verdicts.append(verdict)
        batch_stats = updates["batch_stats"]
    return *verdicts, batch_stats


def _judge_together(critic: Discriminator, params: Any, batch_stats: Any, real: Array, fake: Array) -> tuple:
    """The same in one pass, each half with its own batch statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    judge = jax.vmap(lambda batch: critic.apply(variables, batch, train=True, mutable=["batch_stats"]))
    verdicts, updates = judge(jnp.stack([real, fake]))
    # Both halves moved the statistics that were there before; in turn, the second moves what the first left.
    after = jax.tree.map(lambda old, new: new[1] + MOMENTUM * (new[0] - old), batch_stats, updates["batch_stats"])
    return *verdicts, after


# function(*arguments) for the arguments of each critic.


def _in_turn(function: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
    return [function(*one) for one in arguments]


def _loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `jax.vmap`, one after the other."""
    return lambda *stacked: lax.map(lambda one: function(*one), stacked)


def _stacked(repeat: Callable[..., Any], function: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
    """One program for all critics, by `repeat` (`jax.vmap` or `_loop`).

    Arrays that differ in a side, as those with the class channels do, are padded with zeros.
    """

    def stack(*leaves: Array) -> Array:
        sides = [max(of_one) for of_one in zip(*(leaf.shape for leaf in leaves), strict=True)]
        return jnp.stack([jnp.pad(x, [(0, n - m) for n, m in zip(sides, x.shape, strict=True)]) for x in leaves])

    def unstack(i: int, whole: Array, like: jax.ShapeDtypeStruct) -> Array:
        return whole[(i, *map(slice, like.shape))]

    results = repeat(function)(*jax.tree.map(stack, *arguments))
    return [
        jax.tree.map(partial(unstack, i), results, jax.eval_shape(function, *one)) for i, one in enumerate(arguments)
    ]


def _with_gradients(
    each: Callable[..., list[Any]], function: Callable[..., Array], arguments: list[tuple]
) -> list[Array]:
    """`each` for scalars. Their gradients for the first argument come from the same program: no layer is stored."""
    rest = [one[1:] for one in arguments]

    @jax.custom_vjp
    def values(first: list[Array]) -> list[Array]:
        return each(function, [(x, *more) for x, more in zip(first, rest, strict=True)])

    def forward(first: list[Array]) -> tuple[list[Array], list[Array]]:
        both = each(jax.value_and_grad(function), [(x, *more) for x, more in zip(first, rest, strict=True)])
        return [value for value, _ in both], [gradient for _, gradient in both]

    def backward(gradients: list[Array], cotangents: list[Array]) -> tuple[list[Array]]:
        return ([c * gradient for c, gradient in zip(cotangents, gradients, strict=True)],)

    values.defvjp(forward, backward)
    return values([one[0] for one in arguments])
