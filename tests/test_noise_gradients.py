"""Real gradients through the code that measures them: known noise scales, and dumber sums."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchplan.experiments.noise import Budget, Stop, measure_noise
from batchplan.experiments.subject import Subject
from batchplan.learning.noise import Window, noise_scale
from batchplan.sources.token_rows import TokenRow, draw_rows
from batchplan.spec import Recipe

torch = pytest.importorskip("torch")

SIZE, SIGMA = 6, 2.0


class Regression:
    """y = x.w* + sigma e with Gaussian x: the gradient's mean and covariance are known.

    With delta = w - w*: G = delta and tr Sigma = (d + 1) |delta|^2 + d sigma^2, by the fourth
    moments of a Gaussian.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.best = torch.zeros(SIZE, 1)
        self.layer = torch.nn.Linear(SIZE, 1, bias=False)
        torch.nn.init.constant_(self.layer.weight, 0.5)

    @property
    def noise_scale(self) -> float:
        delta = SIZE * 0.25
        return ((SIZE + 1) * delta + SIZE * SIGMA**2) / delta

    def summed_loss(self, count: int) -> Any:
        x = torch.randn(count, SIZE, generator=self.rng)
        y = x @ self.best + SIGMA * torch.randn(count, 1, generator=self.rng)
        return 0.5 * (self.layer(x) - y).square().sum()


def micro_sizes(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randint(1, 5) for _ in range(8)] for _ in range(150)]


def by_streaming(model: Regression, sizes: list[list[int]]) -> list[Window]:
    from batchplan.experiments.worker.sums import GradientSums

    parameters = list(model.layer.parameters())
    sums, windows = GradientSums(parameters), []
    for counts in sizes:
        sums.restart()
        for count in counts:
            model.summed_loss(count).backward()
            sums.add([p.grad for p in parameters], num_tokens=count, num_sequences=count)
            parameters[0].grad = None
        windows.append(Window(**sums.result()))
    return windows


def by_meter(model: Regression, sizes: list[list[int]]) -> list[Window]:
    from batchplan.callbacks import NoiseMeter

    meter = NoiseMeter(model.layer.parameters(), last=1000)
    for counts in sizes:
        for count in counts:
            (model.summed_loss(count) / sum(counts)).backward()
            meter.micro(num_tokens=count, num_sequences=count)
        torch.nn.utils.clip_grad_norm_(model.layer.parameters(), 1e-3)
        meter.window()
        model.layer.zero_grad()
    meter.close()
    return list(meter.windows)


@pytest.mark.parametrize("measure", [by_streaming, by_meter])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_known_noise_scale_is_within_the_interval(measure, seed):
    model = Regression(seed)
    found = noise_scale(measure(model, micro_sizes(seed)))
    assert found.tokens.holds(model.noise_scale)
    assert found.tokens.relative_width < 0.3


def test_streaming_and_the_meter_see_the_same_gradients():
    for one, other in zip(
        by_streaming(Regression(), micro_sizes(5)),
        by_meter(Regression(), micro_sizes(5)),
        strict=True,
    ):
        assert other.num_tokens == one.num_tokens
        assert other.sum_of_squares == pytest.approx(one.sum_of_squares, rel=1e-5)
        assert other.square_of_mean == pytest.approx(one.square_of_mean, rel=1e-5)


def test_a_tied_parameter_counts_once_and_a_frozen_one_not_at_all():
    from batchplan.callbacks import NoiseMeter
    from batchplan.experiments.worker.model import trained

    layers = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(3)))
    layers[1].weight = layers[0].weight
    layers[2].weight.requires_grad_(requires_grad=False)
    assert [id(p) for p in trained(layers)] == [id(layers[0].weight)]
    meter = NoiseMeter([*layers[0].parameters(), *layers.parameters()])
    for _ in range(2):
        layers(torch.ones(1, 3)).sum().backward()
        meter.micro(num_tokens=1)
    window = meter.window()
    assert window.square_of_mean == pytest.approx(float(layers[0].weight.grad.square().sum()))


def test_rows_are_padded_and_prompts_do_not_count():
    from batchplan.experiments.worker.data import collate

    batch = collate([[[5, 6, 7, 8], [-100, -100, 7, 8]], [[9, 4], None]], torch.device("cpu"))
    assert batch.num_tokens == 2 + 1
    assert batch.fed["labels"].tolist() == [[-100, -100, 7, 8], [9, 4, -100, -100]]
    assert batch.fed["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_the_meter_is_had_without_transformers_and_a_wrong_name_is_none():
    import batchplan.callbacks as home

    code = (
        "import sys, batchplan.callbacks as c; c.NoiseMeter; print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="NoiseMetre"):
        _ = home.NoiseMetre


# ---- the worker's process, on a tiny model ----

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def subject(**more: Any) -> Subject:
    recipe = Recipe(numerics="fp32", **more.pop("recipe", {}))
    return Subject(config=CONFIG, model_ref="", recipe=recipe, seq_len=32, **more)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(24):
            ids = [rng.randrange(32) for _ in range(rng.randint(3, 12))]
            labels = [-100, *ids[1:]] if rng.random() < 0.5 else [-100] * 2 + ids[2:]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    return path


def measured(path: Path, *, ranks: int = 1, **more: Any):
    return measure_noise(
        subject(num_ranks=ranks, **more),
        draw_rows(path, seq_len=32, seed=0),
        micro_batch=2,
        window=6,
        budget=Budget(),
    )


RANK_0_ENDS_BADLY = """
import atexit, os, time
if os.environ.get("RANK") == "0":
    atexit.register(os.abort)
if os.environ.get("RANK") == "1":
    def late(descriptor, line, write=os.write):
        if b'"event": "end"' in line:
            time.sleep(3)
        return write(descriptor, line)
    os.write = late
"""
"""As threads of torch sometimes have it: an interpreter aborts as it ends, the other not yet."""


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does_and_both_are_the_plain_gradients(
    rows, tmp_path, monkeypatch
):
    one = measured(rows)
    (tmp_path / "sitecustomize.py").write_text(RANK_0_ENDS_BADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    two = measured(rows, ranks=2)
    assert one.stopped is two.stopped is Stop.DATA
    assert len(one.windows) == 2
    for left, right in zip(one.windows, two.windows, strict=True):
        assert (left.num_micro_batches, left.num_tokens) == (6, right.num_tokens)
        assert right.sum_of_squares == pytest.approx(left.sum_of_squares, rel=1e-5)
        assert right.square_of_mean == pytest.approx(left.square_of_mean, rel=1e-4)
        assert right.loss == pytest.approx(left.loss, rel=1e-6)
    drawn = list(draw_rows(rows, seq_len=32, seed=0))
    expected = by_autograd(drawn[:12])
    assert one.windows[0].sum_of_squares == pytest.approx(expected.sum_of_squares, rel=1e-4)
    assert one.windows[0].square_of_mean == pytest.approx(expected.square_of_mean, rel=1e-4)
    assert one.windows[0].loss == pytest.approx(expected.loss, rel=1e-5)


def by_autograd(rows: list[TokenRow]) -> Window:
    """One window, every row a forward of its own in fp64, every gradient kept."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIG)
    model = AutoModelForCausalLM.from_config(config).double()
    parameters = list(model.parameters())
    gradients, tokens, loss = [], [], 0.0
    for at in range(0, len(rows), 2):
        total = 0.0
        for row in rows[at : at + 2]:
            logits = model(torch.tensor([list(row.ids)])).logits[0, :-1]
            labels = torch.tensor(list(row.labels or row.ids))[1:]
            total = total + torch.nn.functional.cross_entropy(
                logits, labels, reduction="sum", ignore_index=-100
            )
        parts = torch.autograd.grad(total, parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]))
        tokens.append(sum(row.num_targets for row in rows[at : at + 2]))
        loss += float(total.detach())
    whole = torch.stack(gradients).sum(0) / sum(tokens)
    return Window(
        num_micro_batches=len(tokens),
        num_sequences=len(rows),
        num_tokens=sum(tokens),
        squared_tokens=sum(n * n for n in tokens),
        sum_of_squares=sum(float(g.square().sum()) for g in gradients),
        square_of_mean=float(whole.square().sum()),
        loss=loss / sum(tokens),
    )


@pytest.mark.slow
def test_fresh_adapters_are_measured_without_the_share_of_a(rows):
    pytest.importorskip("peft")
    found = measured(rows, recipe={"method": "lora", "lora_rank": 2})
    assert found.num_trained < 3000
    assert noise_scale(found.windows).noise > 0
