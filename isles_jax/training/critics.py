"""The critics' side of a training step: how they are updated, and the loss by which the segmenter fools them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from isles_jax import losses
from isles_jax.models import MOMENTUM, Discriminator
from isles_jax.training import optimizers
from isles_jax.training.state import Network
from isles_jax.training.task import Task

Critics = dict[str, Network]
Metrics = dict[str, Array]
# Losses by name: (weight, value).
Terms = dict[str, tuple[float, Array]]
# What a critic makes of a batch of real and fake maps: verdicts on real, on fake, and the running statistics after it.
Verdicts = tuple[Array, Array, Any]


def make_critics(
    task: Task, steps: int, axis_name: str, platform: str
) -> tuple[Callable[..., tuple[Critics, Metrics]], Callable[..., Terms]]:
    """The critics' side of a step, for a training of `steps` steps on the device axis `axis_name`.

    The platform is "cpu", "gpu" or "tpu". On a TPU, a loop over the critics makes the program smaller. Elsewhere it is
    slow. Real and fake maps are judged in one pass, except on a CPU, which gains nothing by it.

    Returns:
      update(critics, logits, labels, where) -> (critics, metrics), one step of each critic; and fool(critics, logits,
      labels, where) -> the adversarial losses of the segmenter. Logits are [B, H, W, C], the others [B, H, W].
    """
    critic = task.critic(axis_name, steps, platform)
    settings = task.config.discriminator
    weight = task.config.loss.adversarial
    optimizer = optimizers.of_critic(settings.learning_rate)
    views = task.views
    # Compiled as part of the step; the jit saves tracing the same network for each critic again.
    judge_in_turn = jax.jit(partial(_judge_in_turn, critic))
    judge = judge_in_turn if platform == "cpu" else jax.jit(partial(_judge_together, critic))
    each = each_for_segmenter = _in_turn
    if platform == "tpu" and views:
        each = _in_a_loop
        each_for_segmenter = _scalars_in_a_loop

    def critic_loss(params: Any, batch_stats: Any, real: Array, fake: Array) -> tuple[Array, Any]:
        on_real, on_fake, batch_stats = judge(params, batch_stats, real, fake)
        loss = losses.relativistic_discriminator_loss(on_real, on_fake, average=settings.average)
        return loss, (batch_stats, _accuracy(on_real, on_fake, settings.average))

    def segmenter_loss(fake: Array, real: Array, params: Any, batch_stats: Any) -> Array:
        # The critic is the updated one. It judges real maps apart from fake ones, since they need no backward pass.
        on_real, on_fake, _ = judge_in_turn(params, batch_stats, real, fake)
        return losses.relativistic_generator_loss(on_real, on_fake, average=settings.average)

    def update(critics: Critics, logits: Array, labels: Array, where: Array) -> tuple[Critics, Metrics]:
        updated: Critics = {}
        metrics: Metrics = {}
        real, fake = _maps(lax.stop_gradient(logits), labels, where, settings.hard)
        arguments = [
            (critics[name].params, critics[name].batch_stats, real[..., view], fake[..., view])
            for name, view in views.items()
        ]
        results = each(jax.value_and_grad(critic_loss, has_aux=True), arguments)
        for name, ((value, (batch_stats, accuracy)), gradients) in zip(views, results, strict=True):
            updated[name] = critics[name].updated(optimizer, lax.pmean(gradients, axis_name), batch_stats)
            metrics[f"critic/{name}"] = value
            metrics[f"critic_accuracy/{name}"] = accuracy
        return updated, metrics

    def fool(critics: Critics, logits: Array, labels: Array, where: Array) -> Terms:
        real, fake = _maps(logits, labels, where, settings.hard)
        arguments = [
            (fake[..., view], real[..., view], critics[name].params, critics[name].batch_stats)
            for name, view in views.items()
        ]
        values = each_for_segmenter(segmenter_loss, arguments)
        return {f"adversarial/{name}": (weight, value) for name, value in zip(views, values, strict=True)}

    return update, fool


def _maps(logits: Array, labels: Array, where: Array, hard: bool) -> tuple[Array, Array]:
    """What critics see of the ground truth and of a prediction, [B, H, W, C], 0 where there is no pixel.

    The ground truth is one-hot. With `hard` the prediction is one-hot, too, because a critic would recognise
    probabilities whatever the shapes of the lesions. The gradient is that of the probabilities in both cases
    (straight-through; Bengio et al. 2013).
    """
    inside = where[..., None]
    count = logits.shape[-1]
    fake = jax.nn.softmax(logits)
    if hard:
        fake = jax.nn.one_hot(logits.argmax(-1), count) + (fake - lax.stop_gradient(fake))
    return jax.nn.one_hot(labels, count) * inside, fake * inside


def _accuracy(on_real: Array, on_fake: Array, average: bool) -> Array:
    """How often a critic ranks real above fake: pair by pair, or with `average` against the mean of the other kind."""
    if not average:
        return (on_real > on_fake).mean()
    return ((on_real > on_fake.mean()).mean() + (on_fake < on_real.mean()).mean()) / 2


def _judge_in_turn(critic: Discriminator, params: Any, batch_stats: Any, real: Array, fake: Array) -> Verdicts:
    def judge(batch_stats: Any, batch: Array) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        verdict, updates = critic.apply(variables, batch, train=True, mutable=["batch_stats"])
        return verdict, updates["batch_stats"]

    on_real, between = judge(batch_stats, real)
    on_fake, after = judge(between, fake)
    return on_real, on_fake, after


def _judge_together(critic: Discriminator, params: Any, batch_stats: Any, real: Array, fake: Array) -> Verdicts:
    """The same in one pass, each half with its own batch statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    judge = jax.vmap(lambda batch: critic.apply(variables, batch, train=True, mutable=["batch_stats"]))
    (on_real, on_fake), updates = judge(jnp.stack([real, fake]))
    # Here both halves started from the old statistics. In turn, the second half starts from what the first left.
    after = jax.tree.map(lambda old, new: new[1] + MOMENTUM * (new[0] - old), batch_stats, updates["batch_stats"])
    return on_real, on_fake, after


# Each of these calls function(*arguments) with the arguments of each critic.


def _in_turn(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*one) for one in arguments]


def _in_a_loop(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """One program that runs for each critic. Arrays with fewer class channels than others are padded with zeros."""

    def stack(*leaves: Array) -> Array:
        sides = [max(of_one) for of_one in zip(*(leaf.shape for leaf in leaves), strict=True)]
        return jnp.stack([jnp.pad(x, [(0, n - m) for n, m in zip(sides, x.shape, strict=True)]) for x in leaves])

    def unstack(i: int, whole: Array, like: jax.ShapeDtypeStruct) -> Array:
        return whole[(i, *map(slice, like.shape))]

    results = lax.map(lambda one: function(*one), jax.tree.map(stack, *arguments))
    return [
        jax.tree.map(partial(unstack, i), results, jax.eval_shape(function, *one)) for i, one in enumerate(arguments)
    ]


def _scalars_in_a_loop(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """`_in_a_loop` for scalars. One program makes values and gradients for the first argument, and stores no layer."""
    rest = [one[1:] for one in arguments]

    @jax.custom_vjp
    def values(first: list[Array]) -> list[Array]:
        return _in_a_loop(function, [(x, *more) for x, more in zip(first, rest, strict=True)])

    def forward(first: list[Array]) -> tuple[list[Array], list[Array]]:
        both = _in_a_loop(jax.value_and_grad(function), [(x, *more) for x, more in zip(first, rest, strict=True)])
        return [value for value, _ in both], [gradient for _, gradient in both]

    def backward(gradients: list[Array], cotangents: list[Array]) -> tuple[list[Array]]:
        return ([c * gradient for c, gradient in zip(cotangents, gradients, strict=True)],)

    values.defvjp(forward, backward)
    results: list[Array] = values([one[0] for one in arguments])
    return results
