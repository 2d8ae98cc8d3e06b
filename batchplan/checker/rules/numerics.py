"""Dtypes that the device lacks, that need scaling, or that nobody chose; and the loss kernel."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.roles import DEEPSPEED, MAIN, SCRIPT
from batchplan.checker.rule import Remark, Rule, about, at, set_to
from batchplan.checker.subject import Subject
from batchplan.configfile import Severity

_DTYPES = (
    *("dtype", "torch_dtype", "model_init_kwargs.dtype", "model_init_kwargs.torch_dtype"),
    "model_kwargs.dtype",
)
_TRL_SAYS_FLOAT32 = (0, 27)
"""Source: the policy of ``trl``; before, an unset dtype was transformers' own."""
_LOADS_AS_SAVED = (5,)
"""Transformers: ``from_pretrained`` takes the checkpoint's dtype."""
_COSTS = {
    "full": "; memory is counted so.",
    "lora": ": the frozen base takes twice the memory for nothing.",
    "qlora": ": what stays unquantised and the arithmetic of the 4-bit layers are float32.",
}
"""What that means, by method."""
_BFLOAT16 = set_to(("dtype",), to="bfloat16")
_FUSED_HEAD = (1, 15)
"""TRL: ``add_fused_lm_head``."""
_LIGERS = "liger_kernel_config.fused_linear_cross_entropy"


def _unsupported(subject: Subject) -> Iterator[Remark]:
    """Bf16 needs Ampere or later (compute capability 8.0).

    Source: transformers training_args.py, TrainingArguments raises "Your setup doesn't support
    bf16/gpu"; the catalog of GPUs says which have it.
    """
    numerics = str(subject.value("numerics"))
    if subject.gpu is None or subject.gpu.has_bf16 or not numerics.startswith("bf16"):
        return
    yield about(
        subject,
        "numerics",
        f"numerics {numerics} on {subject.gpu.name}, which has no bf16.",
        fix="Set fp16: true and bf16: false, and load float32 or float16 weights.",
    )


def _without_scaling(subject: Subject) -> Iterator[Remark]:
    """Fp16 gradients underflow unless the loss is scaled.

    Source: Micikevicius et al., https://arxiv.org/abs/1710.03740, section 3.2.
    """
    if subject.value("numerics") != "fp16" or subject.value("method") != "full":
        return
    yield about(
        subject,
        "numerics",
        "Pure fp16 trains without loss scaling: small gradients become zero.",
        fix="Use bf16, or fp32 weights under fp16 autocast (fp16: true), which scales.",
    )


def _both(subject: Subject) -> Iterator[Remark]:
    """One 16-bit format at a time.

    Source: transformers training_args.py, TrainingArguments.__post_init__ raises ValueError;
    deepspeed runtime/config.py, DeepSpeedConfig asserts.
    """
    for bf16, fp16, role in (("bf16", "fp16", MAIN), ("bf16.enabled", "fp16.enabled", DEEPSPEED)):
        switched_on = {
            file.name: (file, entry)
            for file, entry in subject.entries(bf16)
            if entry.value is True and subject.roles[file.name] in (role, SCRIPT)
        }
        for file, entry in subject.entries(fp16):
            if entry.value is True and file.name in switched_on:
                yield at(
                    file,
                    entry.path,
                    f"{fp16} and {bf16} are both true: the run stops at once.",
                    fix=f"Set {fp16}: false.",
                    edits=set_to(entry.path, to=False),
                )


def _loaded_in_fp32(subject: Subject) -> Iterator[Remark]:
    """Where nobody names a dtype, TRL loads float32, and so does transformers before 5.

    For a full fine-tune that is the usual mixed precision; a frozen base only costs twice.

    Source: trl trainer/model_config.py, ModelConfig.dtype; trl trainer/utils.py,
    create_model_from_path; transformers modeling_utils.py, from_pretrained.
    """
    if subject.first(*_DTYPES) is not None or not _takes_fp32(subject):
        return
    method = str(subject.value("method"))
    file, path = subject.place("model_name_or_path", "use_peft")
    text = f"No dtype is given, so {_who(subject)} loads the weights in float32"
    if subject.num_params is not None and method != "qlora":
        text += f" ({subject.num_params * 4:,} bytes)"
    yield at(
        file,
        path,
        f"{text}{_COSTS[method]}",
        fix="Set dtype: float32 if that is meant." if method == "full" else "Set dtype: bfloat16.",
        severity=Severity.NOTE if method == "full" else None,
        edits=() if method == "full" or not subject.is_on("trl") else _BFLOAT16,
    )


def _takes_fp32(subject: Subject) -> bool:
    if subject.is_on("trl") and not _is_loaded_by_script(subject):
        return subject.release("trl") >= _TRL_SAYS_FLOAT32
    old = subject.release("transformers") < _LOADS_AS_SAVED
    return old and subject.is_on("hf-trainer", "trl") and any(True for _ in subject.of_role(SCRIPT))


def _is_loaded_by_script(subject: Subject) -> bool:
    """Whether a script loads the model itself, of which TRL is given the object."""
    return any(
        str(path[0]).endswith("AutoModelForCausalLM.from_pretrained")
        for file in subject.of_role(SCRIPT)
        for path in file.entries
    )


def _who(subject: Subject) -> str:
    is_trl = subject.is_on("trl") and not _is_loaded_by_script(subject)
    return "TRL" if is_trl else "transformers before 5"


def _liger(subject: Subject) -> Iterator[Remark]:
    """TRL's own fused head and Liger's fused loss replace the same forward.

    Source: trl trainer/sft_trainer.py, SFTTrainer.__init__ (1.15 and later): ValueError, and a
    FutureWarning for ``use_liger_kernel``.
    """
    if not subject.is_on("trl") or subject.release("trl") < _FUSED_HEAD:
        return
    used = subject.first("use_liger_kernel")
    if used is None or used[1].value is not True:
        return
    for file, entry in subject.entries(_LIGERS):
        if entry.value is True:
            yield at(
                file,
                entry.path,
                f"{_LIGERS} is true, and TRL has a fused head of its own: it refuses both.",
                fix="Set it to false.",
                edits=set_to(entry.path, to=False),
                severity=Severity.ERROR,
            )
            return
    file, entry = used
    yield at(
        file,
        entry.path,
        "use_liger_kernel is deprecated in TRL: only its layer kernels run, and the loss is "
        "computed in tiles without it.",
        fix="Set model_init_kwargs: {use_kernels: true} in its place.",
    )


RULES = (
    Rule(
        code="bf16-unsupported",
        severity=Severity.ERROR,
        title="Bf16 on a device without it",
        source="transformers training_args.py, TrainingArguments.__post_init__",
        look=_unsupported,
    ),
    Rule(
        code="fp16-without-scaling",
        severity=Severity.WARNING,
        title="Pure fp16 without loss scaling",
        source="https://arxiv.org/abs/1710.03740, section 3.2",
        look=_without_scaling,
    ),
    Rule(
        code="bf16-and-fp16",
        severity=Severity.ERROR,
        title="Two 16-bit formats at once",
        source="transformers training_args.py, __post_init__; deepspeed runtime/config.py",
        look=_both,
    ),
    Rule(
        code="fp32-load-by-default",
        severity=Severity.WARNING,
        title="Weights loaded in float32 because no dtype is given",
        source="trl trainer/model_config.py, ModelConfig; transformers modeling_utils.py",
        look=_loaded_in_fp32,
    ),
    Rule(
        code="liger-in-trl",
        severity=Severity.NOTE,
        title="Liger's kernels beside TRL's fused head",
        source="trl trainer/sft_trainer.py, SFTTrainer.__init__",
        look=_liger,
    ),
)
