"""Launch scripts alone: whose they are, which flags count, and which do not."""

from __future__ import annotations

import pytest

from batchplan.api import check

RUN_CLM = """\
accelerate launch --num_processes 4 --mixed_precision bf16 run_clm.py \\
  --model_name_or_path Qwen/Qwen2.5-7B --block_size 2048 \\
  --per_device_train_batch_size 4 --gradient_accumulation_steps 8 \\
  --learning_rate 2e-5 --max_steps 1000 --bf16 --output_dir out
"""
"""As transformers' examples are started."""
FLAGS = "--per_device_train_batch_size 2 --gradient_accumulation_steps 8 --output_dir out"


def of(text: str, folder, *more, **asked):
    (folder / "run.sh").write_text(text)
    return check(folder / "run.sh", *more, offline=True, **asked)


def batch(answer) -> tuple[int, int, int]:
    return answer.run.micro_batch, answer.run.accum_steps, answer.run.num_ranks


def codes(answer) -> set[str]:
    return {one.code for one in answer.findings}


def test_flags_of_a_script_under_accelerate_are_the_trainers(tmp_path):
    answer = of(RUN_CLM, tmp_path)
    assert (answer.trainer, batch(answer)) == ("hf-trainer", (4, 8, 4))
    assert (answer.model, answer.run.seq_len) == ("Qwen/Qwen2.5-7B", 2048)
    assert answer.run.values["learning_rate"] == 2e-5
    assert codes(answer) == set()


@pytest.mark.parametrize(
    ("command", "trainer", "ranks"),
    [
        (f"torchrun --nproc_per_node 8 train.py {FLAGS}", "hf-trainer", 8),
        (f"srun torchrun --nnodes 2 --nproc_per_node 8 train.py {FLAGS}", "hf-trainer", 16),
        (f"deepspeed --num_gpus=8 train.py {FLAGS} --bf16", "hf-trainer", 8),
        (f"python -m my.train {FLAGS}", "hf-trainer", 1),
        (f"torchrun --nproc_per_node 8 trl/scripts/sft.py {FLAGS}", "trl", 8),
        (f"python examples/sft.py {FLAGS} --use_peft --lora_r 32", "trl", 1),
        (f"accelerate launch -m trl.scripts.sft {FLAGS}", "trl", 1),
        (f"torchrun --nproc_per_node 4 swift/cli/sft.py {FLAGS} --tuner_type lora", "ms-swift", 4),
    ],
)
def test_the_batch_of_a_launch_script_alone(command, trainer, ranks, tmp_path):
    answer = of(command + "\n", tmp_path)
    assert (answer.trainer, batch(answer)) == (trainer, (2, 8, ranks))
    assert "unread-flags" not in codes(answer)


def test_adapters_that_flags_ask_for_are_trained(tmp_path):
    answer = of(f"torchrun trl/scripts/sft.py {FLAGS} --use_peft --lora_r 32\n", tmp_path)
    assert (answer.recipe.method, answer.recipe.lora_rank) == ("lora", 32)


def test_torchtitans_own_launch_script_hands_its_flags_on(tmp_path):
    answer = of("NGPU=8 ./run_train.sh --training.local_batch_size 2\n", tmp_path)
    assert (answer.trainer, answer.run.micro_batch) == ("torchtitan", 2)


@pytest.mark.parametrize(
    ("command", "trainer"),
    [
        ("accelerate launch -m axolotl.cli.train config.yml", "axolotl"),
        ("FORCE_TORCHRUN=1 llamafactory-cli train config.yml", "llamafactory"),
    ],
)
def test_a_config_that_a_command_names_is_read_too(command, trainer, tmp_path):
    assert "missing-file" in codes(of(command + "\n", tmp_path))
    key = {"axolotl": "micro_batch_size", "llamafactory": "per_device_train_batch_size"}[trainer]
    (tmp_path / "config.yml").write_text(f"{key}: 3\n")
    answer = of(command + "\n", tmp_path)
    assert (answer.trainer, answer.run.micro_batch) == (trainer, 3)
    assert "missing-file" not in codes(answer)


def test_switches_of_accelerates_command_shard(tmp_path):
    launched = RUN_CLM.replace("launch", "launch --use_fsdp --fsdp_version 2", 1)
    answer = of(launched, tmp_path)
    assert answer.recipe.sharding == "fsdp-full"
    assert (answer.trainer, batch(answer)) == ("hf-trainer", (4, 8, 4))


def test_flags_that_a_script_makes_its_own_are_told_and_not_counted(tmp_path):
    answer = of("accelerate launch train.py --batch_size 4 --lr 1e-4\n", tmp_path)
    assert answer.trainer == "accelerate"
    (one,) = [one for one in answer.findings if one.code == "unread-flags"]
    assert "--batch_size, --lr" in one.text
    assert one.line == 1


def test_the_order_of_files_decides_nothing(tmp_path):
    (tmp_path / "run.sh").write_text("accelerate launch --config_file acc.yaml train.py\n")
    (tmp_path / "acc.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_processes: 8\n"
        "mixed_precision: bf16\ndeepspeed_config: {deepspeed_config_file: ds.json}\n"
    )
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    (tmp_path / "hf.yaml").write_text(
        "output_dir: out\nper_device_train_batch_size: 2\nlearning_rate: 1.0e-05\n"
    )
    names = ("run.sh", "acc.yaml", "ds.json", "hf.yaml")
    for turned in range(len(names)):
        ordered = [tmp_path / name for name in (*names[turned:], *names[:turned])]
        answer = check(*ordered, offline=True)
        assert (answer.trainer, batch(answer)) == ("hf-trainer", (2, 1, 8))
        assert answer.recipe.sharding == "zero3"
        assert answer.files[0].name.endswith("hf.yaml")
