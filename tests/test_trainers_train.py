"""Emitted files drive real training of a tiny model, started as their launch script says."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from ports import free_port
from trainer_jobs import job, written

from batchplan.spec import Method, ModelInfo, Numerics, Recipe
from batchplan.trainers import Job, emit, realised

VOCABULARY, SEQ_LEN, STEPS = 64, 24, 3
MICRO_BATCH, PASSES = 2, 2
TRAIN_PY = """
import json, sys, yaml
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments

name = sys.argv[sys.argv.index("--config") + 1]
(args,) = HfArgumentParser(TrainingArguments).parse_yaml_file(name)
kwargs = yaml.safe_load(open(name.replace(".yaml", ".model.yaml")))
model = AutoModelForCausalLM.from_pretrained(**kwargs["from_pretrained"])
if "lora" in kwargs:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(**kwargs["lora"]))
texts = [json.loads(line)["text"].split() for line in open("data/train.jsonl")]
ids = [[int(word[1:]) for word in words] for words in texts]
rows = [{"input_ids": i, "labels": i} for i in ids]
trainer = Trainer(model=model, args=args, train_dataset=rows)
trainer.train()
open("wrapped.txt", "w").write(type(trainer.model_wrapped).__name__)
"""
"""What the comments of hf-trainer's files ask of the user's own script."""
OBSERVED = "use_cpu: true\nlogging_steps: 1\ninclude_num_input_tokens_seen: true\n"
"""Added to the copy that runs here: where it runs, and what it tells."""

ABORTED = "terminate called without an active exception"
"""A thread of the C++ runtime that outlives the interpreter of a rank, seldom and after the last
step (seen once in five runs); torchrun then calls the whole run failed."""


@dataclass(frozen=True)
class Run:
    """What a run left in its last checkpoint."""

    steps: int
    tokens: int
    num_ranks: int
    losses: tuple[float, ...]
    rates: tuple[float, ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random Llama of two layers and its tokenizer, as one loads them from a folder."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    return folder


def planned(trainer: str, model: Path, *, num_ranks: int, **recipe) -> Job:
    """A plan of three steps in fp32, which every CPU can run."""
    asked = Recipe(numerics=Numerics.FP32, **recipe)
    found = job(
        realised(trainer, asked, several_devices=num_ranks > 1),
        micro_batch=MICRO_BATCH,
        accum_steps=PASSES,
        num_ranks=num_ranks,
        nodes=1,
        seq_len=SEQ_LEN,
        lr=1e-3,
        model=ModelInfo(id=str(model), architecture="LlamaForCausalLM", source="local"),
    )
    return replace(found, epoch_steps=STEPS)


def train(trainer: str, plan: Job, folder: Path) -> Run:
    """Write the files, fill an epoch with data, and run the launch script."""
    main = written(emit(trainer, plan), folder)
    main.write_text(main.read_text(encoding="utf-8") + OBSERVED, encoding="utf-8")
    (folder / "train.py").write_text(TRAIN_PY, encoding="utf-8")
    (folder / "data").mkdir()
    numbers = random.Random(0)
    rows = [
        " ".join(f"w{numbers.randrange(1, VOCABULARY)}" for _ in range(SEQ_LEN))
        for _ in range(STEPS * plan.plan.batch.global_batch_size)
    ]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (folder / "data" / "train.jsonl").write_text(lines, encoding="utf-8")
    done = launched(folder)
    if done.returncode and ABORTED in done.stderr:
        shutil.rmtree(folder / "out", ignore_errors=True)
        done = launched(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return observed(folder / "out")


def launched(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "plan.launch.sh"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DATASET": "data",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "PET_MASTER_PORT": str(free_port()),  # torchrun's own is 29500 for everyone
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def observed(output: Path) -> Run:
    (last,) = output.glob("checkpoint-*")
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    return Run(
        steps=state["global_step"],
        tokens=state["num_input_tokens_seen"],
        num_ranks=len(list(last.glob("rng_state*.pth"))),  # every process saves its own
        losses=tuple(entry["loss"] for entry in logs),
        rates=tuple(entry["learning_rate"] for entry in logs),
    )


@pytest.mark.slow
@pytest.mark.xdist_group("trains")
@pytest.mark.parametrize(
    ("trainer", "num_ranks", "recipe"),
    [
        ("hf-trainer", 1, {"checkpointing": "full"}),
        ("hf-trainer", 2, {"method": Method.LORA}),
        ("trl", 1, {"method": Method.LORA, "checkpointing": "full"}),
        ("trl", 2, {}),
    ],
)
def test_a_real_run_takes_the_steps_and_tokens_of_the_plan(
    trainer, num_ranks, recipe, model, tmp_path
):
    pytest.importorskip("trl" if trainer == "trl" else "transformers")
    plan = planned(trainer, model, num_ranks=num_ranks, **recipe)
    run = train(trainer, plan, tmp_path)
    assert run.steps == STEPS
    assert run.tokens == STEPS * plan.plan.batch.global_batch_tokens
    assert run.tokens == STEPS * MICRO_BATCH * PASSES * num_ranks * SEQ_LEN
    assert run.num_ranks == num_ranks
    if trainer == "hf-trainer":
        # DDP has buckets as large as all gradients, with which one device is not planned.
        wrapped = (tmp_path / "wrapped.txt").read_text(encoding="utf-8")
        assert (wrapped == "DistributedDataParallel") is (num_ranks > 1)
    assert len(run.losses) == STEPS
    assert all(math.isfinite(loss) for loss in run.losses)
    # A random model knows nothing: every token costs about the logarithm of the vocabulary.
    assert run.losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.05)
    settings = yaml.safe_load((tmp_path / "plan.yaml").read_text(encoding="utf-8"))
    # The rate of a step stands in its log; warmup begins at nothing.
    assert run.rates[0] == 0
    assert run.rates[1] == pytest.approx(settings["learning_rate"] / settings["warmup_steps"])
