"""Several ranks on one machine: real engines, one answer, and nobody waits for a lost rank."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import unruly
from test_probe_runner import LLAMA, job, left_behind, temporary

from batchplan.prober.runner import run_trial
from batchplan.prober.trial import Outcome, Trial
from batchplan.spec import Recipe
from batchplan.units import MIB

__all__ = ["temporary"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("probe-ranks")]

DEEP = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
LAYER = 4 * 256 * 256 + 3 * 256 * 1024
MATRICES = 2 * 512 * 256 + 6 * LAYER


def tried(recipe: dict[str, Any], micro_batch: int = 1, **changes: Any) -> Trial:
    given = {"config": DEEP, "seq_len": 8, "num_ranks": 2, "memory_limit_bytes": 300 * MIB}
    given |= {"timeout_seconds": 300.0}  # two ranks share what cores are left to them
    return run_trial(job(recipe=Recipe(**recipe), **(given | changes)), micro_batch)


def test_two_ranks_hold_halves_and_one_alone_holds_as_much(temporary):
    recipe = {"numerics": "fp32", "sharding": "fsdp-full"}
    both = tried(recipe)
    assert both.outcome is Outcome.FITS, both.text
    assert [rank.rank for rank in both.ranks] == [0, 1]
    for rank in both.ranks:
        # Half of weight, gradient and two moments of each matrix, and less than a whole copy
        # besides: what is gathered, and its gradient before it is sent.
        assert rank.allocated_peak_bytes is not None
        assert 8 * MATRICES <= rank.allocated_peak_bytes < 16 * MATRICES
    alone = tried(recipe, num_ranks=1, as_rank_of=2)
    assert alone.outcome is Outcome.FITS, alone.text
    # gloo's thread lets a layer's fp32 gradient go when it has sent it: before the next layer's
    # backward or after it, as the threads fall (4 MiB seen). A rank alone sends nothing.
    late = both.allocated_peak_bytes - alone.allocated_peak_bytes
    assert -MIB <= late <= 2 * 4 * LAYER
    assert "left out" in alone.notes[0]
    of_eight = tried(recipe, num_ranks=1, as_rank_of=8)
    # 16 bytes of every parameter that is not rank 0's any more: an eighth in place of a half.
    less = alone.allocated_peak_bytes - of_eight.allocated_peak_bytes
    assert less == pytest.approx(16 * MATRICES * (1 / 2 - 1 / 8), rel=0.15)
    assert left_behind(temporary) == ([], [])


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_trains_too_and_compiles_nothing(temporary, tmp_path, monkeypatch):
    extensions = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    recipe = {"numerics": "bf16-master", "sharding": "zero3", "optimizer_impl": "for-loop"}
    trial = tried(recipe)
    assert trial.outcome is Outcome.FITS, trial.text
    assert len(trial.ranks) == 2
    # Half of 16 bytes a parameter, the fp32 sums aside.
    assert trial.allocated_peak_bytes >= 8 * MATRICES
    assert list(extensions.rglob("*")) == []
    assert left_behind(temporary) == ([], [])


def test_all_ranks_out_of_memory_is_an_answer(temporary):
    trial = tried({"numerics": "fp32", "sharding": "fsdp-full"}, 4096)
    assert trial.outcome is Outcome.OUT_OF_MEMORY
    assert trial.text.startswith("rank ")
    assert left_behind(temporary) == ([], [])


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        (unruly.TOO_LARGE, Outcome.OUT_OF_MEMORY),
        (unruly.KILLED, Outcome.OUT_OF_MEMORY),
    ],
)
def test_one_failing_rank_holds_up_nobody(case, outcome, tmp_path, temporary):
    """Only rank 1's model misbehaves; rank 0 waits for it in a collective."""
    model = unruly.write_model(tmp_path)
    trial = tried({"numerics": "fp32", "sharding": "fsdp-full"}, case, **model)
    # Had anybody waited for its timeout, the trial would have timed out before.
    assert trial.outcome is outcome, trial
    assert "killed" in trial.text if case == unruly.KILLED else "rank 1" in trial.text
    assert left_behind(temporary) == ([], [])
