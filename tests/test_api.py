"""One law for the signatures of the public API."""

import inspect

import jax
import pytest

from isles_jax import losses, metrics, models

MODULES = (losses,)
FUNCTIONS = [pytest.param(getattr(m, name), id=f"{m.__name__}.{name}") for m in MODULES for name in m.__all__]

# The promised signatures of the losses, word for word: others rely on them.
LOSSES = {
    "boundary_distance": "(logits, distances, *, where=None, reduction='mean')",
    "boundary_mask": "(labels, num_classes, *, size=3, spatial_ndim=2)",
    "boundary_weighted_nll": "(logits, labels, *, weight=10.0, size=3, spatial_ndim=2, where=None, reduction='mean')",
    "cross_entropy": "(logits, labels, *, where=None, class_weights=None, reduction='mean')",
    "focal": "(logits, labels, *, gamma=2.0, where=None, class_weights=None, reduction='mean')",
    "lovasz_hinge": "(logits, labels, *, per_image=True, where=None, reduction='mean')",
    "lovasz_softmax": "(logits, labels, *, classes='present', per_image=False, where=None, class_weights=None, "
    "bins=None, reduction='mean')",
    "relativistic_discriminator_loss": "(real, fake, *, average=False)",
    "relativistic_generator_loss": "(real, fake, *, average=False)",
    "signed_distances": "(labels, num_classes, spacing)",
    "soft_dice": "(logits, labels, *, classes='present', per_image=False, squared=False, smooth=0.0, where=None, "
    "class_weights=None, reduction='mean')",
    "tversky": "(logits, labels, *, alpha=0.5, beta=0.5, gamma=1.0, classes='present', per_image=False, smooth=0.0, "
    "where=None, class_weights=None, reduction='mean')",
}


def test_losses_keep_the_promised_signatures():
    bare = {}
    for name in losses.__all__:
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        bare[name] = str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))
    assert bare == LOSSES


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_is_listed(module):
    own = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    assert sorted(module.__all__) == [name for name in own if not name.startswith("_")]


def test_the_networks_and_the_scores_list_what_is_for_others():
    # The rest of models without an underscore is the package's own: sizes of the layers, and how a kernel begins.
    networks = [n for n, c in inspect.getmembers(models, inspect.isclass) if c.__module__ == models.__name__]
    public = [name for name in networks if not name.startswith("_")]
    assert models.__all__ == [*public, "max_pool", "max_unpool"]
    assert {"Discriminator", "SUMNet", "UNet"} <= set(public)
    own = [n for n, f in inspect.getmembers(metrics, inspect.isfunction) if f.__module__ == metrics.__name__]
    classes = ["MEASURES", "PREDICTED", "REFERENCE", "Lesion", "Masks", "Measure"]
    assert metrics.__all__ == [*classes, *(name for name in own if not name.startswith("_"))]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arrays_are_positional_and_options_keyword_only(function):
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        if parameter.default is inspect.Parameter.empty:
            assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        else:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.signature(function).return_annotation is jax.Array


@pytest.mark.parametrize("function", FUNCTIONS)
def test_docstrings_say_what_goes_in_and_out(function):
    doc = inspect.getdoc(function)
    sections = [doc.index(f"\n\n{title}:\n") for title in ("Args", "Returns", "Example")]
    assert sections == sorted(sections)
    assert doc.splitlines()[0].endswith(".")
    assert ">>> " in doc[sections[2] :]
    arguments = doc[sections[0] : sections[1]]
    for name in inspect.signature(function).parameters:
        assert f"\n  {name}: " in arguments
