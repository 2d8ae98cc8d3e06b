"""The gradient noise scale: estimated without bias, with an interval that keeps its promise."""

from batchplan.learning.noise.estimate import NoiseScale, noise_scale, running_estimates
from batchplan.learning.noise.fieller import LEVEL, Ratio, fieller
from batchplan.learning.noise.meaning import BatchCost, Span, batch_cost
from batchplan.learning.noise.plan import NextMeasurement, next_measurement, windows_needed
from batchplan.learning.noise.stopping import Watch
from batchplan.learning.noise.windows import Window, block_means

__all__ = [
    "LEVEL",
    "BatchCost",
    "NextMeasurement",
    "NoiseScale",
    "Ratio",
    "Span",
    "Watch",
    "Window",
    "batch_cost",
    "block_means",
    "fieller",
    "next_measurement",
    "noise_scale",
    "running_estimates",
    "windows_needed",
]
