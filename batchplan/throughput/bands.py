"""How far a step's real time may lie from the middle: one band for each part of the bill."""

from __future__ import annotations

from dataclasses import dataclass

COMPUTE = "compute"
DEQUANTISATION = "dequantisation"
COMMUNICATION = "exposed communication"
OPTIMIZER = "optimizer step"
OFFLOAD = "offload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Low and high over middle."""

    low: float
    high: float
    basis: str
    """What it rests on, in words."""


MEASURED_BAND = Band(
    low=0.88,
    high=1.30,
    basis="holds for 87 of the 87 published A100 and H100 runs that the constants were not fitted "
    "to, though its edges were chosen with them in view; they run tuned code, so expect plain "
    "trainers in the upper half",
)
GUESSED_BAND = Band(
    low=0.60,
    high=1.75,
    basis="a guess: no published run on this device or of this kind of work stands behind it",
)
PART_BANDS: dict[str, Band] = {
    DEQUANTISATION: Band(low=0.8, high=1.6, basis="11-15 ms a billion weights; GPTQ 20-34"),
    COMMUNICATION: Band(low=0.5, high=1.6, basis="all of it hidden but the ends, or none; a guess"),
    OPTIMIZER: Band(low=0.8, high=1.5, basis="one figure, 8B on H100; a guess"),
    OFFLOAD: Band(low=0.4, high=2.5, basis="hosts differ widely; a guess"),
}
