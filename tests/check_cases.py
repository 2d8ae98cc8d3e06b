"""One mistake each: the smallest file that has it, and what the same place should say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SLOT = "@@"
"""Where, in one of a case's files, the mistake stands."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A mistake and its correction."""

    code: str
    name: str
    """Tells cases of one code apart."""
    files: dict[str, str]
    """By name, the main file first; one of them holds ``SLOT``."""
    wrong: str
    right: str
    severity: str
    trainer: str | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    fixable: bool = False
    line_of: str | None = None
    """Words of the line that is told, where it is not the slot's; empty where none is."""

    def texts(self, slot: str) -> dict[str, str]:
        return {name: text.replace(SLOT, slot) for name, text in self.files.items()}

    @property
    def place(self) -> tuple[str, int | None]:
        """The file and the line that must be told."""
        if self.line_of == "":
            return next(iter(self.files)), None
        wanted = self.line_of or self.wrong.splitlines()[0]
        for name, text in self.texts(self.wrong).items():
            if (SLOT in self.files[name]) or self.line_of:
                for number, line in enumerate(text.splitlines(), start=1):
                    if wanted in line:
                        return name, number
        raise AssertionError(f"{self.code} {self.name}: no line says {wanted}")


HF = """\
output_dir: out
# what a step holds
per_device_train_batch_size: 2
gradient_accumulation_steps: 8  # of 8 devices
learning_rate: 2.0e-05
bf16: true
optim: adamw_torch_fused
@@
# the end
"""
TRL = """\
model_name_or_path: Qwen/Qwen2.5-7B
output_dir: out
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
max_length: 1024
learning_rate: 2.0e-04
use_peft: true
lora_r: 16  # the rank
@@
# the end
"""
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
mixed_precision: bf16
num_machines: 1
num_processes: 8
main_training_function: main
{more}
"""
SWIFT = """\
model: Qwen/Qwen2.5-7B-Instruct
tuner_type: lora
torch_dtype: bfloat16
max_length: 4096
per_device_train_batch_size: 2
learning_rate: 1.0e-04
@@
"""
AXOLOTL = """\
base_model: Qwen/Qwen2.5-7B
datasets: [{path: mhenrichsen/alpaca_2k_test, type: alpaca}]
sequence_len: 4096
micro_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 2.0e-05
optimizer: adamw_torch_fused
num_epochs: 1
@@
"""
LLAMAFACTORY = """\
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
stage: sft
finetuning_type: lora
template: qwen
cutoff_len: 2048
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
@@
"""
LITGPT = """\
checkpoint_dir: checkpoints/Qwen/Qwen2.5-7B
devices: 8
train:
  global_batch_size: @@
  micro_batch_size: 4
  max_seq_length: 2048
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 0.00002
"""
DEEPSPEED = """\
{
  "train_batch_size": @@,
  "train_micro_batch_size_per_gpu": 2,
  "gradient_accumulation_steps": 8,
  "bf16": {"enabled": true},
  "zero_optimization": {"stage": 2}
}
"""
BUCKETS = """\
{
  "train_micro_batch_size_per_gpu": 2,
  "bf16": {"enabled": true},
  "zero_optimization": {
    "stage": 2,
    @@
  }
}
"""
FSDP = "fsdp: true\nfsdp_config:\n  version: 2\n  activation_checkpointing: {}"
TITAN = """\
torchrun --nproc_per_node=8 -m torchtitan.train --module llama3 --config llama3_8b \\
  --training.local_batch_size 2 \\
  --training.global_batch_size @@ \\
  --training.seq_len 4096
"""
TUNE = """\
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: /x, max_seq_len: 2048}
model:
  _component_: torchtune.models.llama3.lora_llama3_8b
  lora_attn_modules: [q_proj]
  @@
loss: {_component_: my.own.Loss, gamma: 2.0}  # nobody knows its arguments
batch_size: 2
# slot
"""
LOOP = """\
import torch
from torch.utils.data import DataLoader

ACCUM_STEPS = 8
loader = DataLoader(data, batch_size=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
for i, batch in enumerate(loader):
    loss = model(**batch).loss@@
    loss.backward()
    if (i + 1) % ACCUM_STEPS == 0:
        optimizer.step()
        optimizer.zero_grad()
"""

CASES = (
    Case(
        code="accumulation-multiplies",
        name="passes and a global batch",
        files={"run.yaml": AXOLOTL},
        wrong="batch_size: 16",
        right="eval_batch_size: 2",
        severity="error",
    ),
    Case(
        code="warmup-longer-than-training",
        name="of epochs that are cut short",
        files={
            "run.yaml": TUNE.replace("  @@\n", "").replace("# slot", "epochs: 2\n@@")
            + "lr_scheduler:\n"
            "  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup\n"
            "  num_warmup_steps: 100\n"
        },
        wrong="max_steps_per_epoch: 40",
        right="max_steps_per_epoch: 51",
        line_of="num_warmup_steps",
        severity="error",
    ),
    Case(
        code="buckets-not-counted",
        name="a smaller one",
        files={"ds.json": BUCKETS},
        wrong='"reduce_bucket_size": 1e8',
        right='"reduce_bucket_size": 5e8',
        severity="note",
    ),
    Case(
        code="buckets-not-counted",
        name="a larger one",
        files={"ds.json": BUCKETS},
        wrong='"reduce_bucket_size": 1e9',
        right='"reduce_bucket_size": "auto"',
        severity="warning",
    ),
    Case(
        code="buckets-not-counted",
        name="two of them",
        files={"ds.json": BUCKETS},
        wrong='"overlap_comm": true',
        right='"overlap_comm": false',
        severity="warning",
    ),
    Case(
        code="unknown-key",
        name="of a script's own dataclass",
        files={"run.yaml": HF},
        wrong="dataset_folder: data",
        right="max_grad_norm: 1.0",
        severity="warning",
        trainer="hf-trainer",
    ),
    Case(
        code="renamed-key",
        name="flag",
        files={"run.sh": "torchrun train.py \\\n  --per_device_train_batch_size 2 \\\n  @@\n"},
        wrong="--evaluation_strategy steps",
        right="--eval_strategy steps",
        severity="error",
        trainer="hf-trainer",
        fixable=True,
    ),
    Case(
        code="unread-flags",
        name="of a script",
        files={"run.sh": "accelerate launch --num_processes 8 \\\n  train.py @@\n"},
        wrong="--batch_size 4",
        right="",
        severity="warning",
    ),
    Case(
        code="unread-flags",
        name="overrides",
        files={"run.sh": "tune run lora_finetune_single_device --config x.yaml \\\n  @@\n"},
        wrong="batch_size=4",
        right="",
        severity="warning",
    ),
    Case(
        code="unread-flags",
        name="config that the trainer ships",
        files={"run.sh": "tune run lora_finetune_single_device \\\n  --config @@\n"},
        wrong="llama3_1/8B_lora_single_device",
        right="x.yaml",
        severity="warning",
    ),
    Case(
        code="unread-flags",
        name="of the trainer's program",
        files={"run.sh": "axolotl train x.yaml \\\n  @@\n"},
        wrong="--micro_batch_size 4",
        right="--launcher accelerate",
        severity="warning",
    ),
    Case(
        code="unknown-key",
        name="refused",
        files={"run.yaml": HF},
        wrong="max_grad_nrom: 1.0",
        right="max_grad_norm: 1.0",
        severity="error",
        fixable=True,
    ),
    Case(
        code="unknown-key",
        name="ignored",
        files={"run.yaml": AXOLOTL},
        wrong="flash_atention: true",
        right="flash_attention: true",
        severity="warning",
        fixable=True,
    ),
    Case(
        code="unknown-key",
        name="nested in accelerate",
        files={
            "acc.yaml": ACCELERATE.format(kind="FSDP", more="fsdp_config:\n  fsdp_version: 2\n  @@")
        },
        wrong="fsdp_reshard_aftr_forward: true",
        right="fsdp_reshard_after_forward: true",
        severity="warning",
        fixable=True,
    ),
    Case(
        code="unknown-key",
        name="ignored in fsdp_config",
        files={"run.yaml": HF.replace("@@", "fsdp: true\nfsdp_config:\n  @@")},
        wrong="reshard_aftr_forward: true",
        right="fsdp_reshard_after_forward: true",  # the Trainer cuts the prefix off
        severity="warning",
        fixable=True,
    ),
    Case(
        code="unknown-key",
        name="ignored by a recipe",
        files={"run.yaml": TUNE.replace("@@", "lora_alpha: 16").replace("# slot", "@@")},
        wrong="max_step_per_epoch: 10",
        right="max_steps_per_epoch: 10",
        severity="warning",
        fixable=True,
    ),
    Case(
        code="unknown-key",
        name="argument of a component",
        files={"run.yaml": TUNE},
        wrong="lora_rnk: 8",
        right="lora_rank: 8",
        severity="error",
        fixable=True,
    ),
    Case(
        code="unknown-key",
        name="ignored by BitsAndBytesConfig",
        files={
            "train.py": "from transformers import BitsAndBytesConfig, TrainingArguments\n"
            'args = TrainingArguments(output_dir="out")\n'
            "bnb = BitsAndBytesConfig(load_in_4bit=True, @@=True)\n"
        },
        wrong="use_double_quant",
        right="bnb_4bit_use_double_quant",
        severity="warning",
        line_of="bnb = ",
    ),
    Case(
        code="renamed-key",
        name="by the library below",
        files={"run.yaml": TRL.replace("@@", "dtype: bfloat16\n@@")},
        wrong="warmup_ratio: 0.03",
        right="warmup_steps: 0.03",
        severity="error",
        fixable=True,
    ),
    Case(
        code="renamed-key",
        name="evaluation strategy",
        files={"run.yaml": HF},
        wrong="evaluation_strategy: 'no'",
        right="eval_strategy: 'no'",
        severity="error",
        fixable=True,
    ),
    Case(
        code="renamed-key",
        name="into a section",
        files={"run.yaml": HF},
        wrong="split_batches: true",
        right="accelerator_config: {split_batches: true}",
        severity="error",
        fixable=True,
    ),
    Case(
        code="renamed-key",
        name="with another value",
        files={"run.yaml": HF},
        wrong="group_by_length: true",
        right="train_sampling_strategy: group_by_length",
        severity="error",
        fixable=True,
    ),
    Case(
        code="renamed-key",
        name="an argument of SFTTrainer",
        files={
            "train.py": "from trl import SFTConfig, SFTTrainer\n"
            'trainer = SFTTrainer(\n    "facebook/opt-350m",\n    @@=tokens,\n'
            "    args=SFTConfig(max_length=512),\n    train_dataset=rows,\n)\n"
        },
        wrong="tokenizer",
        right="processing_class",
        severity="error",
        fixable=True,
    ),
    Case(
        code="renamed-key",
        name="an argument of SFTTrainer that is one of its arguments' now",
        files={
            "train.py": "from trl import SFTConfig, SFTTrainer\n"
            'trainer = SFTTrainer(\n    "facebook/opt-350m",\n    train_dataset=rows,\n'
            "    @@\n)\n"
        },
        wrong="max_seq_length=512,",
        right="args=SFTConfig(max_length=512),",
        severity="error",
    ),
    Case(
        code="renamed-key",
        name="an argument of the Trainer",
        files={
            "train.py": "from transformers import Trainer, TrainingArguments\n"
            'trainer = Trainer(\n    model,\n    TrainingArguments(output_dir="out"),\n'
            "    @@=tokens,\n)\n"
        },
        wrong="tokenizer",
        right="processing_class",
        severity="error",
        fixable=True,
    ),
    Case(
        code="removed-key",
        name="overwrite",
        files={"run.yaml": HF},
        wrong="overwrite_output_dir: true",
        right="max_grad_norm: 1.0",
        severity="error",
        fixable=True,
    ),
    Case(
        code="repeated-key",
        name="yaml",
        files={"run.yaml": HF},
        wrong="weight_decay: 0.0\nweight_decay: 0.1",
        right="weight_decay: 0.1",
        severity="warning",
    ),
    Case(
        code="string-learning-rate",
        name="kept as text",
        files={
            "run.yaml": HF.replace("learning_rate: 2.0e-05", "learning_rate: @@  # peak").replace(
                "@@\n#", "#"
            )
        },
        wrong="2e-5",
        right="2.0e-05",
        severity="error",
        fixable=True,
    ),
    Case(
        code="string-learning-rate",
        name="coerced",
        files={
            "run.yaml": TRL.replace("learning_rate: 2.0e-04", "learning_rate: @@").replace(
                "@@\n#", "dtype: bfloat16\n#"
            )
        },
        wrong="2e-4",
        right="2.0e-04",
        severity="note",
        fixable=True,
    ),
    Case(
        code="string-learning-rate",
        name="in a script",
        files={
            "train.py": "from transformers import TrainingArguments\n"
            'args = TrainingArguments(\n    output_dir="out",\n    learning_rate=@@,\n)\n'
        },
        wrong='"2e-5"',
        right="2e-5",
        severity="error",
        fixable=True,
    ),
    Case(
        code="text-for-a-value",
        name="a number",
        files={"run.yaml": HF},
        wrong='max_grad_norm: "1.0"',
        right="max_grad_norm: 1.0",
        severity="error",
        fixable=True,
    ),
    Case(
        code="text-for-a-value",
        name="a switch",
        files={"run.yaml": HF},
        wrong='gradient_checkpointing: "true"',
        right="gradient_checkpointing: true",
        severity="error",
        fixable=True,
    ),
    Case(
        code="value-unknown",
        name="no is false",
        files={"run.yaml": HF},
        wrong="eval_strategy: no",
        right="eval_strategy: 'no'",
        severity="error",
        fixable=True,
    ),
    Case(
        code="value-unknown",
        name="misspelt",
        files={"run.yaml": TRL.replace("@@", "dtype: bfloat16\n@@")},
        wrong="lr_scheduler_type: cosin",
        right="lr_scheduler_type: cosine",
        severity="error",
        fixable=True,
    ),
    Case(
        code="value-unknown",
        name="of an older release, in a script",
        files={
            "train.py": "from transformers import TrainingArguments\n"
            'args = TrainingArguments(output_dir="out", optim="@@")\n'
        },
        wrong="adamw_hf",
        right="adamw_torch",
        severity="error",
        line_of="optim",
    ),
    Case(
        code="accumulation-multiplies",
        name="accelerate",
        files={
            "run.yaml": HF.replace("@@\n", ""),
            "acc.yaml": ACCELERATE.format(
                kind="DEEPSPEED",
                more="deepspeed_config:\n  zero_stage: 2\n  gradient_accumulation_steps: @@",
            ),
        },
        wrong="4",
        right="8",
        severity="error",
        line_of="  gradient_accumulation_steps: 4",
    ),
    Case(
        code="accumulation-filled",
        name="ms-swift",
        files={"run.yaml": SWIFT},
        wrong="lora_rank: 8",
        right="gradient_accumulation_steps: 4",
        severity="warning",
        line_of="per_device_train_batch_size",
    ),
    Case(
        code="devices-differ",
        name="torchrun",
        files={
            "run.yaml": HF.replace("@@\n", ""),
            "launch.sh": "torchrun --nproc_per_node=@@ train.py --config run.yaml\n",
        },
        wrong="4",
        right="8",
        severity="warning",
        asked={"devices": 8},
        line_of="--nproc_per_node",
    ),
    Case(
        code="processes-twice",
        name="accelerate launch",
        files={
            "run.yaml": HF.replace("@@\n", ""),
            "acc.yaml": ACCELERATE.format(kind="MULTI_GPU", more="gpu_ids: all"),
            "launch.sh": "accelerate launch --config_file acc.yaml --num_processes @@ train.py\n",
        },
        wrong="4",
        right="8",
        severity="warning",
        line_of="--num_processes",
    ),
    Case(
        code="deepspeed-triple-mismatch",
        name="alone",
        files={"ds.json": DEEPSPEED},
        wrong="64",
        right="128",
        severity="error",
        asked={"devices": 8},
        fixable=True,
        line_of='"train_batch_size"',
    ),
    Case(
        code="deepspeed-triple-mismatch",
        name="under the Trainer",
        files={"run.yaml": HF.replace("@@", "deepspeed: ds.json"), "ds.json": DEEPSPEED},
        wrong="64",
        right='"auto"',
        severity="error",
        asked={"devices": 8},
        line_of='"train_batch_size"',
    ),
    Case(
        code="deepspeed-trainer-mismatch",
        name="micro-batch",
        files={
            "run.yaml": HF.replace("@@", "deepspeed: ds.json"),
            "ds.json": DEEPSPEED.replace("@@", '"auto"').replace('_gpu": 2', '_gpu": @@'),
        },
        wrong="4",
        right="2",
        severity="error",
        asked={"devices": 8},
        line_of='"train_micro_batch_size_per_gpu"',
    ),
    Case(
        code="deepspeed-auto",
        name="nobody says whose",
        files={"ds.json": DEEPSPEED},
        wrong='"auto"',
        right="128",
        severity="note",
        asked={"devices": 8},
        line_of='"train_batch_size"',
    ),
    Case(
        code="deepspeed-auto",
        name="alone",
        files={"ds.json": DEEPSPEED},
        wrong='"auto"',
        right="128",
        severity="error",
        trainer="deepspeed",
        asked={"devices": 8},
        line_of='"train_batch_size"',
    ),
    Case(
        code="litgpt-floor",
        name="fewer",
        files={"run.yaml": LITGPT},
        wrong="100",
        right="96",
        severity="warning",
        fixable=True,
        line_of="global_batch_size",
    ),
    Case(
        code="litgpt-floor",
        name="none",
        files={"run.yaml": LITGPT},
        wrong="16",
        right="32",
        severity="error",
        fixable=True,
        line_of="global_batch_size",
    ),
    Case(
        code="torchtitan-indivisible",
        name="flags",
        files={"run.sh": TITAN},
        wrong="100",
        right="96",
        severity="error",
        line_of="global_batch_size",
    ),
    Case(
        code="warmup-longer-than-training",
        name="longer",
        files={"run.yaml": HF},
        wrong="warmup_steps: 500\nmax_steps: 200",
        right="warmup_steps: 10\nmax_steps: 200",
        severity="error",
    ),
    Case(
        code="learning-rate-out-of-scale",
        name="full",
        files={"run.yaml": HF.replace("2.0e-05", "@@").replace("@@\n#", "#")},
        wrong="0.01",
        right="2.0e-05",
        severity="warning",
        line_of="learning_rate",
    ),
    Case(
        code="beta2-out-of-range",
        name="one",
        files={"run.yaml": HF},
        wrong="adam_beta2: 1.0",
        right="adam_beta2: 0.999",
        severity="error",
    ),
    Case(
        code="bf16-unsupported",
        name="v100",
        files={"run.yaml": HF.replace("bf16: true", "@@").replace("@@\n#", "#")},
        wrong="bf16: true",
        right="fp16: true",
        severity="error",
        asked={"gpu": "v100-32gb"},
    ),
    Case(
        code="fp16-without-scaling",
        name="pure",
        files={
            "run.yaml": HF.replace("bf16: true\n", "").replace("@@", "max_steps: 100"),
            "model.yaml": "from_pretrained:\n  dtype: @@\n",
        },
        wrong="float16",
        right="bfloat16",
        severity="warning",
    ),
    Case(
        code="bf16-and-fp16",
        name="trainer",
        files={"run.yaml": HF},
        wrong="fp16: true",
        right="fp16: false",
        severity="error",
        fixable=True,
    ),
    Case(
        code="bf16-and-fp16",
        name="deepspeed",
        files={
            "ds.json": DEEPSPEED.replace("@@", "128").replace(
                '"zero_opt', '"fp16": {"enabled": @@},\n  "zero_opt'
            )
        },
        wrong="true",
        right="false",
        severity="error",
        asked={"devices": 8},
        fixable=True,
        line_of='"fp16"',
    ),
    Case(
        code="fp32-load-by-default",
        name="adapters in TRL",
        files={"run.yaml": TRL},
        wrong="lora_alpha: 32",
        right="lora_alpha: 32\ndtype: bfloat16",
        severity="warning",
        fixable=True,
        line_of="model_name_or_path",
    ),
    Case(
        code="liger-in-trl",
        name="deprecated",
        files={"run.yaml": TRL},
        wrong="use_liger_kernel: true",
        right="use_liger_kernel: false",
        severity="note",
    ),
    Case(
        code="liger-in-trl",
        name="refused",
        files={"run.yaml": TRL},
        wrong="use_liger_kernel: true\nliger_kernel_config: {fused_linear_cross_entropy: true}",
        right="liger_kernel_config: {fused_linear_cross_entropy: false}",
        severity="error",
        line_of="fused_linear_cross_entropy",
    ),
    Case(
        code="sharding-twice",
        name="fsdp",
        files={
            "run.yaml": HF,
            "acc.yaml": ACCELERATE.format(kind="FSDP", more="fsdp_config:\n  fsdp_version: 2"),
        },
        wrong="fsdp: true",
        right="gradient_checkpointing: true",
        severity="warning",
    ),
    Case(
        code="sharding-twice",
        name="fsdp and deepspeed",
        files={
            "run.yaml": HF.replace("@@", "fsdp: @@\ndeepspeed: ds.json"),
            "ds.json": DEEPSPEED.replace("@@", '"auto"'),
        },
        wrong="true",
        right="''",
        severity="error",
        asked={"devices": 8},
        line_of="fsdp: true",
    ),
    Case(
        code="fsdp-upcast",
        name="bf16 weights",
        files={
            "run.yaml": HF.replace("@@", FSDP.format("true")),
            "model.yaml": "from_pretrained:\n  dtype: @@\n",
        },
        wrong="bfloat16",
        right="float32",
        severity="warning",
        asked={"devices": 8},
    ),
    Case(
        code="quantised-without-adapters",
        name="trl",
        files={
            "run.yaml": TRL.replace("@@", "dtype: bfloat16\nload_in_4bit: true").replace(
                "true\nlora_r", "@@\nlora_r"
            )
        },
        wrong="false",
        right="true",
        severity="error",
        line_of="load_in_4bit",
    ),
    Case(
        code="quantised-without-adapters",
        name="llamafactory",
        files={
            "run.yaml": LLAMAFACTORY.replace("@@", "quantization_bit: 4").replace(
                "finetuning_type: lora", "finetuning_type: @@"
            )
        },
        wrong="full",
        right="lora",
        severity="error",
        line_of="quantization_bit",
    ),
    Case(
        code="quantised-without-adapters",
        name="a script",
        files={
            "train.py": "from transformers import AutoModelForCausalLM, BitsAndBytesConfig\n"
            "from transformers import Trainer, TrainingArguments\n"
            'model = AutoModelForCausalLM.from_pretrained(\n    "facebook/opt-350m",\n'
            "    quantization_config=BitsAndBytesConfig(load_in_4bit=True),\n)\n@@\n"
            'trainer = Trainer(model, TrainingArguments(output_dir="out"))\n'
        },
        wrong="pass",
        right="model = get_peft_model(model, config)",
        severity="warning",
        line_of="quantization_config",
    ),
    Case(
        code="quant-storage-missing",
        name="trl",
        files={
            "run.yaml": TRL.replace(
                "@@",
                "dtype: bfloat16\nload_in_4bit: true\n@@\ngradient_checkpointing: false\n"
                + FSDP.format("true"),
            )
        },
        wrong="bnb_4bit_quant_type: nf4",
        right="bnb_4bit_quant_storage: bfloat16",
        severity="error",
        asked={"devices": 8},
        fixable=True,
        line_of="load_in_4bit",
    ),
    Case(
        code="fsdp-version-1",
        name="accelerate",
        files={"acc.yaml": ACCELERATE.format(kind="FSDP", more="fsdp_config:\n  @@")},
        wrong="fsdp_reshard_after_forward: true",
        right="fsdp_version: 2",
        severity="note",
        fixable=True,
        line_of="fsdp_config:",
    ),
    Case(
        code="checkpointing-twice",
        name="trainer",
        files={"run.yaml": HF.replace("@@", f"gradient_checkpointing: @@\n{FSDP.format('true')}")},
        wrong="true",
        right="false",
        severity="error",
        asked={"devices": 8},
        fixable=True,
        line_of="gradient_checkpointing",
    ),
    Case(
        code="checkpointing-twice",
        name="on by default in TRL",
        files={"run.yaml": TRL.replace("@@", "dtype: bfloat16\n" + FSDP.format("@@"))},
        wrong="true",
        right="false",
        severity="error",
        asked={"devices": 8},
        fixable=True,
        line_of="",
    ),
    Case(
        code="reentrant-lost",
        name="trl",
        files={
            "run.yaml": TRL.replace(
                "@@",
                "dtype: bfloat16\ndeepspeed: ds.json\n"
                "gradient_checkpointing_kwargs: {use_reentrant: @@}",
            ),
            "ds.json": DEEPSPEED.replace("@@", '"auto"').replace('"stage": 2', '"stage": 3'),
        },
        wrong="false",
        right="true",
        severity="warning",
        asked={"devices": 8},
        fixable=True,
        line_of="use_reentrant",
    ),
    Case(
        code="reentrant-partly-frozen",
        name="axolotl",
        files={
            "run.yaml": AXOLOTL.replace(
                "@@",
                "gradient_checkpointing: true\nunfrozen_parameters: [lm_head]\n"
                "gradient_checkpointing_kwargs: {use_reentrant: @@}",
            )
        },
        wrong="true",
        right="false",
        severity="error",
        fixable=True,
        line_of="use_reentrant",
    ),
    Case(
        code="attention-packing-mismatch",
        name="ms-swift",
        files={
            "run.yaml": SWIFT.replace(
                "@@", "gradient_accumulation_steps: 8\npacking: true\nattn_impl: @@"
            )
        },
        wrong="sdpa",
        right="flash_attn",
        severity="error",
        fixable=True,
        line_of="attn_impl",
    ),
    Case(
        code="attention-packing-mismatch",
        name="llamafactory",
        files={"run.yaml": LLAMAFACTORY.replace("@@", "packing: true\n@@")},
        wrong="lora_rank: 8",
        right="neat_packing: true",
        severity="note",
        fixable=True,
        line_of="packing: true",
    ),
    Case(
        code="missing-loss-scaling",
        name="loop",
        files={"run.yaml": HF.replace("@@\n", ""), "train.py": LOOP},
        wrong="",
        right=" / ACCUM_STEPS",
        severity="error",
        line_of="loss.backward()",
    ),
)
