"""``verify`` on real models: loops that are right, models that cannot be, and seeded mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_docs import unmentioned

import batchplan
from batchplan.experiments.subject import Subject
from batchplan.experiments.verify import Experiment, Verified, verify_model
from batchplan.experiments.verify_checks import Check
from batchplan.spec import Numerics, Recipe

pytestmark = pytest.mark.slow

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
}
RESNET = {
    "model_type": "resnet",
    "architectures": ["ResNetForImageClassification"],
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "image_size": 16,
    "num_labels": 5,
}
FAULTS = {
    # The mistake, and a check that it fails while it passes another one.
    "missing-division": ("C1", "C7"),
    "divided-twice": ("C1", "C7"),
    "mean-of-means": ("C2", "C1"),
    "summed-tokens": ("C2", "C7"),
    "configured-steps": ("C3", "C1"),
    "last-window-dropped": ("C3", "C2"),
    "rank-tokens": ("C4", "C2"),
    "zero-grad-forgotten": ("C1", "C7"),
    "zero-grad-every-micro-batch": ("C1", "C7"),
    "clip-every-micro-batch": ("C6", "C2"),
    "clip-missing": ("C6", "C2"),
    "scheduler-every-micro-batch": ("C7", "C1"),
    "step-every-micro-batch": ("C7", "C5"),
}


def verified(config: dict[str, Any], **asked: Any) -> Verified:
    subject = Subject(
        config=config, model_ref="", recipe=Recipe(numerics=Numerics.FP32), seq_len=512
    )
    return verify_model(subject, Experiment(accum_steps=3, **asked))


def by_code(found: Verified, subject: str) -> dict[str, Check]:
    return {check.code: check for check in found.checks if check.subject == subject}


@pytest.fixture(scope="module")
def seeded() -> Verified:
    """A tiny Llama under every loop there is, on one process and on two."""
    subjects = ["reference", "hf-trainer", *(f"fault:{name}" for name in FAULTS)]
    return verified(LLAMA, subjects=subjects, micro_batch=1)


@pytest.mark.xdist_group("verify-seeded")
@pytest.mark.parametrize("subject", ["reference", "hf-trainer"])
def test_loops_that_are_right_pass_every_check(seeded: Verified, subject: str) -> None:
    found = by_code(seeded, subject)
    assert set(found) >= {"C1", "C2", "C3", "C4", "C6", "C7"}
    assert {code: check.text for code, check in found.items() if check.ok is not True} == {}
    assert not seeded.causes


@pytest.mark.xdist_group("verify-seeded")
@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_mistake_fails_and_is_called_by_its_name(seeded: Verified, name: str) -> None:
    fails, passes = FAULTS[name]
    found = by_code(seeded, f"fault:{name}") | {"C5": by_code(seeded, "reference")["C5"]}
    assert found[fails].ok is False
    assert found[fails].fault == name
    assert found[passes].ok is True
    named = {check.fault for check in found.values() if check.fault is not None}
    assert named == {name}


@pytest.mark.parametrize(("coefficient", "is_exact"), [(0.5, False), (0.0, True)])
def test_a_load_balancing_loss_is_refuted_unless_its_coefficient_is_0(
    coefficient: float, is_exact: bool
) -> None:
    config = MIXTRAL | {"router_aux_loss_coef": coefficient}
    found = verified(config, subjects=["reference"], num_ranks=1)
    assert found.ok is is_exact
    assert [cause.kind for cause in found.causes] == ([] if is_exact else ["auxiliary-loss"])
    for cause in found.causes:
        assert cause.names == ("router_aux_loss_coef = 0.5",)
        assert cause.left < 1e-5 < cause.deviation


COUPLED = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class CoupledConfig(PretrainedConfig):
    model_type = "coupled"

    def __init__(self, vocab_size=64, hidden_size=16, coupling="loss", **kwargs):
        self.vocab_size, self.hidden_size, self.coupling = vocab_size, hidden_size, coupling
        super().__init__(**kwargs)


class Centre(nn.Module):
    def forward(self, hidden):
        return hidden - hidden.mean(0, keepdim=True)


class Coupled(PreTrainedModel):
    config_class = CoupledConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = Centre() if config.coupling == "forward" else nn.Identity()
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        hidden = self.mix(self.embed(input_ids))
        if self.config.coupling == "randomness":
            hidden = nn.functional.dropout(hidden, 0.1)
        logits = self.head(hidden)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if self.config.coupling == "loss":
            pooled = nn.functional.normalize(hidden.mean(1), dim=-1)
            targets = torch.arange(len(pooled))
            loss = loss + nn.functional.cross_entropy(10 * pooled @ pooled.T, targets)
        return CausalLMOutput(loss=loss, logits=logits)
"""


def coupled_model(folder: Path, coupling: str) -> Path:
    """A model with code of its own, whose loss or forward couples examples, or draws at random."""
    (folder / "modeling_coupled.py").write_text(COUPLED)
    config = {
        "model_type": "coupled",
        "architectures": ["Coupled"],
        "coupling": coupling,
        "auto_map": {
            "AutoConfig": "modeling_coupled.CoupledConfig",
            "AutoModelForCausalLM": "modeling_coupled.Coupled",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_verify(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code and document."""
    command = [sys.executable, "-m", "batchplan", "verify", str(folder)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_right_model_and_rows_of_ones_own_end_with_0(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    data = tmp_path / "rows.jsonl"
    rows = [{"input_ids": [*range(5, 5 + length)]} for length in (9, 60, 100)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, document = run_verify(tmp_path, str(data), "--memory")
    assert (code, document["ok"]) == (0, True)
    assert {check["code"] for check in document["checks"]} == {
        *(f"C{n}" for n in range(1, 8)),
        *("M1", "M2"),
    }
    assert all(check["ok"] is True for check in document["checks"])
    large, small = document["memory"]["layouts"]
    assert (large["micro_batch"], small["accum_steps"]) == (8, 8)
    assert large["measured_bytes"] > 2 * small["measured_bytes"]
    assert unmentioned(document) == set()


def test_batch_normalisation_ends_with_6_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RESNET))
    code, document = run_verify(tmp_path)
    assert (code, document["ok"]) == (6, False)
    checks = {(check["code"], check["subject"]): check for check in document["checks"]}
    assert checks["C1", "reference"]["ok"] is False
    assert checks["C1", "reference"]["fault"] is None
    assert checks["C1", "reference"]["deviation"] > 0.01
    assert checks["C2", "reference"]["ok"] is None
    cause = document["causes"][0]
    assert cause["kind"] == "batch-statistics"
    assert "BatchNorm2d" in cause["names"][0]
    assert cause["left"] < 1e-5 < cause["deviation"]
    assert unmentioned(document) == set()
    again = batchplan.verify(**document["inputs"]).to_dict()
    assert again["checks"] == document["checks"]


@pytest.mark.parametrize(
    ("coupling", "names"), [("loss", ()), ("forward", ("mix (Centre)",)), ("randomness", ())]
)
def test_coupling_that_no_class_gives_away_is_found_by_what_it_does(
    tmp_path: Path, coupling: str, names: tuple[str, ...]
) -> None:
    folder = coupled_model(tmp_path, coupling)
    subject = Subject(
        config=json.loads((folder / "config.json").read_text()),
        model_ref=str(folder),
        recipe=Recipe(numerics=Numerics.FP32),
        seq_len=512,
        trust_remote_code=True,
    )
    found = verify_model(subject, Experiment(subjects=["reference"], num_ranks=1))
    (cause,) = found.causes
    assert (cause.kind, cause.names) == (coupling, names)
    assert not found.ok


@pytest.mark.parametrize(
    ("cls", "more", "targets"),
    [
        ("BertForSequenceClassification", {"num_labels": 3}, 2),
        ("BertForSequenceClassification", {"num_labels": 1}, 2),
        ("LlamaForSequenceClassification", {"num_labels": 3}, 2),
        ("BertForTokenClassification", {"num_labels": 3}, 98),
    ],
)
def test_classes_of_text_have_labels_that_their_loss_takes_and_the_large_batch_as_their_mean(
    cls: str, more: dict[str, Any], targets: int
) -> None:
    import torch
    import transformers

    from batchplan.experiments.worker.verify_examples import Examples, loss_of

    sizes = {name: LLAMA[name] for name in LLAMA if name.startswith(("hidden", "inter", "num"))}
    kind = getattr(transformers, cls).config_class
    # In eval mode: BERT drops units.
    model = getattr(transformers, cls)(kind(vocab_size=64, **sizes, **more)).eval()
    asked = {"seed": 0, "rows": [], "micro_batch": 2}
    examples = Examples(model, asked, torch.device("cpu"))
    assert examples.has_lengths is (targets > 2)
    batches = examples.equal(3)
    assert [examples.targets(batch) for batch in batches] == [targets] * 3
    mean = sum(loss_of(model, batch) for batch in batches) / 3
    assert loss_of(model, examples.together(batches)).item() == pytest.approx(mean.item(), rel=1e-5)


def test_a_parameter_that_nothing_uses_keeps_no_rank_from_the_others_gradients() -> None:
    # XLNet has a mask_emb for permutations, which have to be asked for; and no last position.
    config = {
        "model_type": "xlnet",
        "architectures": ["XLNetLMHeadModel"],
        **{"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "vocab_size": 99},
    }
    found = verified(config, subjects=("reference",))
    checks = by_code(found, "reference")
    assert [checks[code].ok for code in ("C2", "C4")] == [True, True]


def test_a_pooler_is_as_narrow_as_what_it_pools() -> None:
    from batchplan.experiments.worker.verify_model import _narrow

    small = _narrow(
        {"hidden_size": 64, "pooler_hidden_size": 64, "num_attention_heads": 8, "vocab_size": 99}
    )
    assert small["pooler_hidden_size"] == small["hidden_size"] == 16
