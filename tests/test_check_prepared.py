"""What a script does to its model before the trainer has it."""

from __future__ import annotations

import pytest

from batchplan.api import check

QLORA = """\
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", quantization_config=bnb)
@@
model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
args = TrainingArguments("out", per_device_train_batch_size=2, bf16=True)
Trainer(model=model, args=args, train_dataset=data).train()
"""


def recipe(line: str, folder, script: str = QLORA):
    (folder / "train.py").write_text(script.replace("@@", line))
    return check(folder / "train.py", offline=True).recipe


@pytest.mark.parametrize(
    ("line", "checkpointing", "upcast"),
    [
        ("pass", "none", False),
        ("model = prepare_model_for_kbit_training(model)", "full", True),
        (
            "model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)",
            "none",
            True,
        ),
        ("model.gradient_checkpointing_enable()", "full", False),
        ("if cfg.ckpt: model.gradient_checkpointing_enable()", "none", False),
        ("if __name__ == '__main__': model.gradient_checkpointing_enable()", "full", False),
    ],
)
def test_calls_on_the_model_decide_beside_the_arguments(line, checkpointing, upcast, tmp_path):
    """Peft's function checkpoints and casts up unless told not to."""
    found = recipe(line, tmp_path)
    assert (found.method, found.checkpointing, found.frozen_upcast) == (
        "qlora",
        checkpointing,
        upcast,
    )


def test_reentrancy_of_such_a_call_counts(tmp_path):
    line = 'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": @})'
    for said in (True, False):
        assert recipe(line.replace("@", str(said)), tmp_path).reentrant is said


def test_a_model_in_16_bits_is_not_prepared(tmp_path):
    """Peft's function casts what it is given, but checkpoints quantised models only."""
    script = QLORA.replace(", quantization_config=bnb", "").replace("bnb = Bits", "unused = Bits")
    plain = script.replace("load_in_4bit=True, ", "")
    line = "model = prepare_model_for_kbit_training(model)"
    found = recipe(line, tmp_path, plain)
    assert (found.method, found.checkpointing) == ("lora", "none")
