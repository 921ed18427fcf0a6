"""New cases: what the networks of a run predict for the cases of a folder, as files for the reader and for programs."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from isles_jax import __version__
from isles_jax.data import layouts, profile
from isles_jax.data.case import Case
from isles_jax.data.nifti import write_labels, write_volume
from isles_jax.pages import patient_page
from isles_jax.prediction import expected as expectations
from isles_jax.prediction import folder, numbers, warning
from isles_jax.prediction.inference import predict_folds, predict_labels
from isles_jax.prediction.numbers import Prediction
from isles_jax.runtime import files, interrupt, lock
from isles_jax.runtime.command import InputError
from isles_jax.runtime.progress import Bar, say
from isles_jax.scoring import calibration
from isles_jax.training import checkpoint, parallel, weights
from isles_jax.training.networks import make_forward

# A case's name, its warnings, and whether training has seen it.
Finished = tuple[str, tuple[str, ...], str]


@dataclasses.dataclass(frozen=True)
class Options:
    """How new cases are predicted; each option is a flag of `isles_jax.predict`.

    Attributes:
      folds: numbers of the folds, finished or not; None: all finished ones.
      flips: average also over mirror images (`Task.mirror_axes`); None: as in the run's config.predict.
      min_volume_ml: remove smaller lesions; None: as in the run's config.predict.
      resample: bring sequences on other grids to that of the first one; None: as in the run's config.data.
      probabilities: also write `output`/probabilities/CASE.nii.gz.
      calibrated: write them at the run's temperature, see `calibration.temperature`.
      spread: also write `output`/spread/CASE.nii.gz, see `_spread`.
      defuse3: add the thresholds of DEFUSE 3 to summary.csv.
      strict: write nothing of a case with a warning, and raise an error in the end.
      page: write CASE.html, see `patient_page.page`.
      overwrite: replace earlier predictions of these cases. Everything of them goes, their rows of summary.csv first,
        so that all files of a case belong together.
    """

    folds: Sequence[int] | None = None
    flips: bool | None = None
    min_volume_ml: float | None = None
    resample: bool | None = None
    probabilities: bool = False
    calibrated: bool = False
    spread: bool = False
    defuse3: bool = False
    strict: bool = False
    page: bool = True
    overwrite: bool = False

    @property
    def maps(self) -> tuple[str, ...]:
        """The maps to write, of `folder.MAPS`."""
        return tuple(name for name in folder.MAPS if getattr(self, name))


def predict_folder(run: epath.PathLike, images: epath.PathLike, output: epath.Path, options: Options) -> None:
    """Segments the cases of a folder with the average of a run's folds.

    For each case it writes `output`/CASE.nii.gz, CASE.html and CASE.json, and in the end summary.csv with the rows of
    all cases in `output`. Several processes may predict other cases of one run into one folder.

    Args:
      run: the workdir of a run, or a .safetensors file.
      images: a case folder, a folder of cases, an nnU-Net imagesTs folder, or a table.
      output: folder or bucket.
      options: see `Options`.

    Raises:
      InputError: see `parallel.keep_compiled`, `weights.load`, `lock.hold` and `folder.begin`; bad cases (one line
        each); a file cannot be written; `spread` with a single fold; `defuse3` without the classes core and penumbra;
        `strict` and a case has a warning (one line for each).
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
    if options.calibrated:
        _require_temperature(run, expected)
    how = layouts.read_options(task.config, expected.get("norms", {}))
    if options.resample is not None:
        how = how._replace(resample=options.resample)
    dataset = layouts.load_images(images, task.channels, how)
    settings = _settings(task.config, options)
    new = _NewCases(trained, options, settings, expected, output, _origin(trained))
    names = [case.name for case in dataset.cases]
    with lock.hold(output, folder.parts(names), "--output") as held:
        with held():
            folder.begin(output, names, new.origin, held, overwrite=options.overwrite)
        new.announce(run, len(names))
        if expectations.on_phantom(expected, task):
            say(f"note: the networks were trained on {numbers.PHANTOM}")
        for note in (*dataset.notes, *warning.notes(expected)):
            say(f"note: {note}")
        interrupt.advise("add --overwrite, or choose another --output")
        finished = new.predict(dataset.cases)
        with held():
            folder.write_table(output)
    warned = [f"{name}: {text}" for name, warnings, _ in finished for text in warnings]
    if options.strict and warned:
        raise InputError("\n".join(warned))
    for name, _, seen in finished:
        if seen:
            say(f"note: {name}: {seen}")
    for line in warned:
        say(f"warning: {line}")


def _require_temperature(run: epath.PathLike, expected: Mapping[str, Any]) -> None:
    """Raises an InputError unless the run's probabilities are better at its temperature."""
    temperature = expected.get("temperature")
    if not temperature:
        raise InputError(f"--calibrated: found no temperature in {run}, expected a run that this version has scored")
    if not temperature["pays"]:
        before, after = temperature["error"]
        found = f"a calibration error of {before:.4f} without and {after:.4f} with the temperature of {run}"
        raise InputError(f"--calibrated: found {found}, expected a gain")


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
        say("; ".join([*notes, f"to {self.output}"]))

    def predict(self, cases: Sequence[Case]) -> list[Finished]:
        """Predicts and writes the cases. While the network works on a case, a thread finishes the previous one."""
        task = self.trained.task
        forward = make_forward(task.predictor())
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
        every = folder.paths_of(self.output, case.name)
        image_path, json_path, page_path = every[:3]
        # The image is replaced in one go, so that a full disk does not take it away.
        for path in every[not refused :]:
            with files.writing(path):
                path.unlink(missing_ok=True)
        if not refused:
            write_labels(image_path, labels, case, self.trained.task.label_values)
            for name in self.options.maps:
                volume = self._probabilities(mean) if name == "probabilities" else _spread(each)
                write_volume(self.output / name / image_path.name, volume, case)
            if self.options.page:
                files.write_atomic(page_path, patient_page.page(prediction))
            numbers.write_json(json_path, prediction)
        return case.name, prediction.warnings, prediction.seen

    def _probabilities(self, mean: np.ndarray) -> np.ndarray:
        if not self.options.calibrated:
            return mean
        return calibration.tempered(mean, self.expected["temperature"]["value"])

    def _judge(self, case: Case, labels: np.ndarray, of_folds: tuple[np.ndarray, ...]) -> Prediction:
        """The numbers and the warnings of a case."""
        task = self.trained.task
        expected = self.expected
        errors = expectations.for_case(expected, case, task)
        classes = numbers.of_classes(case, task.classes, labels, of_folds, errors)
        agree = numbers.agreement([alone > 0 for alone in of_folds])
        warnings = warning.of_images(profile.profile(case, task.channels), task.channels, expected)
        folds_ml = [float((alone > 0).sum() * case.voxel_ml) for alone in of_folds]
        delayed, not_compared = warning.of_delay(case, task.channels)
        warnings += delayed
        warnings += warning.of_prediction(labels, case, agree, folds_ml, expected)
        found = numbers.of_case(case, task.channels, labels, classes, agree, defuse3=self.options.defuse3)
        on_phantom = expectations.on_phantom(expected, task)
        found += numbers.of_command(self.settings, warnings, on_phantom=on_phantom)
        return Prediction(
            case=case,
            task=task,
            labels=labels,
            fold_labels=of_folds,
            classes=classes,
            numbers=tuple(found),
            warnings=tuple(warnings),
            not_checked=(*warning.notes(expected), *warning.of_absent(case), *not_compared),
            origin=self.origin,
            on_phantom=on_phantom,
            seen=expectations.seen_in_training(expected, case, list(self.trained.folds)),
            date=datetime.date.today().isoformat(),
        )


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
