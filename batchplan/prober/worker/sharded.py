"""Training under an engine that splits states over ranks: FSDP2 or DeepSpeed's ZeRO.

Both are set up from accelerate's plugins, whose wrapping and defaults are those of a trainer on
accelerate. Its ``Accelerator`` itself takes neither on a CPU, so it is left out.
"""

from __future__ import annotations

import contextlib
import importlib
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from batchplan.tracer.worker.built import Built, WorkerError

from .libraries import need
from .optimizers import make_optimizers, weights_of
from .prepare import materialise
from .training import MAX_GRAD_NORM, Plain, autocast, loss_of


class FullyShard(Plain):
    """FSDP2: every layer a unit; weights are split while they have no storage yet."""

    def __init__(self, built: Built, request: dict[str, Any], device: torch.device) -> None:
        self._model = built.model
        self._request = {**request, "num_ranks": 1, "has_master": False, "autocast_dtype": None}
        self._device = device
        self._keeps_whole = not request["sync_each_batch"]
        _fully_shard(built, request, device)
        materialise(built.model, request, device)
        built.model._apply(lambda tensor: tensor)  # FSDP looks at its parameters anew
        weights = weights_of(built.model)
        self._parameters = [weight.parameter for weight in weights]
        self._optimizers = make_optimizers(weights, request)
        self._scaler = torch.amp.GradScaler(device.type, enabled=False)
        if request["as_rank_of"] is not None:
            self.notes = (
                f"holds rank 0's share of {request['as_rank_of']}; nothing is sent, so values are "
                "random, and NCCL's own buffers and the wait for other ranks are left out",
            )

    def micro_batch(self, fed: dict[str, torch.Tensor], *, is_last: bool) -> None:
        """Run forward and backward; gradients are reduced each time, or with the last one."""
        if self._keeps_whole:
            self._model.set_requires_gradient_sync(is_last)
        super().micro_batch(fed, is_last=is_last)


def _fully_shard(built: Built, request: dict[str, Any], device: torch.device) -> None:
    accelerate = need("accelerate.utils", what="FSDP", package="accelerate")
    if not hasattr(accelerate.fsdp_utils, "fsdp2_prepare_model"):
        raise WorkerError("FSDP2 is set up by accelerate 1.6 or later: pip install -U accelerate.")
    layers = {type(layer).__name__ for stack in built.stacks for layer in stack.module}
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=request["reshards"],
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted(layers),
        cpu_ram_efficient_loading=False,
    )
    is_mixed = request["has_master"] or request["autocast_dtype"] is not None
    precision = request["compute_dtype"] if is_mixed else "no"
    if is_mixed:
        plugin.set_mixed_precision(precision)
    # What ``fsdp2_prepare_model`` asks of an accelerator.
    stand_in = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision=precision,
        is_main_process=False,  # its logger would ask for more
        device=device,
        parallelism_config=None,
        torch_device_mesh=None,
    )
    accelerate.fsdp_utils.fsdp2_prepare_model(stand_in, built.model)


class DeepSpeed:
    """ZeRO 1 to 3 by DeepSpeed's own engine."""

    notes: tuple[str, ...] = ()

    @staticmethod
    def connect() -> None:
        """Take over the process group."""
        deepspeed = need("deepspeed", what="ZeRO", package="deepspeed")
        # For ranks of one CPU it would compile a kernel: that takes a compiler and minutes of the
        # trial's time, and holds no tensor. ``deepspeed.comm`` calls torch itself ``torch``.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = (  # type: ignore[attr-defined]
            lambda: None
        )
        deepspeed.init_distributed(dist_init_required=False)

    def __init__(self, built: Built, request: dict[str, Any], device: torch.device) -> None:
        deepspeed = need("deepspeed", what="ZeRO", package="deepspeed")
        accelerate = need("accelerate.utils", what="ZeRO", package="accelerate")
        self._request, self._device = request, device
        config = _deepspeed_config(accelerate.DeepSpeedPlugin, request, _hidden_size(built))
        splits = request["zero_stage"] == 3
        materialise(built.model, request, torch.device("cpu") if splits else device)
        if splits:
            # Parameter by parameter from the host, so that no device holds the whole model.
            deepspeed.zero.Init(module=built.model, config_dict_or_path=config)
        weights = weights_of(built.model)
        optimizers = make_optimizers(weights, request)
        if len(optimizers) > 1:
            raise WorkerError(f"--optimizer {request['optimizer']} cannot be probed under ZeRO.")
        self._engine, *_ = deepspeed.initialize(
            model=built.model, optimizer=optimizers[0], config=config
        )

    def micro_batch(self, fed: dict[str, torch.Tensor], *, is_last: bool) -> None:
        """Run forward and backward; the engine counts micro-batches itself."""
        with autocast(self._request, self._device):
            outputs = self._engine(**fed)
        # The engine divides by the micro-batches of a step.
        self._engine.backward(loss_of(outputs, {"accum_steps": 1}))
        if not is_last:
            self._engine.step()

    def update(self) -> None:
        """Clip, update and drop the gradients."""
        self._engine.step()


def _deepspeed_config(plugin: Any, request: dict[str, Any], hidden_size: int) -> dict[str, Any]:
    config: dict[str, Any] = dict(
        plugin(
            zero_stage=request["zero_stage"],
            gradient_accumulation_steps=request["accum_steps"],
            gradient_clipping=MAX_GRAD_NORM,
            zero3_init_flag=False,
        ).deepspeed_config
    )
    zero = dict(config["zero_optimization"])
    if request["zero_buckets"] == "auto":
        # What transformers fills in for "auto": integrations/deepspeed.py, trainer_config_finalize.
        zero["reduce_bucket_size"] = hidden_size * hidden_size
        if request["zero_stage"] == 3:
            zero["stage3_prefetch_bucket_size"] = int(0.9 * hidden_size * hidden_size)
            zero["stage3_param_persistence_threshold"] = 10 * hidden_size
    config.pop("fp16", None)
    config.pop("bf16", None)
    if request["has_master"]:
        config[request["compute_dtype"]] = {"enabled": True}
    return {
        **config,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": request["micro_batch"],
        "train_batch_size": request["micro_batch"] * request["accum_steps"] * request["num_ranks"],
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def _hidden_size(built: Built) -> int:
    config = built.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = getattr(text, "hidden_size", None)
    return int(width or built.model.get_input_embeddings().weight.shape[1])


_LIBRARIES = {
    "fsdp": ("accelerate.utils.fsdp_utils",),
    # Its engine imports torch's compiler when it is first made.
    "deepspeed": (
        *("deepspeed", "accelerate", "torch._inductor.compile_fx"),
        *("deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3"),
    ),
}


def load(engine: str) -> None:
    """Import what an engine needs, so that it is no part of what is measured.

    What is not there is said when the engine is made.
    """
    for name in _LIBRARIES.get(engine, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


ENGINES: dict[str, Any] = {"torch-ddp": Plain, "fsdp": FullyShard, "deepspeed": DeepSpeed}


def pretend_ranks(count: int) -> None:
    """Make a process group of ``count`` of which this is the first, and which sends nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
