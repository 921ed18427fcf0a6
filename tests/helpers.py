"""What several test files share: data sets with known contents, tiny configurations, runs and processes."""

import contextlib
import fcntl
import hashlib
import html.parser
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest

from isles_jax import config
from isles_jax.data.case import Case
from isles_jax.runtime.command import InputError
from isles_jax.training.task import Task

ROOT = Path(__file__).parents[1]

# --- data ------------------------------------------------------------------------------------------------------------

CHANNELS = ("Tmax", "TTP", "DWI")
SHAPE = (9, 8, 5)
# Oblique, left-handed and anisotropic.
OBLIQUE = np.array([[-1.9, 0.3, 0.2, 31.0], [0.25, 2.4, -0.5, -12.5], [0.1, 0.4, 3.9, 7.25], [0, 0, 0, 1]])
# Oblique and right-handed.
TURNED = np.array([[1.9, -0.6, 0.1, 5], [0.6, 1.9, -0.2, -70], [0, 0.2, 3.0, 9], [0, 0, 0, 1]])


def volumes(shape=SHAPE, seed=0):
    """Tmax, TTP, DWI (float32) and labels (uint8): a brain with a penumbra of raised Tmax and a bright core in it."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[2:7, 2:6, 1:4] = 1
    labels[3:5, 3:5, 2] = 2
    brain = np.zeros(shape, bool)
    brain[1:-1, 1:-1] = True
    noise = rng.uniform(0.9, 1.1, (3, *shape))
    tmax = np.where(labels > 0, 9.0, 2.0) * noise[0]
    ttp = np.where(labels > 0, 25.0, 16.0) * noise[1]
    dwi = np.where(labels == 2, 300.0, 150.0) * noise[2]
    images = {"Tmax": tmax, "TTP": ttp, "DWI": dwi}
    return {name: np.where(brain, image, 0).astype(np.float32) for name, image in images.items()} | {"OT": labels}


def random_labels(seed, shape=(9, 8, 6)):
    """Labels 0, 1 and 2, as likely as each other."""
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)


def header_of(affine, codes=(1, 2)):
    """A NIfTI header whose qform and sform hold the affine with these codes."""
    header = nib.Nifti1Header()
    header.set_qform(affine, codes[0])
    header.set_sform(affine, codes[1])
    return header


def random_case(shape, seed=0, affine=TURNED):
    """A case of three channels without labels, with background around its brain."""
    rng = np.random.default_rng(seed)
    images = np.zeros((*shape, 3), np.float32)
    images[1:-1, 2:-2, 1:] = rng.gamma(2.0, 3.0, (shape[0] - 2, shape[1] - 4, shape[2] - 1, 3)) + 0.01
    return Case("x", images, None, affine, header_of(affine))


def save_volume(path, data, affine=OBLIQUE, codes=(1, 2)):
    """Saves one NIfTI volume with these qform and sform codes; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, path)


def save_case(folder, case, codes=(1, 2)):
    """Saves the case's channels as a folder of NIfTI files."""
    for number, channel in enumerate(CHANNELS):
        save_volume(folder / f"{channel}.nii.gz", case.images[..., number], case.affine, codes)


def spes_folder(root, cases=("a", "b"), suffix=".nii", **contents):
    """Writes CASE/Tmax.nii and so on; `contents` replace volumes of the last case (None: no file)."""
    for number, case in enumerate(cases):
        files = volumes(seed=number)
        if case == cases[-1]:
            files |= contents
        for name, data in files.items():
            if data is not None:
                save_volume(root / case / f"{name}{suffix}", data)
    return root


def files_in(folder):
    """{relative path: path} of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def checksums(root):
    """{relative path: checksum} of everything below a folder; a folder has an empty one."""
    paths = sorted(root.rglob("*"))
    return {str(p.relative_to(root)): hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


def refused(work, folder, words):
    """Asserts that `work` ends in one line with these words, and changes nothing in the folder."""
    before = checksums(folder)
    with pytest.raises(InputError, match=words) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert checksums(folder) == before


NNUNET_CHANNELS = {"0": "dwi", "1": "TTP", "2": "TMAX"}
NNUNET_LABELS = {"background": 0, "core": 3, "penumbra": 1}


def nnunet_folder(root, ending=".nii.gz", channels=NNUNET_CHANNELS, labels=NNUNET_LABELS, **content):
    """Two training cases and one without labels, channels in the order of `channels`."""
    words = {name.lower(): name for name in ("Tmax", "TTP", "DWI")}
    root.mkdir(exist_ok=True)
    for number, (case, folder) in enumerate((("p1", "imagesTr"), ("p2", "imagesTr"), ("p3", "imagesTs"))):
        there = volumes(seed=number)
        for index, name in channels.items():
            volume = there[words[name.lower()]] if name.lower() in words else there["DWI"] + int(index)
            save_volume(root / folder / f"{case}_{int(index):04d}{ending}", volume)
        if folder == "imagesTr":
            table = np.array([0, labels.get("penumbra", 1), labels.get("core", 1)], np.uint8)
            save_volume(root / "labelsTr" / f"{case}{ending}", table[there["OT"]])
    content = {"channel_names": channels, "labels": labels, "numTraining": 2, "file_ending": ending} | content
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return root


def result_of(read):
    """What `read` returns, or None after an InputError: a line for each bad case, which starts with a path.

    Every other exception fails the test.
    """
    try:
        return read()
    except InputError as error:
        lines = str(error).split("\n")
    assert all(line.startswith("/") and line.isprintable() and len(line) < 2000 for line in lines), lines
    return None


# --- runs ------------------------------------------------------------------------------------------------------------

# The paper's list of systems, section 2: (residual, adversarial, Lovasz-softmax and boundary loss).
SYSTEMS = {
    "bl1": (False, False, False),
    "bl2": (False, False, True),
    "bl3": (False, True, False),
    "bl4": (False, True, True),
    "bl5": (True, False, False),
    "bl6": (True, False, True),
    "bl7": (True, True, False),
    "proposed": (True, True, True),
}
TINY = {
    "folds": 2, "model.width": 4, "discriminator.width": 4, "train.epochs": 1, "train.batch_size": 8,
    "train.checkpoint_every_steps": 2, "train.checkpoint_every_seconds": 0.0, "train.log_every_steps": 1,
}  # fmt: skip


def tiny_config(name, **keys):
    """The configuration of one of the eight systems with the settings TINY, then `keys`."""
    residual, adversarial, overlap = SYSTEMS[name]
    made = config.baseline(residual=residual, adversarial=adversarial, overlap=overlap)
    made.update_from_flattened_dict(TINY | keys)
    return made


def task_of(made, classes=("penumbra", "core"), channels=CHANNELS, **more):
    """The task of a resolved configuration; `channels` are names, or their number."""
    names = channels if isinstance(channels, tuple) else tuple(f"channel {number}" for number in range(channels))
    return Task(made, names, tuple(classes), **more)


def leaves(tree):
    """{path: array} of a tree of arrays."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# --- processes -------------------------------------------------------------------------------------------------------

COMMAND = """
import os, signal, sys, time
from isles_jax.runtime import interrupt
from isles_jax.runtime.command import run_command

# Tests may run in a background job, whose children do not hear SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

def send(name):
    os.kill(os.getpid(), signal.Signals[name])
"""


def run_main(body):
    """The finished process of a command whose main function has this body."""
    code = f"{COMMAND}\ndef main():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "run_command(main)\n"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)


def environment(devices):
    """The environment of a process that sees `devices` virtual CPU devices.

    It leaves out the flag of conftest.py for the older code generator, which rounds differently in different programs.
    """
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_cpu_use_fusion_emitters=false", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def free_port():
    """A free port in the range where JAX expects Slurm's coordinator."""
    for port in np.random.default_rng().permutation(np.arange(61440, 65536)).tolist():
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def slurm_variables(port, number):
    """What Slurm tells task `number` of a step of two tasks."""
    return {
        "SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number),
    }  # fmt: skip


def shapes(module, *image_shape):
    """The shapes and types of a module's variables, without computing one."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), np.zeros(image_shape, np.float32)))


def softmax(logits):
    """Over the last axis, in the precision of the logits."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def segmentation_case(shape, num_classes, seed=0, scale=1.0):
    """Random logits [*shape, C], labels and a mask that keeps 70 % of the pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape)
    return (scale * rng.standard_normal((*shape, num_classes))).astype(np.float32), labels, rng.random(shape) < 0.7


# --- pages ---


class ParsedPage(html.parser.HTMLParser):
    """Tags, attributes and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.stack, self.attributes, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "input", "br", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        self.text += text

    def assert_names_no_address(self):
        """Nothing outside the file is loaded or linked, and no attribute holds a script."""
        for name, value in self.attributes:
            if name in ("src", "href", "xlink:href", "action", "poster", "data"):
                assert value.startswith(("data:", "#")), value
            assert not name.startswith("on")
        text = re.sub(r"(data:image/png;base64,|sha256-)[A-Za-z0-9+/=]*", "", self.source)
        assert not re.search(r"(?i)https?:|//[a-z]|@import|url\(", text)
        assert {"img", "iframe", "object", "embed"}.isdisjoint(self.tags)


def in_terminal(columns, code):
    """What a Python program writes to a terminal of so many columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=its, stderr=its, stdin=its, env=environment)
    os.close(its)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # the program has ended
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()
