"""The page's sections that show cases: still pictures of three of them, and the viewer of every slice."""

from collections.abc import Mapping, Sequence
from html import escape

from isles_jax.pages import markup, pictures, stills, tmax, viewer
from isles_jax.pages.pictures import Picture
from isles_jax.scoring.comparison import Study


def best_median_worst(study: Study, cases: Sequence[Picture], chosen: Mapping[str, str]) -> str:
    """The paper's Figure 2: inputs, reference and each system's contours; nothing if there are no pictures.

    Args:
      study: the runs.
      cases: pictures of their cases.
      chosen: {"best": case, "median": case, "worst": case}.
    """
    if not cases:
        return ""
    by_name = {picture.name: picture for picture in cases}
    text = f"<h2>Best, median and worst case</h2>{_legend(study)}"
    if tmax.CHANNEL in study.first.data["channels"]:
        text += tmax.colour_bar()
    for place, name in chosen.items():
        if name not in by_name:
            continue
        picture = by_name[name]
        position = pictures.representative_slice(picture)
        text += (
            f"<h3>{escape(place.capitalize())}: case {escape(name)}, slice {picture.slices[position] + 1}</h3>"
            f'<div class="panels">{_figures(study, picture, position)}</div>'
        )
    return text + (
        '<p class="soft">The cases are chosen by the mean Dice over the classes. Contours follow the voxels’ edges. In '
        "a system’s picture the reference shows where it differs from the result. R and L are the patient’s sides, A "
        "is the front and P the back.</p>"
    )


def _figures(study: Study, picture: Picture, position: int) -> str:
    """The channels that a case has, the reference and each system's result in one slice of it."""
    assert picture.truth is not None
    channels = study.first.data["channels"]
    there = [name for name in channels if name not in picture.absent]
    background = channels.index("DWI" if "DWI" in there else there[0])
    gray = pictures.data_uri(picture.gray[background][position])
    reference = stills.outlines(picture.truth[position], "reference")
    figures = []
    for name in there:
        image, contour = stills.background(picture, channels.index(name), position, name)
        title = f"{name}, seconds" if name == tmax.CHANNEL else name
        figures.append(stills.still(picture, image, contour, title))
    figures.append(stills.still(picture, gray, reference, "reference"))
    for label in study.runs:
        lines = reference + stills.outlines(picture.results[label][position])
        figures.append(stills.still(picture, gray, lines, label, _dice_text(study, label, picture.name)))
    return "".join(figures)


def _dice_text(study: Study, label: str, case: str) -> str:
    return ", ".join(f"{row['class']} {row['dice']:.2f}" for row in study.rows[label] if row["case"] == case)


def _legend(study: Study) -> str:
    data = study.first.data
    return markup.contour_legend(data["channels"], data["classes"], {"solid": "result", "dashed": "reference"})


def every_slice(study: Study, cases: Sequence[Picture], left_out: Sequence[str] = ()) -> str:
    """The viewer of every slice of the cases.

    Args:
      study: the runs.
      cases: pictures of their cases.
      left_out: sentences about cases that have no picture.
    """
    text = '<h2 class="screen">Every slice</h2>' + "".join(f"<p>{escape(sentence)}</p>" for sentence in left_out)
    if not cases:
        return text
    labels = list(cases[0].results)
    count = len(study.case_names)
    if len(cases) < count:
        reason = "" if left_out else "; more would make the file too large"
        text += f'<p class="soft screen">{len(cases)} of {count} cases{reason}.</p>'
    data = study.first.data
    notes = {
        picture.name: {label: f"Dice of {label}: {_dice_text(study, label, picture.name)}" for label in labels}
        for picture in cases
    }
    runs = list(study.runs)
    shown = study.reference if study.reference in runs else runs[-1]
    return text + viewer.viewer(data["channels"], data["classes"], cases, shown, _legend(study), notes)
