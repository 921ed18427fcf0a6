"""The trained networks for other programs: their weights as safetensors, or the inference function as StableHLO.

python -m isles_jax.export --workdir=RUN --output=proposed.safetensors
python -m isles_jax.export --workdir=RUN --output=proposed.stablehlo

The first file is for keeping: `isles_jax.weights` says what is in it, and `isles_jax.predict --workdir=FILE` uses it.
The second is a function of the first (`jax.export`; readable for months, not for archives), and needs no code of ours:

    inference = jax.export.deserialize(open("proposed.stablehlo", "rb").read())
    probabilities = inference.call(safetensors.numpy.load_file("proposed.safetensors"), images)
"""

from collections.abc import Sequence
from typing import cast

from isles_jax import files, predict, weights
from isles_jax.config import InputError, Parser, run_command
from isles_jax.weights import Trained

STABLEHLO = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def inference(trained: Trained) -> bytes:
    """The inference function as a serialised `jax.export.Exported`, for CPU, CUDA and TPU.

    Its arguments are the weights by the names that they have in the .safetensors file of the same folds, and slices,
    float32 [B, H, W, M], normalised as `data.slices.normalise` does and 0 outside the brain; B is any number, H and W
    are any multiples of 32. It returns class probabilities, float32 [B, H, W, C], averaged over the folds and, where
    the run's predict.flips is set, over the mirror images.

    Raises:
      InputError: flatbuffers is not installed.
    """
    import jax
    import jax.numpy as jnp

    from isles_jax.models import MULTIPLE
    from isles_jax.state import make_segmenter

    forward = predict.make_forward(make_segmenter(trained.config, len(trained.classes) + 1))

    def call(tensors: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        networks = list(weights.nested(tensors).values())
        found = [forward(variables, images) for variables in networks]
        if trained.config.predict.flips:
            found += [forward(variables, images[:, ::-1])[:, ::-1] for variables in networks]
        return cast(jax.Array, sum(found) / len(found))

    like = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.flat(trained).items()}
    shape = jax.export.symbolic_shape(f"b, {MULTIPLE}*h, {MULTIPLE}*w, {len(trained.channels)}")
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(like, jax.ShapeDtypeStruct(shape, jnp.float32))
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        wanted = "pip install flatbuffers, or uv run --extra export"
        raise InputError(f"flatbuffers is not installed, expected it for {STABLEHLO} files: {wanted}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a run's networks for other programs: .safetensors, the weights; .stablehlo, the inference function."""
    parser = Parser(prog="python -m isles_jax.export", description=main.__doc__)
    run = "a run of isles_jax.main, or a .safetensors file of this command"
    parser.add_argument("--workdir", required=True, metavar="RUN", help=run)
    output = f"ends in {weights.SUFFIX} or in {STABLEHLO}; replaced if it exists"
    parser.add_argument("--output", required=True, metavar="FILE", help=output)
    predict.add_folds_flag(parser)
    options = parser.parse_args(arguments)
    options.output = files.location(options.output)
    if options.output.suffix not in (weights.SUFFIX, STABLEHLO):
        raise InputError(f"--output={options.output}: expected a name that ends in {weights.SUFFIX} or {STABLEHLO}")
    trained = weights.load(options.workdir, options.folds)
    if options.output.suffix == STABLEHLO:
        files.write_atomic(options.output, inference(trained))
    else:
        weights.save(options.output, trained)
    print(f"{options.output}: folds {', '.join(map(str, trained.folds))} of {options.workdir}")


if __name__ == "__main__":
    run_command(main)
