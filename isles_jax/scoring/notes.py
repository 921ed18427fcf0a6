"""The notes below a table: what its numbers mean, and what they cannot show."""

import math

from isles_jax.scoring import statistics
from isles_jax.scoring.comparison import Study
from isles_jax.scoring.run_files import Run

# A metric of a step: how often a critic ranks a reference above a prediction. The critic's name follows.
ACCURACY = "critic_accuracy/"
# Another one: the gradient of the adversarial losses at the logits, as a share of that of the other losses.
GRADIENT = "critic_gradient"
# A critic that is right less often has learnt next to nothing.
CHANCE = 0.55
# A critic that is right more often has won.
OUTRIGHT = 0.99
# With a smaller share of the gradient, the critics hardly take part in the training.
SMALL = 0.01


def limitations(cases: int, comparisons: int) -> list[str]:
    """What a number of cases and of comparisons cannot show, one sentence each."""
    smallest = min(1.0, max(comparisons, 1) * statistics.smallest_wilcoxon_p(cases))
    with_intervals = cases >= statistics.LEAST_CASES
    sentences = []
    if with_intervals or comparisons:
        sentences.append(
            "Intervals and tests resample cases, not trainings: they do not count the spread between seeds, and the "
            "folds' networks share training cases."
        )
    if with_intervals:
        # Simulated with this package's own intervals (docs/scores.md).
        sentences.append(
            "Where about one lesion in twenty is missed altogether, a 95% interval from 6 to 30 cases covers the true "
            "mean in only about 87% of studies."
        )
    if with_intervals and comparisons:
        sentences.append(
            "A difference that is not significant may still be real: a difference smaller than 1.4 times the "
            "half-width of its interval is missed in more than one study of five, even before Holm's correction."
        )
    if comparisons and smallest > 0.05:
        compared = "1 comparison" if comparisons == 1 else f"{comparisons} comparisons"
        sentences.append(
            f"With {cases} cases and {compared} the Wilcoxon test cannot give p below {smallest:.2g}: "
            "it can find no difference significant, however large."
        )
    if cases < 10:
        sentences.append(f"{cases} cases are too few for more than a rough estimate of the spread.")
    return sentences


def critics(run: Run) -> list[str]:
    """A sentence for each adversarial loss that does little, by the critics' accuracy and gradient.

    Both are means over the last quarter of the steps of all folds. Runs of earlier versions did not keep them.
    """
    last = [line for lines in run.curves for line in lines if line["step"] > 0.75 * lines[-1]["step"]]
    found: dict[str, list[float]] = {}
    for line in last:
        for name, value in line.items():
            if name.startswith((ACCURACY, GRADIENT)) and value is not None:
                found.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    sentences = []
    if means.get(GRADIENT, math.inf) < SMALL:
        size = f"{means[GRADIENT]:.2%} of that of the other losses at the end"
        sentences.append(f"the gradient of the adversarial losses at the logits is {size}, so that they change little")
    for name, mean in means.items():
        if name == GRADIENT:
            continue
        ranks = f"the critic of {name.removeprefix(ACCURACY)} ranks {mean:.0%} of the pairs rightly at the end"
        if mean < CHANCE:
            sentences.append(f"{ranks}, about as by chance, so that its adversarial loss could teach little")
        elif mean > OUTRIGHT:
            sentences.append(f"{ranks}, so that its adversarial loss hardly says how to improve")
    return sentences


def notes(study: Study) -> list[str]:
    """What a reader of the table must know, `limitations` included; one or two sentences each."""
    first = study.first
    few = len(study.case_names) < statistics.LEAST_CASES
    brackets = "" if few else "; [95% bootstrap interval of the mean]"
    texts = [
        f"± standard deviation over cases{brackets}. If both masks are empty, Dice is 1 and distances are 0; if one is "
        "empty, Dice is 0 and distances are the image's diagonal."
    ]
    if few:
        texts.append(
            f"Fewer than {statistics.LEAST_CASES} cases have no intervals: even their whole range would miss the truth "
            "too often."
        )
    empty = sum(row["volume_true_ml"] == 0 for row in first.rows)
    missed = {
        label: sum(row["volume_pred_ml"] == 0 < row["volume_true_ml"] for row in run.rows)
        for label, run in study.runs.items()
    }
    if empty or any(missed.values()):
        counts = ", ".join(f"{count} by {label}" for label, count in missed.items())
        texts.append(f"Empty references: {empty} over all cases and classes; lesions missed altogether: {counts}.")
    if any(study.paper(label, name) for label in study.rows for name in study.classes):
        texts.append("* Table 1 of the paper: 30 cases of ISLES-2015 SPES in the paper's own three folds.")
    elsewhere = [label for label, run in study.runs.items() if run.folds != first.folds]
    if elsewhere:
        texts.append(
            f"Other folds than in {next(iter(study.runs))}: {', '.join(elsewhere)}. Their networks were trained on "
            "other cases, so a difference is also one between the folds."
        )
    texts += [f"{label}: {note}." for label, run in study.runs.items() for note in (*run.notes, *critics(run))]
    return [*texts, *limitations(len(study.case_names), len(study.rows) - 1)]
