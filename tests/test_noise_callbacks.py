"""The noise scale during real training: transformers' Trainer, and the documented loop."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from console_blocks import ROOT

from batchplan.errors import SpecError
from batchplan.learning.noise import Window

pytestmark = pytest.mark.slow  # each needs transformers and its models in this process

PAGE = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")
VOCABULARY = 16


def tiny_model() -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def rows(count: int) -> list[dict[str, list[int]]]:
    rng = random.Random(0)
    made = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(3, 14))] for _ in range(count)]
    return [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in made]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> Any:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}


def trainer(folder: Path, callback: Any, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 24,
        "logging_steps": 24,
        "max_grad_norm": 1e-3,  # clips every step
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return transformers.Trainer(
        model=tiny_model(),
        args=transformers.TrainingArguments(**arguments | more),
        train_dataset=rows(400),
        data_collator=collate,
        callbacks=[callback],
    )


@pytest.mark.filterwarnings("ignore")
def test_the_trainers_own_gradients_are_measured_before_they_are_clipped(tmp_path):
    torch = pytest.importorskip("torch")
    from batchplan.callbacks import NoiseScaleCallback

    callback = NoiseScaleCallback(skip_steps=2)
    made = trainer(tmp_path, callback)
    norms: list[float] = []
    clip = made.accelerator.clip_grad_norm_

    def spy(parameters: Any, *arguments: Any, **options: Any) -> Any:
        norms.append(float(clip(parameters, *arguments, **options)))
        return torch.tensor(norms[-1])

    made.accelerator.clip_grad_norm_ = spy
    made.train()
    lines = [json.loads(line) for line in (tmp_path / "noise.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(3, 25))
    # The length of the whole gradient is what the Trainer itself saw before it clipped.
    for line, norm in zip(lines, norms[2:], strict=True):
        assert line["square_of_mean"] == pytest.approx(norm**2, rel=1e-4)
        assert line["num_micro_batches"] == 4
        assert line["num_sequences"] == 8
        del line["step"]
        assert Window(**line).noise > 0
    found = callback.result().tokens
    assert made.state.log_history[0]["noise_scale_tokens_low"] == pytest.approx(found.low)


@pytest.mark.parametrize(
    ("labels", "num_tokens"),
    [([[-100, 5, 6], [7, 8, -100]], 3), ([4, 1], 2)],  # next tokens, and a class for each example
)
def test_the_first_of_a_row_is_no_target_and_one_label_an_example_is(labels, num_tokens):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from batchplan.callbacks import NoiseScaleCallback

    callback = NoiseScaleCallback()
    callback._count(torch.nn.Identity(), (), {"labels": torch.tensor(labels)})
    assert (callback._tokens, callback._sequences) == (num_tokens, 2)


@pytest.mark.filterwarnings("ignore")
def test_one_gradient_a_step_is_refused(tmp_path):
    pytest.importorskip("transformers")
    from batchplan.callbacks import NoiseScaleCallback

    with pytest.raises(SpecError, match="gradient_accumulation_steps 2 or more"):
        trainer(tmp_path, NoiseScaleCallback(), gradient_accumulation_steps=1).train()


def test_the_documented_loop_is_ten_lines_and_measures_every_gradient():
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        if "NoiseMeter" in block
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    data = rows(48)
    steps = [
        [collate(data[at : at + 2]) for at in range(start, start + 8, 2)]
        for start in range(0, 48, 8)
    ]
    torch = pytest.importorskip("torch")
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scope: dict[str, Any] = {"model": model, "optimizer": optimizer, "steps": steps}
    exec(code, scope)  # the page's own code
    windows = list(scope["meter"].windows)
    assert len(windows) == 6
    for window, micros in zip(windows, steps, strict=True):
        expected = by_autograd(model, micros)
        assert window.num_tokens == expected.num_tokens
        assert window.sum_of_squares == pytest.approx(expected.sum_of_squares, rel=1e-4)
        assert window.square_of_mean == pytest.approx(expected.square_of_mean, rel=1e-4)


def by_autograd(model: Any, micros: list[dict[str, Any]]) -> Window:
    """The same window with every gradient taken by itself and kept."""
    torch = pytest.importorskip("torch")
    parameters, gradients, tokens = list(model.parameters()), [], []
    for micro in micros:
        parts = torch.autograd.grad(model(**micro).loss, parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
        tokens.append(int((micro["labels"][:, 1:] != -100).sum()))
    mean = sum(n * g for n, g in zip(tokens, gradients, strict=True)) / sum(tokens)
    squares = (n * n * float(g.square().sum()) for n, g in zip(tokens, gradients, strict=True))
    return Window(
        num_micro_batches=len(micros),
        num_sequences=sum(len(micro["labels"]) for micro in micros),
        num_tokens=sum(tokens),
        squared_tokens=sum(n * n for n in tokens),
        sum_of_squares=sum(squares),
        square_of_mean=float(mean.square().sum()),
    )
