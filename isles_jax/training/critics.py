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


def make_critics(
    task: Task, steps: int, axis_name: str, platform: str
) -> tuple[Callable[..., tuple[Critics, Metrics]], Callable[..., dict[str, tuple[float, Array]]]]:
    """The critics' side of a step.

    Args:
      task: what the networks are for.
      steps: steps of the whole training.
      axis_name: the device axis.
      platform: "cpu", "gpu" or "tpu". On a TPU, a loop over the critics makes the program smaller. Elsewhere
        it is slow.

    Returns:
      update(critics, logits, labels, where) -> (critics, metrics): one step of each critic; and fool(critics, logits,
      labels, where) -> name -> (weight, value): the adversarial losses of the segmenter. Arrays are [B, H, W, C] and
      [B, H, W].
    """
    critic = task.critic(axis_name, steps)
    settings, weight = task.config.discriminator, task.config.loss.adversarial
    optimizer = optimizers.of_critic(settings.learning_rate)
    views = task.views
    # Compiled as part of the step; the jit saves tracing the same network for each critic again.
    judge_in_turn = jax.jit(partial(_judge_in_turn, critic))
    judge, each, each_for_segmenter = judge_in_turn, _in_turn, _in_turn
    if platform == "tpu" and views:
        judge = jax.jit(partial(_judge_together, critic))
        each = _in_a_loop
        each_for_segmenter = partial(_with_gradients, each)

    def critic_loss(params: Any, batch_stats: Any, real: Array, fake: Array) -> tuple[Array, Any]:
        on_real, on_fake, batch_stats = judge(params, batch_stats, real, fake)
        loss = losses.relativistic_discriminator_loss(on_real, on_fake, average=settings.average)
        return loss, (batch_stats, _accuracy(on_real, on_fake, settings.average))

    def segmenter_loss(fake: Array, real: Array, params: Any, batch_stats: Any) -> Array:
        # The updated critic. It judges the real maps again, apart: they need no backward pass, and no statistics.
        on_real, on_fake, _ = judge_in_turn(params, batch_stats, real, fake)
        return losses.relativistic_generator_loss(on_real, on_fake, average=settings.average)

    def update(critics: Critics, logits: Array, labels: Array, where: Array) -> tuple[Critics, Metrics]:
        updated, metrics = {}, {}
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

    def fool(critics: Critics, logits: Array, labels: Array, where: Array) -> dict[str, tuple[float, Array]]:
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


def _in_a_loop(function: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
    """One program that runs for each critic.

    Arrays that differ in a side, as those with the class channels do, are padded with zeros.
    """

    def stack(*leaves: Array) -> Array:
        sides = [max(of_one) for of_one in zip(*(leaf.shape for leaf in leaves), strict=True)]
        return jnp.stack([jnp.pad(x, [(0, n - m) for n, m in zip(sides, x.shape, strict=True)]) for x in leaves])

    def unstack(i: int, whole: Array, like: jax.ShapeDtypeStruct) -> Array:
        return whole[(i, *map(slice, like.shape))]

    results = lax.map(lambda one: function(*one), jax.tree.map(stack, *arguments))
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
