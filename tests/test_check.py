"""``check``: mistakes on their lines, correct files without any, and what is made of a run."""

from __future__ import annotations

import json
import math
import time
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest
import yaml
from check_cases import ACCELERATE, AXOLOTL, CASES, HF, LOOP, TRL, TUNE, Case
from console_blocks import ROOT
from published_configs import PUBLISHED
from test_docs import table, unmentioned

from batchplan import check
from batchplan.api.check_files import MISSING_FILE
from batchplan.api.check_memory import DOES_NOT_FIT
from batchplan.api.check_rules import rules
from batchplan.checker import RULES
from batchplan.checker.rule import MOST
from batchplan.configfile import Severity
from batchplan.errors import SpecError
from batchplan.sources.trainer_keys import load_trainer_keys
from batchplan.trainers import TRAINERS

CONFIGS = Path(__file__).parent / "configs"
CLEAN = {
    "hf-trainer.yaml": ("hf-trainer", 8),
    "hf-trainer-fsdp.yaml": ("hf-trainer", 8),
    "trl.yaml": ("trl", 8),
    "accelerate-fsdp2.yaml": ("accelerate", None),
    "accelerate-zero3.yaml": ("accelerate", None),
    "deepspeed.json": ("deepspeed", 8),
    "axolotl.yaml": ("axolotl", 8),
    "llamafactory.yaml": ("llamafactory", 8),
    "ms-swift.yaml": ("ms-swift", 8),
    "litgpt.yaml": ("litgpt", None),
    "lightning.yaml": ("lightning", None),
    "torchtune.yaml": ("torchtune", 8),
    "torchtitan.sh": ("torchtitan", None),
    "unsloth.py": ("unsloth", 1),
}
"""Files of ``tests/configs``: whose they are, and devices where the file does not say."""


@pytest.fixture(autouse=True)
def newest_releases(monkeypatch):
    """What is found goes by the newest releases, whatever is installed here."""
    monkeypatch.setattr("batchplan.api.checking.library_versions", lambda _: {})


def written(folder: Path, case: Case, slot: str) -> list[Path]:
    """Write a case's files, and return those that a user names: none is named by another."""
    paths = []
    for name, text in case.texts(slot).items():
        (folder / name).write_text(text)
        paths.append(folder / name)
    return paths


def checked(folder: Path, case: Case, slot: str):
    paths = written(folder, case, slot)
    return check(*paths, trainer=case.trainer, offline=True, **case.asked)


def found(answer, code: str) -> list:
    return [one for one in answer.findings if one.code == code]


def ids(case: Case) -> str:
    return f"{case.code}: {case.name}"


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_a_mistake_is_told_on_its_line(case, tmp_path):
    (one, *_) = found(checked(tmp_path, case, case.wrong), case.code) or [None]
    assert one is not None, f"{case.code} was not found"
    name, line = case.place
    assert (Path(one.file).name, one.line) == (name, line), one
    assert one.severity.value == case.severity
    assert one.text.endswith((".", "…"))
    assert one.fix


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_the_same_file_put_right_has_no_such_mistake(case, tmp_path):
    assert found(checked(tmp_path, case, case.right), case.code) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.fixable], ids=ids)
def test_a_fix_mends_it_and_leaves_all_else(case, tmp_path):
    answer = checked(tmp_path, case, case.wrong)
    before = answer.files[0].text
    fixed = answer.fix()
    assert case.code in {one.code for one in fixed.findings}
    assert found(fixed.after, case.code) == []
    comments = [part for line in before.splitlines() for part in line.partition("#")[2:] if part]
    kept = [part for line in fixed.text.splitlines() for part in line.partition("#")[2:] if part]
    assert kept == comments
    (kept_lines, changed) = ([], 0)
    for line in before.splitlines():
        if line in fixed.text.splitlines():
            kept_lines.append(line)
        else:
            changed += 1
    assert changed <= len(fixed.findings)
    assert [line for line in fixed.text.splitlines() if line in kept_lines] == kept_lines


def test_every_rule_has_a_case():
    assert {rule.code for rule in RULES} <= {case.code for case in CASES}


def test_codes_are_told_once_with_title_and_source():
    told = rules()
    codes = [rule["code"] for rule in told]
    assert len(set(codes)) == len(codes)
    assert all(rule["title"] and rule["help"] for rule in told)
    assert {DOES_NOT_FIT, MISSING_FILE} <= set(codes)


@pytest.mark.parametrize("name", CLEAN)
def test_a_correct_config_has_no_errors(name):
    trainer, devices = CLEAN[name]
    answer = check(CONFIGS / name, devices=devices, offline=True)
    assert answer.trainer == trainer
    assert [one for one in answer.findings if one.severity is not Severity.NOTE] == []


@pytest.mark.parametrize(
    ("name", "devices", "batch"),
    [
        # micro-batch x passes x devices, counted by hand from the files
        ("hf-trainer.yaml", 8, (2, 8, 8, None)),
        ("trl.yaml", 8, (2, 8, 8, 4096)),
        ("deepspeed.json", 8, (2, 8, 8, None)),
        ("axolotl.yaml", 4, (2, 8, 4, 4096)),
        ("llamafactory.yaml", 2, (2, 8, 2, 4096)),
        ("ms-swift.yaml", 1, (2, 8, 1, 4096)),
        ("litgpt.yaml", None, (2, 8, 1, 2048)),
        ("torchtune.yaml", 8, (2, 8, 8, 4096)),
        ("torchtitan.sh", None, (2, 8, 8, 4096)),
    ],
)
def test_the_effective_batch_is_what_the_file_says(name, devices, batch):
    run = check(CONFIGS / name, devices=devices, offline=True).run
    assert (run.micro_batch, run.accum_steps, run.num_ranks, run.seq_len) == batch


@pytest.mark.parametrize(
    ("trainer", "text", "devices", "batch"),
    [
        # litgpt args.py: 16 // 3 // 1 = 5; swift trainers/arguments.py: ceil(16 / 2 / 3) = 3
        ("litgpt", "train: {micro_batch_size: 1}\nprecision: bf16-true\n", 3, (1, 5, 3)),
        ("ms-swift", "tuner_type: lora\nper_device_train_batch_size: 2\n", 3, (2, 3, 3)),
        ("deepspeed", '{"train_batch_size": 64, "zero_optimization": {"stage": 2}}', 8, (8, 1, 8)),
        (
            "deepspeed",
            '{"train_batch_size": 64, "gradient_accumulation_steps": 4, '
            '"zero_optimization": {"stage": 2}}',
            8,
            (2, 4, 8),
        ),
        ("hf-trainer", "output_dir: out\n", 2, (8, 1, 2)),
        ("trl", "output_dir: out\n", 2, (8, 1, 2)),
    ],
)
def test_what_is_not_said_is_as_the_trainer_does(trainer, text, devices, batch, tmp_path):
    path = tmp_path / ("run.json" if text.startswith("{") else "run.yaml")
    path.write_text(text)
    run = check(path, trainer=trainer, devices=devices, offline=True).run
    assert (run.micro_batch, run.accum_steps, run.num_ranks) == batch


@pytest.mark.parametrize(
    ("trainer", "name", "batch", "seq_len", "method"),
    [
        # the arguments of the Trainer, and the length that SFTTrainer took itself
        ("trl", "train.py", (4, 4, 1), 512, "full"),
        ("ms-swift", "run.sh", (1, 16, 1), 2048, "lora"),
        # litgpt finetune/lora.py, setup: train.global_batch_size is 16
        ("litgpt", "run.sh", (4, 4, 1), None, "lora"),
        ("unsloth", "old.py", (2, 4, 1), 2048, "qlora"),
    ],
)
def test_a_published_script_is_read(trainer, name, batch, seq_len, method, tmp_path):
    (tmp_path / name).write_text(PUBLISHED[trainer][name])
    answer = check(tmp_path / name, offline=True)
    run = answer.run
    assert (run.micro_batch, run.accum_steps, run.num_ranks) == batch
    assert (run.seq_len, answer.recipe.method) == (seq_len, method)


@pytest.mark.parametrize("launcher", ["torchrun --nproc_per_node=4", "deepspeed --num_gpus 4"])
def test_flags_of_a_script_are_its_training_arguments(launcher, tmp_path):
    (tmp_path / "run.sh").write_text(
        f"{launcher} run_clm.py --per_device_train_batch_size 8 --learning_rate 5e-5 --bf16 \\\n"
        "  --gradient_accumulation_steps 2 --gradient_checkpointing --output_dir out\n"
    )
    answer = check(tmp_path / "run.sh", trainer="hf-trainer", offline=True)
    run, recipe = answer.run, answer.recipe
    assert (run.micro_batch, run.accum_steps, run.num_ranks) == (8, 2, 4)
    assert (recipe.numerics, recipe.checkpointing) == ("bf16-autocast", "full")
    assert run.values["learning_rate"] == 5e-5


OUTDATED = {
    ("hf-trainer", "plain.yaml"): {"removed-key"},
    ("hf-trainer", "old-names.yaml"): {"renamed-key", "string-learning-rate"},
    ("trl", "handbook.yaml"): {"renamed-key", "removed-key"},
    ("trl", "train.py"): {"renamed-key"},
    ("llamafactory", "no-marks.yaml"): {"string-learning-rate"},
    ("llamafactory", "full.yaml"): {"missing-file"},
    ("llamafactory", "run.sh"): {"missing-file"},
    ("ms-swift", "lora.yaml"): {"renamed-key"},
    ("ms-swift", "run.sh"): {"renamed-key"},
}
"""Published configs that the releases of today refuse, and why; all others are right."""


@pytest.mark.parametrize(
    ("trainer", "name"), [(trainer, name) for trainer, files in PUBLISHED.items() for name in files]
)
def test_of_published_configs_only_outdated_ones_have_errors(trainer, name, tmp_path):
    (tmp_path / name).write_text(PUBLISHED[trainer][name])
    answer = check(tmp_path / name, offline=True)
    codes = {one.code for one in answer.findings if one.severity is Severity.ERROR}
    assert codes == OUTDATED.get((trainer, name), set())


def test_a_model_that_the_script_loads_is_not_of_trls_dtype(tmp_path):
    script = PUBLISHED["trl"]["train.py"].replace(
        '"facebook/opt-350m"', 'AutoModelForCausalLM.from_pretrained("facebook/opt-350m")'
    )
    (tmp_path / "train.py").write_text(script)
    assert not found(check(tmp_path / "train.py", offline=True), "fp32-load-by-default")


def test_a_name_that_is_too_long_for_a_file_is_a_note(tmp_path):
    (tmp_path / "run.yaml").write_text(
        TRL.replace("Qwen/Qwen2.5-7B", "x" * 5000).replace("@@", f"deepspeed: {'y' * 5000}.json")
    )
    answer = check(tmp_path / "run.yaml", offline=True)
    assert found(answer, MISSING_FILE)
    assert "model-unavailable" in {caveat.code for caveat in answer.caveats}


def test_a_file_that_is_named_is_read_too(tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "deepspeed: ds.json"))
    (tmp_path / "ds.json").write_text(
        '{"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}'
    )
    answer = check(tmp_path / "run.yaml", devices=8, offline=True)
    assert [Path(file.name).name for file in answer.files] == ["run.yaml", "ds.json"]
    assert answer.trainer == "hf-trainer"
    assert answer.recipe.sharding == "zero3"


def test_a_file_that_is_named_and_not_there_is_an_error_on_its_line(tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "deepspeed: ds.json"))
    answer = check(tmp_path / "run.yaml", devices=8, offline=True)
    (one,) = found(answer, MISSING_FILE)
    assert (one.line, one.key) == (8, "deepspeed")
    assert answer.has_errors


def test_a_key_is_gone_by_the_release_of_the_library_that_dropped_it(tmp_path, monkeypatch):
    """Transformers 5.15 dropped ``warmup_ratio`` for TRL, too, whatever release TRL has."""
    (tmp_path / "run.yaml").write_text(TRL.replace("@@", "warmup_ratio: 0.03"))
    for transformers, times in (("5.14.0", 0), ("5.15.0", 1)):
        versions = {"transformers": transformers, "trl": "1.16.0"}
        monkeypatch.setattr("batchplan.api.checking.library_versions", lambda _, v=versions: v)
        told = found(check(tmp_path / "run.yaml", offline=True), "renamed-key")
        assert len(told) == times


def test_a_switch_that_became_a_value_goes_when_it_was_off(tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "group_by_length: false"))
    fixed = check(tmp_path / "run.yaml", offline=True).fix()
    assert fixed.text == HF.replace("@@\n", "")


def test_of_an_older_key_and_its_newer_name_a_person_keeps_one(tmp_path):
    (tmp_path / "run.yaml").write_text(
        HF.replace("@@", "evaluation_strategy: epoch\neval_strategy: steps")
    )
    answer = check(tmp_path / "run.yaml", offline=True)
    (one,) = found(answer, "renamed-key")
    assert "eval_strategy stands there too" in one.fix
    assert answer.fix().text == answer.files[0].text


def test_a_mistake_that_another_one_hides_is_mended_too(tmp_path):
    """Checkpointing is on twice only when the text ``"true"`` is a switch."""
    text = HF.replace(
        "@@",
        'gradient_checkpointing: "true"\nfsdp: true\nfsdp_config: {activation_checkpointing: true}',
    )
    (tmp_path / "run.yaml").write_text(text)
    fixed = check(tmp_path / "run.yaml", offline=True).fix()
    assert fixed.text == text.replace('"true"', "false")
    assert not fixed.after.has_errors
    assert fixed.after.fix().text == fixed.text


def test_findings_come_worst_first(tmp_path):
    (tmp_path / "run.yaml").write_text(
        HF.replace("@@", "weight_decay: 0.0\nweight_decay: 0.1\nfp16: true")
    )
    severities = [one.severity for one in check(tmp_path / "run.yaml", offline=True).findings]
    assert severities == sorted(severities, key=list(Severity).index)


def test_files_of_nobody_are_refused_with_the_trainers(tmp_path):
    (tmp_path / "x.yaml").write_text("colour: blue\n")
    with pytest.raises(SpecError, match=r"Cannot tell which trainer .* --trainer hf-trainer, trl"):
        check(tmp_path / "x.yaml")


def test_a_loop_of_ones_own_needs_no_trainer(tmp_path):
    (tmp_path / "train.py").write_text(LOOP.replace("@@", ""))
    answer = check(tmp_path / "train.py", offline=True)
    assert found(answer, "missing-loss-scaling")
    assert (answer.run.micro_batch, answer.run.accum_steps) == (2, 8)
    assert "own-loop" in {caveat.code for caveat in answer.caveats}


def test_a_model_that_cannot_be_had_is_a_note_and_no_failure(tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "max_steps: 100"))
    answer = check(
        tmp_path / "run.yaml", gpu="a100-80gb", model="nobody/nothing-here", offline=True
    )
    assert answer.estimate is None
    assert "model-unavailable" in {caveat.code for caveat in answer.caveats}
    assert not answer.has_errors


def test_memory_is_what_estimate_says_of_the_same_recipe(toy_model, tmp_path):
    from batchplan import estimate

    (tmp_path / "run.yaml").write_text(
        HF.replace("@@", "max_steps: 100\ngradient_checkpointing: true")
    )
    asked = {"gpu": "a100-80gb", "seq_len": 128, "offline": True}
    answer = check(tmp_path / "run.yaml", model="qwen2.5-0.5b", devices=1, **asked)
    recipe = {
        "method": "full",
        "numerics": "bf16-autocast",
        "weight_dtype": "bf16",
        "grad_dtype": "bf16",
        "optimizer_dtype": "bf16",
        "checkpointing": "full",
    }
    bill = estimate("qwen2.5-0.5b", micro_batch=2, accum_steps=8, **recipe, **asked)
    assert answer.estimate is not None
    assert answer.estimate.memory.peak_bytes == bill.memory.peak_bytes
    assert answer.estimate.fits


def test_a_run_that_does_not_fit_is_an_error_at_the_micro_batch(toy_model, tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "max_steps: 100"))
    answer = check(
        tmp_path / "run.yaml", model="qwen2.5-0.5b", gpu="1GiB", seq_len=128, offline=True
    )
    (one,) = found(answer, DOES_NOT_FIT)
    assert (one.key, one.line) == ("per_device_train_batch_size", 3)
    assert "too much" in one.text
    assert answer.has_errors
    assert answer.to_dict()["fits"] is False


def test_the_document_is_plain_json(tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "fp16: true"))
    document = check(tmp_path / "run.yaml", offline=True).to_dict()
    assert json.loads(json.dumps(document)) == document
    (one,) = [one for one in document["findings"] if one["code"] == "bf16-and-fp16"]
    assert set(one) >= {"code", "severity", "line", "key", "text", "fix"}


def test_the_page_lists_every_rule_with_its_source():
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    rows = table(page, "code", "usually")
    assert [row[0].strip("`") for row in rows] == [rule["code"] for rule in rules()]
    assert [row[1:3] for row in rows] == [[rule["severity"], rule["title"]] for rule in rules()]


def test_every_field_of_the_document_is_explained(toy_model, tmp_path):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "fp16: true"))
    answer = check(
        tmp_path / "run.yaml", gpu="a100-80gb", model="qwen2.5-0.5b", seq_len=128, offline=True
    )
    document = answer.to_dict() | {"fixed": {"file": "x", **answer.fix().to_dict()}}
    assert unmentioned(document) == set()


@pytest.mark.parametrize(
    ("kind", "more", "sharding", "numerics"),
    [
        ("FSDP", "fsdp_config:\n  fsdp_version: 2", "fsdp-full", "bf16-master"),
        (
            "FSDP",
            "fsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: false",
            "fsdp-grad-op",
            "bf16-master",
        ),
        ("DEEPSPEED", "deepspeed_config:\n  zero_stage: 3", "zero3", "bf16-master"),
        ("MULTI_GPU", "gpu_ids: all", "ddp", "bf16-autocast"),
    ],
)
def test_the_launch_config_shards_what_the_trainer_file_does_not(
    kind, more, sharding, numerics, tmp_path
):
    (tmp_path / "run.yaml").write_text(HF.replace("@@", "max_steps: 100"))
    (tmp_path / "acc.yaml").write_text(ACCELERATE.format(kind=kind, more=more))
    answer = check(tmp_path / "run.yaml", tmp_path / "acc.yaml", offline=True)
    assert answer.trainer == "hf-trainer"
    assert (answer.recipe.sharding, answer.recipe.numerics) == (sharding, numerics)
    assert answer.run.global_batch_size == 2 * 8 * 8


@pytest.mark.parametrize("trainer", ["hf-trainer", "litgpt"])
def test_a_file_full_of_mistakes_is_told_in_part_and_fast(trainer, tmp_path):
    keys = "".join(f"strange_key_{number}: 1\n" for number in range(4000))
    (tmp_path / "run.yaml").write_text(HF.replace("@@\n", keys))
    began = time.process_time()
    told = found(check(tmp_path / "run.yaml", trainer=trainer, offline=True), "unknown-key")
    assert time.process_time() - began < 5
    assert len(told) == MOST + 1
    assert "others are not told" in told[0].text + told[-1].text


ODD = (
    *(None, True, 0, -1, 10**30, 0.5, math.inf, math.nan, "", "auto", "2e-5", "true", "8"),
    *([], [1], {}, {"a": 1}, {"stage": 3}, "zero3", "sdpa", "bf16"),
)
"""Values that a key may have by mistake."""


@pytest.mark.parametrize("trainer", TRAINERS)
def test_no_value_of_a_known_key_is_too_odd_to_be_told_of(trainer, tmp_path):
    random = Random(trainer)
    keys = load_trainer_keys(trainer)
    for file in keys.files.values():
        for _ in range(6):
            document: dict = {}
            for name in random.sample(sorted(file.keys), min(15, len(file.keys))):
                *above, last = name.split(".")
                section = document
                for part in above:
                    section = section.setdefault(part, {})
                    if not isinstance(section, dict):
                        break
                else:
                    section[last] = deepcopy(random.choice(ODD))
            path = tmp_path / "run.yaml"
            path.write_text(yaml.safe_dump(document))
            answer = check(path, trainer=trainer, devices=2, offline=True)
            assert json.dumps(answer.to_dict(), allow_nan=False)
            assert json.dumps(answer.fix().to_dict(), allow_nan=False)


def test_a_key_that_is_only_somewhat_alike_is_not_renamed_by_a_fix(tmp_path):
    text = AXOLOTL.replace("@@", "flash_attn: true")
    (tmp_path / "run.yaml").write_text(text)
    answer = check(tmp_path / "run.yaml", offline=True)
    (one,) = found(answer, "unknown-key")
    assert (one.edits, "if that is meant" in one.fix) == ((), True)
    assert answer.fix().text == text


@pytest.mark.parametrize("optimizer", ["adamw_hf", "adamw_torch_xla2"])
def test_of_many_choices_those_alike_are_told(optimizer, tmp_path):
    (tmp_path / "run.yaml").write_text(
        HF.replace("adamw_torch_fused", optimizer).replace("@@", "seed: 1")
    )
    (one,) = found(check(tmp_path / "run.yaml", offline=True), "value-unknown")
    assert "adamw_torch" in one.fix


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4"])
def test_a_rate_counts_however_its_loader_reads_it(written, tmp_path):
    text = TUNE.replace("  @@\n", "") + (
        f"optimizer: {{_component_: torch.optim.AdamW, fused: true, lr: {written}}}\n"
    )
    (tmp_path / "run.yaml").write_text(text)
    assert check(tmp_path / "run.yaml", offline=True).run.values["learning_rate"] == 3e-4


def test_a_fix_of_a_script_makes_all_edits_of_a_finding_or_none(tmp_path):
    """A value that would move to a call's other argument is not just taken away."""
    text = (
        "from transformers import TrainingArguments\n"
        'args = TrainingArguments("out", fsdp="full_shard", '
        'fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer")\n'
    )
    (tmp_path / "train.py").write_text(text)
    answer = check(tmp_path / "train.py", offline=True)
    assert found(answer, "renamed-key")
    assert "LlamaDecoderLayer" in answer.fix().text
