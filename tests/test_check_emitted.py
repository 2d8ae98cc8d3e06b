"""What is written for a plan has no mistakes, and is read as the plan it is."""

from __future__ import annotations

import pytest
from test_trainers_all import jobs
from trainer_jobs import name

from batchplan import check
from batchplan.configfile import Severity
from batchplan.trainers import TRAINERS, emit
from batchplan.trainers.realise import matters

OF_THE_PLAN = {"learning-rate-out-of-scale", "fp16-without-scaling"}
"""Warnings about the recipe and the rate that these plans are made with, not about the files."""


@pytest.mark.parametrize("trainer", TRAINERS)
def test_emitted_files_are_checked_without_findings(trainer, tmp_path):
    plans = [one for several in (False, True) for one in jobs(trainer, several, every=331)]
    assert plans
    for place, (recipe, job) in enumerate(plans):
        folder = tmp_path / str(place)
        folder.mkdir()
        for file in emit(trainer, job):
            (folder / file.name).write_text(file.text, encoding="utf-8")
        answer = check(sorted(folder.iterdir()), offline=True)
        assert answer.trainer == trainer
        told = [one for one in answer.findings if one.severity is not Severity.NOTE]
        assert [one for one in told if one.code not in OF_THE_PLAN] == [], name(recipe)
        batch, run = job.plan.batch, answer.run
        assert (run.micro_batch, run.accum_steps, run.num_ranks) == (
            batch.micro_batch,
            batch.accum_steps,
            batch.num_ranks,
        )
        before, after = recipe.model_dump(mode="json"), answer.recipe.model_dump(mode="json")
        differ = {
            field: (before[field], after[field])
            for field in before
            if matters(field, recipe) and before[field] != after[field]
        }
        assert differ == {}, name(recipe)
