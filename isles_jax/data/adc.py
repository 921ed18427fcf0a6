"""The apparent diffusion coefficient in one unit: 1e-3 mm2/s, in which healthy brain has about 0.8."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isles_jax.data.case import Case

UNIT = "1e-3 mm2/s"
# The unit as it is written, and the factor to 1e-3 mm2/s.
UNITS = (("mm2/s", 1e3), (UNIT, 1.0), ("1e-6 mm2/s", 1e-3))


def unit_of(adc: np.ndarray) -> str:
    """The unit of these values by the median of those above 0, one of `UNITS`; "" if it fits none.

    In the right unit, the median lies between 0.1 and 10 times 1e-3 mm2/s; the three units lie a factor of 1000 apart.
    """
    median = _median(adc)
    return next((unit for unit, factor in UNITS if 0.1 <= median * factor < 10), "")


def in_one_unit(case: Case, channels: Sequence[str]) -> Case:
    """Brings a channel called ADC to 1e-3 mm2/s, in place, and says so in a note; in no known unit, it stays."""
    if "ADC" not in channels or "ADC" in case.absent:
        return case
    adc = case.images[..., channels.index("ADC")]
    unit = unit_of(adc)
    if unit == UNIT:
        return case
    if unit:
        adc *= np.float32(dict(UNITS)[unit])
        note = f"ADC in {unit}, brought to {UNIT}"
    else:
        note = f"{case.name}: the median of ADC is {_median(adc):.3g}, expected about 0.0008, 0.8 or 800; left as it is"
    return replace(case, notes=(*case.notes, note))


def _median(adc: np.ndarray) -> float:
    return float(np.median(adc[adc > 0])) if (adc > 0).any() else 0.0


def taken_as_stored(description: Mapping[str, Any]) -> bool:
    """Whether a run took ADC of an nnU-Net folder as it is stored, as earlier versions did.

    Args:
      description: the run's data.json, or `profile.norms` of it.
    """
    return "units" not in description
