"""Configs as people publish them: few of the keys that give a trainer away, older names, short."""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, str]] = {
    "hf-trainer": {
        "plain.yaml": """\
output_dir: ./results
num_train_epochs: 3
per_device_train_batch_size: 16
per_device_eval_batch_size: 64
warmup_steps: 500
weight_decay: 0.01
logging_dir: ./logs
logging_steps: 10
""",
        "old-names.yaml": """\
output_dir: out
evaluation_strategy: epoch
save_strategy: epoch
learning_rate: 2e-5
per_gpu_train_batch_size: 8
num_train_epochs: 3
load_best_model_at_end: true
fp16: true
group_by_length: true
""",
        "zero.json": """\
{
  "output_dir": "./out",
  "per_device_train_batch_size": 4,
  "gradient_accumulation_steps": 4,
  "learning_rate": 2e-5,
  "lr_scheduler_type": "cosine",
  "bf16": true,
  "tf32": true,
  "gradient_checkpointing": true,
  "report_to": "wandb"
}
""",
        "train.py": """\
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("gpt2")
args = TrainingArguments(
    output_dir="out", per_device_train_batch_size=4, gradient_accumulation_steps=8, bf16=True
)
Trainer(model=model, args=args, train_dataset=data).train()
""",
    },
    "trl": {
        "no-marks.yaml": """\
model_name_or_path: meta-llama/Llama-3.1-8B
dataset_name: HuggingFaceH4/ultrachat_200k
learning_rate: 2.0e-05
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
max_length: 2048
packing: true
attn_implementation: flash_attention_2
output_dir: out
bf16: true
""",
        "handbook.yaml": """\
model_name_or_path: mistralai/Mistral-7B-v0.1
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: HuggingFaceH4/deita-10k-v0-sft
bf16: true
evaluation_strategy: epoch
gradient_accumulation_steps: 1
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
learning_rate: 2.0e-05
lr_scheduler_type: cosine
max_seq_length: 2048
num_train_epochs: 1
output_dir: data/zephyr-7b-sft-full
overwrite_output_dir: true
per_device_train_batch_size: 16
warmup_ratio: 0.1
""",
        "lora.yaml": """\
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: trl-lib/Capybara
learning_rate: 2e-4
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
use_peft: true
lora_r: 32
lora_alpha: 16
""",
        "train.py": """\
from transformers import TrainingArguments
from trl import SFTTrainer

args = TrainingArguments(
    output_dir="out", per_device_train_batch_size=4, gradient_accumulation_steps=4, bf16=True
)
SFTTrainer("facebook/opt-350m", args=args, train_dataset=data, max_seq_length=512).train()
""",
        "run.sh": """\
accelerate launch -m trl.scripts.sft --model_name_or_path Qwen/Qwen2-0.5B \\
  --dataset_name trl-lib/Capybara --learning_rate 2.0e-5 --per_device_train_batch_size 2 \\
  --gradient_accumulation_steps 8 --output_dir out
""",
    },
    "accelerate": {
        "fsdp.yaml": """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_sharding_strategy: FULL_SHARD
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 8
""",
        "multi.yaml": """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
gpu_ids: all
mixed_precision: 'no'
num_machines: 2
num_processes: 16
""",
        "loop.py": """\
from accelerate import Accelerator

accelerator = Accelerator(gradient_accumulation_steps=4, mixed_precision="bf16")
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
""",
    },
    "deepspeed": {
        "zero2.json": """\
{"train_batch_size": 16, "gradient_accumulation_steps": 1, "fp16": {"enabled": true},
 "optimizer": {"type": "Adam", "params": {"lr": 0.00015}}, "zero_optimization": {"stage": 2}}
""",
        "zero3.json": """\
{"bf16": {"enabled": "auto"},
 "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true}},
 "gradient_accumulation_steps": "auto", "train_micro_batch_size_per_gpu": "auto"}
""",
        "batch.json": """\
{"train_batch_size": 8, "steps_per_print": 2000, "wall_clock_breakdown": false,
 "optimizer": {"type": "AdamW", "params": {"lr": 0.001, "betas": [0.8, 0.999]}}}
""",
    },
    "axolotl": {
        "qlora.yml": """\
base_model: NousResearch/Llama-2-7b-hf
model_type: LlamaForCausalLM
load_in_4bit: true
datasets:
  - path: mhenrichsen/alpaca_2k_test
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/qlora-out
adapter: qlora
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
""",
        "without-marks.yml": """\
datasets:
  - path: data.jsonl
    type: completion
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
val_set_size: 0.1
sample_packing: true
""",
        "fft.yml": """\
base_model: Qwen/Qwen2.5-0.5B
strict: false
chat_template: qwen_25
datasets: [{path: mlabonne/FineTome-100k, type: chat_template}]
sequence_len: 2048
pad_to_sequence_len: true
micro_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 2e-5
train_on_inputs: false
group_by_length: false
xformers_attention:
resume_from_checkpoint:
""",
    },
    "llamafactory": {
        "lora.yaml": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
""",
        "no-marks.yaml": """\
model_name_or_path: Qwen/Qwen2.5-7B
stage: pt
do_train: true
dataset: c4_demo
template: default
lora_target: all
lora_rank: 8
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1e-4
output_dir: saves
""",
        "full.yaml": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json
dataset: identity
template: llama3
cutoff_len: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
fp16: true
""",
        "run.sh": "FORCE_TORCHRUN=1 llamafactory-cli train lora.yaml\n",
    },
    "ms-swift": {
        "lora.yaml": """\
model: Qwen/Qwen2.5-7B-Instruct
train_type: lora
dataset:
  - AI-ModelScope/alpaca-gpt4-data-zh#500
torch_dtype: bfloat16
num_train_epochs: 1
per_device_train_batch_size: 1
learning_rate: 1e-4
lora_rank: 8
lora_alpha: 32
target_modules: all-linear
gradient_accumulation_steps: 16
eval_steps: 50
max_length: 2048
output_dir: output
warmup_ratio: 0.05
dataloader_num_workers: 4
""",
        "no-marks.yaml": """\
model: Qwen/Qwen2.5-7B-Instruct
dataset: [data.jsonl]
split_dataset_ratio: 0.01
target_modules: all-linear
lora_rank: 8
max_length: 2048
per_device_train_batch_size: 1
gradient_accumulation_steps: 16
learning_rate: 1e-4
system: You are a helpful assistant.
""",
        "run.sh": """\
CUDA_VISIBLE_DEVICES=0 swift sft --model Qwen/Qwen2.5-7B-Instruct --train_type lora \\
  --dataset data.jsonl --torch_dtype bfloat16 --per_device_train_batch_size 1 \\
  --gradient_accumulation_steps 16 --max_length 2048
""",
    },
    "unsloth": {
        "old.py": """\
from transformers import TrainingArguments
from trl import SFTTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/llama-3-8b-bnb-4bit", max_seq_length=2048, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model, r=16, lora_alpha=16, use_gradient_checkpointing="unsloth", random_state=3407
)
trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=dataset,
    max_seq_length=2048,
    args=TrainingArguments(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        warmup_steps=5,
        max_steps=60,
        learning_rate=2e-4,
        optim="adamw_8bit",
        output_dir="outputs",
    ),
)
""",
        "new.py": """\
from unsloth import FastModel
from trl import SFTConfig, SFTTrainer

model, tokenizer = FastModel.from_pretrained("unsloth/gemma-3-4b-it", load_in_4bit=True)
model = FastModel.get_peft_model(model, r=8, lora_alpha=8, lora_dropout=0)
SFTTrainer(
    model=model,
    args=SFTConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=30),
).train()
""",
        "full.py": """\
from unsloth import FastLanguageModel, UnslothTrainer, UnslothTrainingArguments

model, tokenizer = FastLanguageModel.from_pretrained("unsloth/Qwen3-4B", full_finetuning=True)
args = UnslothTrainingArguments(per_device_train_batch_size=2, embedding_learning_rate=1e-5)
""",
    },
    "torchtune": {
        "full.yaml": """\
output_dir: /tmp/torchtune/llama3_8B/full
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /tmp/Meta-Llama-3-8B-Instruct/original/tokenizer.model
dataset:
  _component_: torchtune.datasets.alpaca_dataset
  packed: False
seed: null
shuffle: True
model:
  _component_: torchtune.models.llama3.llama3_8b
batch_size: 2
epochs: 1
optimizer:
  _component_: torch.optim.AdamW
  lr: 2e-5
  fused: True
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
gradient_accumulation_steps: 1
enable_activation_checkpointing: True
dtype: bf16
device: cuda
""",
        "older-loss.yaml": """\
model:
  _component_: torchtune.models.llama2.lora_llama2_7b
  lora_attn_modules: ['q_proj', 'v_proj']
  lora_rank: 8
  lora_alpha: 16
batch_size: 2
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
enable_activation_checkpointing: True
""",
        "flat.yaml": """\
batch_size: 4
epochs: 3
max_steps_per_epoch: null
gradient_accumulation_steps: 1
enable_activation_checkpointing: true
enable_activation_offloading: false
clip_grad_norm: null
dtype: bf16
""",
        "run.sh": "tune run lora_finetune_single_device --config llama3/8B_lora_single_device\n",
    },
    "litgpt": {
        "lora.yaml": """\
checkpoint_dir: checkpoints/microsoft/phi-2
out_dir: out/finetune/lora-phi-2
precision: bf16-true
quantize:
devices: 1
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: false
lora_value: true
data:
  class_path: litgpt.data.Alpaca2k
train:
  global_batch_size: 8
  micro_batch_size: 4
  lr_warmup_steps: 10
  epochs: 1
  max_seq_length: 512
eval:
  interval: 100
logger_name: csv
seed: 1337
""",
        "pretrain.yaml": """\
model_name: tiny-llama-1.1b
out_dir: out/pretrain/tiny-llama
precision: bf16-mixed
data: TinyLlama
train:
  global_batch_size: 512
  micro_batch_size: 4
  max_tokens: 3000000000000
  max_norm: 1.0
  min_lr: 4e-5
eval:
  interval: 1000
devices: auto
tokenizer_dir: checkpoints/meta-llama/Llama-2-7b-hf
""",
        "full.yaml": """\
checkpoint_dir: checkpoints/stabilityai/stablelm-base-alpha-3b
precision: bf16-true
devices: 4
resume: false
train: {global_batch_size: 64, micro_batch_size: 1, epochs: 1, max_seq_length: 512}
""",
        "run.sh": "litgpt finetune_lora microsoft/phi-2 --train.micro_batch_size 4 --devices 1\n",
    },
    "lightning": {
        "cli.yaml": """\
seed_everything: 42
trainer:
  accelerator: gpu
  devices: 4
  strategy: ddp
  precision: 16-mixed
  max_epochs: 10
  accumulate_grad_batches: 4
model:
  class_path: my.Net
  init_args: {lr: 0.001}
data:
  class_path: my.Data
  init_args: {batch_size: 32}
""",
        "small.yaml": """\
trainer: {max_steps: 1000, precision: bf16-mixed}
model: {lr: 0.0001}
""",
        "train.py": """\
import lightning as L

trainer = L.Trainer(devices=2, strategy="fsdp", precision="bf16-mixed", accumulate_grad_batches=4)
trainer.fit(model, loader)
""",
        "older.py": """\
import pytorch_lightning as pl

trainer = pl.Trainer(gpus=2, precision=16, accumulate_grad_batches=4)
trainer.fit(model, loader)
""",
    },
    "torchtitan": {
        "run.sh": """\
torchrun --nproc_per_node=8 -m torchtitan.train --module llama3 --config llama3_8b \\
  --training.local_batch_size 1 --training.seq_len 8192
""",
        "multi.sh": """\
torchrun --nnodes 4 --nproc_per_node 8 -m torchtitan.train --module llama3 --config llama3_70b \\
  --training.local_batch_size 8 --parallelism.tensor_parallel_degree 8
""",
        "flags.sh": """\
export NGPU=8
torchrun --nproc_per_node=${NGPU} -m torchtitan.train --module llama3 --config llama3_8b \\
  --training.steps 1000
""",
    },
}
"""By trainer and file name."""
