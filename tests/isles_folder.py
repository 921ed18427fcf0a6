"""Tiny folders in the layouts of the ISLES challenges, with known contents, for the tests of the readers."""

import json
import shutil

import numpy as np
from helpers import OBLIQUE, save_volume, volumes

SISS = ("FLAIR", "T1", "T2", "DWI")
ISLES_2017 = ("ADC", "MTT", "rCBF", "rCBV", "Tmax", "TTP")
ISLES_2018 = ("CBF", "CBV", "MTT", "Tmax")
# ADC of a healthy brain and of a lesion in 1e-3 mm2/s.
HEALTHY, RESTRICTED = 0.8, 0.45


def images(names, seed):
    """{sequence: volume} and the binary lesion "OT"; the brain is the same in all, the lesion shows in each."""
    there = volumes(seed=seed)
    brain, lesion = there["DWI"] > 0, (there["OT"] > 0)
    rng = np.random.default_rng(seed + 100)
    made = {}
    for number, name in enumerate(names):
        noise = rng.uniform(0.95, 1.05, brain.shape)
        level = np.where(lesion, RESTRICTED, HEALTHY) if name.upper() == "ADC" else np.where(lesion, 3.0, 1.0) + number
        made[name] = np.where(brain, level * noise, 0).astype(np.float32)
    return made | {"OT": lesion.astype(np.uint8)}


def case_folders(root, names, prefix="VSD.Brain.XX.O.MR_", cases=3):
    """A folder for each case, in it one for each sequence, as in 2015 to 2018."""
    for case in range(1, cases + 1):
        for number, (word, volume) in enumerate(images(names, case).items()):
            start = prefix[:-3] if word == "OT" else prefix
            full = f"{start}{word}.{100 * case + number}"
            save_volume(root / f"case_{case}" / full / f"{full}.nii", volume)
    return root


def siss(root):
    case_folders(root, SISS)
    # The challenge spells this one in another way.
    for path in sorted(root.rglob("*FLAIR*.nii")):
        path.rename(path.with_name(path.name.replace("FLAIR", "Flair")))


def isles_2017(root):
    case_folders(root, ISLES_2017)
    save_volume(
        root / "case_1" / "VSD.Brain.XX.O.MR_4DPWI.9" / "VSD.Brain.XX.O.MR_4DPWI.9.nii", np.ones((2, 2, 2, 3), np.int16)
    )


def isles_2018(root):
    case_folders(root / "TRAINING", ISLES_2018, "SMIR.Brain.XX.O.CT_")


def isles_2022(root, repository=False, subjects=(("0001", 1), ("0002", 1), ("0003", 1)), mask=True, flair=True):
    """ISLES-2022 as its archive holds it, or as its organisers' repository does; each subject has so many sessions."""
    for number, (subject, sessions) in enumerate(subjects):
        for session in range(1, sessions + 1):
            there, name = images(("dwi", "adc"), 10 * number + session), f"sub-strokecase{subject}_ses-{session:04d}"
            inner = f"sub-strokecase{subject}/ses-{session:04d}"
            folder = root / "rawdata" / inner if repository else root / inner / "dwi"
            for word in ("dwi", "adc"):
                save_volume(folder / f"{name}_{word}.nii.gz", there[word].astype(np.float64))
            if flair:
                place = (
                    folder / f"{name}_flair.nii.gz" if repository else root / inner / "anat" / f"{name}_FLAIR.nii.gz"
                )
                save_volume(place, np.ones((20, 20, 3), np.float32), OBLIQUE / 2)
            if mask:
                save_volume(root / "derivatives" / inner / f"{name}_msk.nii.gz", there["OT"].astype(np.uint16))
    return root


def rearranged(root, place):
    """The cases of `isles_2022` without FLAIR, each file where `place` puts it: (subject, session, word) -> path."""
    isles_2022(root / "there", flair=False)
    for path in sorted((root / "there").rglob("*.nii.gz")):
        subject, session, word = path.name.removesuffix(".nii.gz").split("_")
        target = root / place(subject, session, word)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(root / "there")
    return root


def isles_2024(root):
    def place(subject, session, word):
        folder, word = ("derivatives", "lesion-msk") if word == "msk" else ("raw_data", word)
        return f"{folder}/{subject}/{session}/{subject}_{session}_{word}.nii.gz"

    return rearranged(root, place)


def bids(root):
    """A pipeline's derivatives, four levels deep, with a mask of the brain beside that of the lesion."""

    def place(subject, session, word):
        if word == "msk":
            name = f"{subject}_{session}_space-orig_label-lesion_mask"
            return f"derivatives/manual/{subject}/{session}/anat/{name}.nii.gz"
        return f"{subject}/{session}/dwi/{subject}_{session}_{word}.nii.gz"

    rearranged(root, place)
    for path in sorted(root.rglob("*_mask.nii.gz")):
        shutil.copy(path, path.with_name(path.name.replace("label-lesion", "desc-brain")))
    return root


def flat(root):
    return rearranged(root, lambda subject, session, word: f"{subject[4:]}_{session[4:]}_{word}.nii.gz")


def nnunet(root):
    content = {
        "channel_names": {"0": "DWI", "1": "ADC"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
    }
    for case in range(1, 4):
        there = images(("DWI", "ADC"), case)
        for number, word in enumerate(("DWI", "ADC")):
            save_volume(root / "imagesTr" / f"c{case}_{number:04d}.nii.gz", there[word])
        save_volume(root / "labelsTr" / f"c{case}.nii.gz", there["OT"])
    (root / "dataset.json").write_text(json.dumps(content))
    return root


# The name under which a layout is announced, its channels, and how a folder in it is made.
LAYOUTS = {
    "SISS": ("ISLES-2015 SISS", SISS, siss),
    "2016 and 2017": ("ISLES-2016 or 2017", ISLES_2017, isles_2017),
    "2018": ("ISLES-2018", ISLES_2018, isles_2018),
    "2022, the archive": ("ISLES-2022", ("DWI", "ADC"), isles_2022),
    "2022, the repository": ("ISLES-2022", ("DWI", "ADC"), lambda root: isles_2022(root, repository=True)),
    "2024": ("ISLES-2022", ("DWI", "ADC"), isles_2024),
    "BIDS": ("ISLES-2022", ("DWI", "ADC"), bids),
    "a flat folder": ("ISLES-2022", ("DWI", "ADC"), flat),
    "nnU-Net": ("nnU-Net", ("DWI", "ADC"), nnunet),
}
