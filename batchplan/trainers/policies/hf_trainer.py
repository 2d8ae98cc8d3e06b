"""Transformers' own ``Trainer``."""

from batchplan.trainers.policies.on_transformers import ON_TRANSFORMERS
from batchplan.trainers.policies.rows import Policy

POLICY = Policy(
    trainer="hf-trainer",
    package="transformers",
    rows=ON_TRANSFORMERS,
)
