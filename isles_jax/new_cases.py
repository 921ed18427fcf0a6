"""New cases: what the networks of a run predict for the cases of a folder, as files for the reader and for programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from isles_jax import __version__
from isles_jax.data import adc, profile
from isles_jax.data.case import Case
from isles_jax.data.layouts import load_images
from isles_jax.data.nifti import write_labels, write_volume
from isles_jax.pages import patient_page
from isles_jax.prediction import expected as expectations
from isles_jax.prediction import numbers, warning
from isles_jax.prediction.inference import predict_folds, predict_labels
from isles_jax.prediction.numbers import Prediction
from isles_jax.runtime import files, interrupt
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar
from isles_jax.training import checkpoint, parallel, weights
from isles_jax.training.networks import make_forward

# The folders of maps that a command can write beside the label volumes.
MAPS = ("probabilities", "spread")
# A case's row of summary.csv, and its warnings.
Finished = tuple[Mapping[str, numbers.Value], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Options:
    """How new cases are predicted; each option is a flag of `isles_jax.predict`.

    Attributes:
      folds: numbers of the folds, finished or not; None: all finished ones.
      flips: average also over mirror images (`Task.mirror_axes`); None: as in the run's config.predict.
      min_volume_ml: remove smaller lesions; None: as in the run's config.predict.
      probabilities: also write `output`/probabilities/CASE.nii.gz.
      spread: also write `output`/spread/CASE.nii.gz, see `_spread`.
      defuse3: add the thresholds of DEFUSE 3 to summary.csv.
      strict: write nothing of a case with a warning, and raise an error in the end.
      page: write CASE.html, see `patient_page.page`.
      overwrite: replace existing files. Everything of an earlier prediction of these cases goes, summary.csv first, so
        that all files of a case belong together.
    """

    folds: Sequence[int] | None = None
    flips: bool | None = None
    min_volume_ml: float | None = None
    probabilities: bool = False
    spread: bool = False
    defuse3: bool = False
    strict: bool = False
    page: bool = True
    overwrite: bool = False

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps to write, of `MAPS`."""
        return tuple(name for name in MAPS if getattr(self, name))


def predict_folder(run: epath.PathLike, images: Path, output: epath.Path, options: Options) -> None:
    """Segments the cases of a folder with the average of a run's folds.

    For each case it writes `output`/CASE.nii.gz, CASE.json and CASE.html, and in the end summary.csv.

    Args:
      run: the workdir of a run, or a .safetensors file.
      images: a case folder, a folder of cases, or an nnU-Net imagesTs folder.
      output: folder or bucket.
      options: see `Options`.

    Raises:
      InputError: see `parallel.keep_compiled` and `weights.load`; bad cases (one line each); a file exists and
        `overwrite` is not set; a file cannot be written; `spread` with a single fold; `defuse3` without the classes
        core and penumbra; `strict` and a case has a warning (one line for each).
    """
    parallel.keep_compiled()
    trained = weights.load(run, options.folds)
    task = trained.task
    if options.spread and len(trained.folds) < 2:
        raise InputError(f"--spread: found one fold in {run}, expected two or more, whose networks can differ")
    if options.defuse3 and not {"core", "penumbra"} <= set(task.classes):
        found = ", ".join(task.classes)
        raise InputError(f"--defuse3: found the classes {found} in {run}, expected core and penumbra")
    expected = expectations.known(run, trained)
    dataset = load_images(images, task.channels, adc_as_stored=adc.taken_as_stored(expected.get("norms", {})))
    settings = _settings(task.config, options)
    new = _NewCases(trained, options, settings, expected, output, _origin(trained))
    _make_room([path for case in dataset.cases for path in new.every_path(case)], output, options)
    new.announce(run, len(dataset.cases))
    for note in (*dataset.notes, *warning.notes(expected)):
        print(f"note: {note}")
    interrupt.advise("add --overwrite, or choose another --output")
    finished = new.predict(dataset.cases)
    warned = [f"{row['case']}: {text}" for row, warnings in finished for text in warnings]
    kept = [row for row, warnings in finished if not (options.strict and warnings)]
    if kept:
        numbers.write_csv(output / "summary.csv", kept)
    if options.strict and warned:
        raise InputError("\n".join(warned))
    for line in warned:
        print(f"warning: {line}")


def _settings(config: ml_collections.ConfigDict, options: Options) -> ml_collections.ConfigDict:
    """The run's config.predict with the flags of the command."""
    settings = config.predict.copy_and_resolve_references()
    given = {"flips": options.flips, "min_volume_ml": options.min_volume_ml}
    settings.update({key: value for key, value in given.items() if value is not None})
    return settings


@dataclasses.dataclass(frozen=True)
class _NewCases:
    """What all cases of one command share."""

    trained: weights.Trained
    options: Options
    settings: ml_collections.ConfigDict
    expected: Mapping[str, Any]
    output: epath.Path
    origin: Mapping[str, str]

    def every_path(self, case: Case) -> list[epath.Path]:
        """The files that a case has with all flags; the label volume is the first."""
        alone = [self.output / f"{case.name}{ending}" for ending in (".nii.gz", ".json", ".html")]
        return [*alone, *(self.output / name / f"{case.name}.nii.gz" for name in MAPS)]

    def announce(self, run: epath.PathLike, cases: int) -> None:
        """Prints in one line what will be done."""
        trained = self.trained
        smallest = self.settings.min_volume_ml
        notes = [f"{cases} case{'s' if cases != 1 else ''}"]
        notes.append(f"{len(trained.folds)} of {trained.task.config.folds} folds of {run}: {_folds(trained)}")
        if self.settings.flips:
            notes.append("with flips")
        if smallest > 0:
            notes.append(f"no lesion below {smallest:g} ml")
        print("; ".join([*notes, f"to {self.output}"]))

    def predict(self, cases: Sequence[Case]) -> list[Finished]:
        """Predicts and writes the cases. While the network works on a case, a thread finishes the previous one."""
        task = self.trained.task
        forward = make_forward(task.segmenter())
        folds = list(self.trained.folds.values())
        mirror = task.mirror_axes(self.settings.flips)
        finished: list[Finished] = []
        with Bar("predict", len(cases), "case") as bar, ThreadPoolExecutor(1) as pool:
            pending: Future[Finished] | None = None
            for case in cases:
                interrupt.leave_if_requested()
                each = predict_folds(forward, folds, case, task, mirror=mirror)
                if pending:
                    finished.append(pending.result())
                    bar.advance()
                pending = pool.submit(self._finish, case, each)
            if pending:
                finished.append(pending.result())
                bar.advance()
        return finished

    def _finish(self, case: Case, each: np.ndarray) -> Finished:
        """Makes and writes the prediction of a case from each fold's probabilities [folds, X, Y, Z, C]."""
        mean = each.mean(axis=0)
        smallest = self.settings.min_volume_ml
        labels = predict_labels(mean, case, smallest)
        prediction = self._judge(case, labels, tuple(predict_labels(alone, case, smallest) for alone in each))
        refused = self.options.strict and bool(prediction.warnings)
        every = self.every_path(case)
        image_path, json_path, page_path = every[:3]
        # The image is replaced in one go, so that a full disk does not take it away.
        for path in every[not refused :]:
            with files.writing(path):
                path.unlink(missing_ok=True)
        if not refused:
            write_labels(image_path, labels, case, self.trained.task.label_values)
            for name in self.options.maps:
                volume = mean if name == "probabilities" else _spread(each)
                write_volume(self.output / name / image_path.name, volume, case)
            numbers.write_json(json_path, prediction)
            if self.options.page:
                files.write_atomic(page_path, patient_page.page(prediction))
        # Only what the table needs stays in memory.
        return numbers.row_of(prediction.numbers), prediction.warnings

    def _judge(self, case: Case, labels: np.ndarray, of_folds: tuple[np.ndarray, ...]) -> Prediction:
        """The numbers and the warnings of a case."""
        task = self.trained.task
        expected = self.expected
        classes = numbers.of_classes(case, task.classes, labels, of_folds, expected)
        agree = numbers.agreement([alone > 0 for alone in of_folds])
        warnings = warning.of_images(profile.profile(case, task.channels), task.channels, expected)
        folds_ml = [float((alone > 0).sum() * case.voxel_ml) for alone in of_folds]
        warnings += warning.of_prediction(labels, case, agree, folds_ml, expected)
        found = numbers.of_case(case, task.channels, labels, classes, agree, defuse3=self.options.defuse3)
        found += numbers.of_command(self.settings, warnings)
        left_out = tuple(warning.notes(expected))
        return Prediction(case, task, labels, of_folds, classes, tuple(found), tuple(warnings), left_out, self.origin)


def _spread(each: np.ndarray) -> np.ndarray:
    """The largest standard deviation of a class's probability [folds, X, Y, Z, C] over the folds: [X, Y, Z]."""
    largest: np.ndarray = each.std(axis=0).max(axis=-1)
    return largest


def _origin(trained: weights.Trained) -> dict[str, str]:
    """What made the predictions; no path, which would reveal how the machine is organised."""
    origin = {"run": str(trained.task.config.name), "folds": _folds(trained)}
    origin |= {"weights_sha256": weights.fingerprint(trained)}
    origin |= {f"trained with {name}": version for name, version in trained.versions.items()}
    return origin | {"isles_jax": __version__} | checkpoint.versions()


def _folds(trained: weights.Trained) -> str:
    return ", ".join(f"{number} ({trained.steps[number]} steps)" for number in trained.folds)


def _make_room(paths: Sequence[epath.Path], output: epath.Path, options: Options) -> None:
    """Makes the folders to write to, and takes away an earlier summary.csv.

    Raises:
      InputError: one of the paths or summary.csv exists, and `overwrite` is not set; a folder cannot be made.
    """
    table = output / "summary.csv"
    existing = [path for path in (*paths, table) if path.exists()]
    if existing and not options.overwrite:
        more = f" and {len(existing) - 1} more of these cases' files" if existing[1:] else ""
        raise InputError(f"{existing[0]} exists{more}; choose another --output, or replace them with --overwrite")
    for folder in (output, *(output / name for name in options.maps)):
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    # summary.csv is written last, so that a folder with it is complete.
    with files.writing(table):
        table.unlink(missing_ok=True)
