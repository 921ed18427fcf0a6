"""What the headings and key numbers of the pages mean, beside the measures, which have theirs in `metrics.MEASURES`."""

import re
from html import escape

from isles_jax.metrics import MEASURES, Measure
from isles_jax.prediction import expected, numbers

DICE = MEASURES[0]
INTERVAL = f"{expected.LEVEL:.0%} interval"
MEANINGS = {
    # The tables of a report.
    "fold": "the part of the cases to which this one belongs; the networks that predicted it never saw this part",
    "difference of Dice": "mean Dice of the system minus that of the reference system, over the same cases; above 0, "
    "the system is better",
    "p, Wilcoxon": "how likely so large a difference is by chance alone, by the signed-rank test over the cases; "
    "smaller is stronger evidence",
    "p, bootstrap": "how likely so large a difference is by chance alone, by resampling the cases; smaller is stronger "
    "evidence",
    "mean difference ml": "predicted minus reference volume, mean over the cases, in ml; nearer to 0 is better",
    "limits of agreement ml": "between these limits lie about 95% of the differences of single cases, in ml; narrower "
    "is better",
    "CCC": "Lin’s concordance correlation coefficient, 1 if all volumes are equal; larger is better",
    "ICC(A,1)": "intraclass correlation, absolute agreement of single measurements, 1 if all volumes are equal; larger "
    "is better",
    "kappa": "Cohen’s kappa, the agreement beyond chance, at most 1; larger is better",
    "predicted class": "expected calibration error of the probability of the class that is predicted, from 0 to 1; "
    "smaller is better",
    "predicted class at a temperature": "the same error after the temperature in brackets; smaller is better",
    "preparing": "seconds to read and check the data and to cut the slices",
    "compiling": "seconds to compile the programs for the device, which do not count for the other parts",
    "training": "seconds of the training steps, with their checkpoints",
    "prediction": "seconds to predict the held-out cases",
    "scoring": "seconds to score the predictions",
    "report": "seconds to write the page; the page that the call itself wrote does not know them",
    "together": "seconds of all parts of the call",
    # The page of a new case.
    "volume": "what the average of the networks predicts, in ml",
    INTERVAL: f"holds the true volume in at least {expected.LEVEL:.0%} of cases that are like the run’s held-out "
    "cases, in ml; narrower says more",
    "networks alone": "the smallest and the largest volume that one network alone predicts, in ml; nearer to each "
    "other is better",
    "coverage of such intervals": "the share of the run’s held-out cases whose interval holds the true volume; it "
    f"should be at least {expected.LEVEL}",
    "Dice between networks": "how far the networks agree on this case, mean over their pairs, from 0 to 1; larger is "
    "better",
    "Dice between networks, all classes": "how far the networks agree on this case with all classes as one, mean over "
    "their pairs, from 0 to 1; larger is better",
    "Dice in cross-validation": "what the run’s held-out cases reached on average, from 0 to 1; this case may differ",
    "voxel": "the volume of one voxel, in ml",
    "brain": "the volume where any sequence differs from the background, with holes filled, in ml",
    "hypoperfused": "core and penumbra together, in ml",
    "mismatch": "hypoperfused minus core, in ml",
    "mismatch ratio": "hypoperfused over core; unknown without a core",
    "lesions": "the number of connected pieces, all classes together",
    "largest lesion": "the volume of the largest of these pieces, in ml",
    "side": f"the patient’s side with the lesions; both if the smaller side has at least {numbers.BOTH:.0%} of them",
    "absent sequences": "sequences that the case lacks",
    **{f"Tmax above {s} s": f"the volume of the brain whose Tmax is above {s} s, in ml" for s in numbers.TMAX_LIMITS_S},
    "hypoperfusion intensity ratio": "the volume with Tmax above 10 s over that with Tmax above 6 s",
    "trained on": "what the networks learnt from",
    "averaged with mirror images": "whether the networks also saw the case mirrored",
    "smallest lesion kept": "smaller connected pieces are removed from the prediction, in ml",
}


def heading(measure: Measure) -> str:
    """A measure's title with its unit; pointing at it explains it."""
    return _abbreviation(escape(measure.heading), measure.explanation)


def term(name: str, unit: str = "") -> str:
    """One of `MEANINGS` by its name, with a unit behind it; pointing at it explains it."""
    meaning = MEANINGS.get(name, "")
    if name.startswith(numbers.DEFUSE3):
        meaning = "whether the predicted volumes meet this threshold of the trial; not for clinical use"
    return _abbreviation(escape(f"{name}, {unit}" if unit else name), meaning)


def _abbreviation(text: str, meaning: str) -> str:
    return f'<abbr title="{escape(meaning, quote=True)}">{text}</abbr>'


def explanations(page: str) -> str:
    """Every explained heading and number of a page with its explanation, for readers who cannot point at them.

    Args:
      page: HTML; what is explained is an `abbr` or a `button` with a title.
    """
    found = re.findall(r'<(abbr|button) [^>]*title="([^"]*)"[^>]*>(.*?)</\1>', page)
    items = dict.fromkeys(f"<div><dt>{text}</dt><dd>{meaning}</dd></div>" for _, meaning, text in found)
    return f'<dl class="terms">{"".join(items)}</dl>'
