"""Draws docs/figures/network.png: the layers of Residual-SUMNet and of a critic, as the code builds them.

python docs/scripts/network_figure.py
"""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from isles_jax.models import Discriminator, SUMNet

SIZE = (96, 128)
ENCODER, DECODER, CRITIC, SHORTCUT = "#2c5d8a", "#c27b1a", "#5b7f3a", "#8a8a8a"

# A convolution: its name, the side of its kernel, the shapes [H, W, C] of its input and output.
Layer = tuple[str, int, tuple[int, ...], tuple[int, ...]]


def convolutions(network: nn.Module, planes: int) -> list[Layer]:
    """The convolutions of a network in the order in which it calls them, traced without computing anything."""
    layers: list[Layer] = []

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            layers.append((context.module.name, context.module.kernel_size[0], args[0].shape[1:], out.shape[1:]))
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *SIZE, planes))))
    return layers


def stages(layers: list[Layer], pattern: str) -> dict[int, list[Layer]]:
    """The layers whose names match, by the number of the stage in the name."""
    grouped: dict[int, list[Layer]] = {}
    for layer in layers:
        if match := re.fullmatch(pattern, layer[0]):
            grouped.setdefault(int(match[1]), []).append(layer)
    return grouped


def box(axis: Axes, x: float, y: float, width: float, lines: list[str], colour: str) -> None:
    """Draws a box with lines of text and its centre at (x, y)."""
    height = 0.17 * len(lines) + 0.14
    axis.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=colour, alpha=0.92))
    axis.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8, color="white", linespacing=1.25)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", **style: object) -> None:
    """Draws an arrow with a text at its middle."""
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "shrinkA": 0, "shrinkB": 0} | style
    )
    if text:
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        axis.text(*middle, text, fontsize=7.5, ha="center", va="center", color="#333333",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


def describe(layer: Layer) -> str:
    """A convolution's kernel, and its channels in and out."""
    _, kernel, before, after = layer
    return f"{kernel}×{kernel}  {before[-1]} → {after[-1]}"


def draw_segmenter(axis: Axes) -> None:
    """Draws the U: encoder on the left, decoder on the right, deepest stage at the bottom."""
    layers = convolutions(SUMNet(residual=True), 3)
    encoder, decoder = stages(layers, r"conv(\d)[ab]?"), stages(layers, r"conv_up(\d)[ab]?")
    shortcuts = {number: layers[0] for number, layers in stages(layers, r"conv(\d)_shortcut").items()}
    by_name = {layer[0]: layer for layer in layers}
    left, right, middle = 1.6, 6.4, 4.0
    box(
        axis,
        left,
        0.9,
        2.0,
        [f"input {SIZE[0]}×{SIZE[1]}: Tmax, TTP, DWI", f"{describe(by_name['preconv'])}, ReLU"],
        ENCODER,
    )
    box(axis, right, 0.9, 2.0, [f"{describe(by_name['output'])}", "logits: background, penumbra, core"], DECODER)
    for number in encoder:
        y = -1.1 * (number - 1)
        sides = "×".join(map(str, encoder[number][0][3][:2]))
        box(
            axis,
            left,
            y,
            2.0,
            [f"stage {number}, {sides}", *(f"{describe(layer)}, norm" for layer in encoder[number])],
            ENCODER,
        )
        box(
            axis,
            right,
            y,
            2.0,
            [f"up {number}, {sides}", *(f"{describe(layer)}, ReLU" for layer in decoder[number])],
            DECODER,
        )
        side = f"{describe(shortcuts[number])}, norm" if number in shortcuts else "identity"
        axis.text(
            left - 1.62, y, f"+ shortcut\n{side}\nthen ReLU", fontsize=7.5, ha="center", va="center", color=SHORTCUT
        )
        arrow(axis, (left + 1, y + 0.12), (right - 1, y + 0.12), "features")
        deeper = number < len(encoder)
        if deeper:
            arrow(axis, (left, y - 0.33), (left, y - 0.77), "max-pool")
            arrow(axis, (right, y - 0.77), (right, y - 0.33), "max-unpool")
        arrow(axis, (left + 1, y - 0.12), (right - 1, y - 0.12), "positions of the maxima", linestyle="--")
    bottom = -1.1 * (len(encoder) - 1)
    axis.plot([left, left], [bottom - 0.33, bottom - 0.7], color="#444444", linewidth=1)
    arrow(axis, (right, bottom - 0.7), (right, bottom - 0.33))
    axis.plot([left, right], [bottom - 0.7] * 2, color="#444444", linewidth=1)
    axis.text(middle, bottom - 0.7, "max-pool, max-unpool", fontsize=7.5, ha="center", va="center",
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    arrow(axis, (left, 0.66), (left, 0.28))
    arrow(axis, (right, 0.28), (right, 0.66))
    axis.set(xlim=(-0.8, 7.6), ylim=(bottom - 0.9, 1.3))
    axis.set_title("Residual-SUMNet, width 64", fontsize=11)


def draw_critic(axis: Axes) -> None:
    """Draws one of the three discriminators, from its map to its logit."""
    layers = convolutions(Discriminator(), 1)
    box(axis, 0, 0.9, 2.5, ["one-hot or softmax map", "core, penumbra, or both"], SHORTCUT)
    for place, layer in enumerate(layers):
        y = -0.85 * place
        sides = "×".join(map(str, layer[3][:2]))
        norm = ", norm" if place else ""
        box(axis, 0, y, 2.5, [f"{sides}: {describe(layer)}{norm}", "LeakyReLU 0.2"], CRITIC)
        arrow(axis, (0, y + 0.61), (0, y + 0.25), "max-pool" if place else "")
    last = -0.85 * len(layers)
    box(axis, 0, last, 2.5, ["mean over pixels, linear", "one critic logit"], CRITIC)
    arrow(axis, (0, last + 0.6), (0, last + 0.25))
    axis.set(xlim=(-1.6, 1.6), ylim=(-5.3, 1.3))
    axis.set_title("a critic", fontsize=11)


def main() -> None:
    """Draws both networks and writes the figure."""
    figure, (wide, narrow) = plt.subplots(1, 2, figsize=(12, 7.5), width_ratios=(3, 1), layout="constrained")
    draw_segmenter(wide)
    draw_critic(narrow)
    for axis in (wide, narrow):
        axis.set_axis_off()
    path = Path(__file__).parents[1] / "figures" / "network.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
