"""The inputs that both commands share, resolved: which GPU, model, recipe and environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_type_hints

from batchplan.api.checks import num_bytes, option, shown, whole
from batchplan.api.fields import RecipeFields, SharedFields
from batchplan.api.recipes import given_fields
from batchplan.errors import SpecError, UnknownNameError
from batchplan.sources import ResolvedModel, find_gpu, resolve_model
from batchplan.spec import MAX_RANKS, MAX_SEQ_LEN, Caveat, Gpu, Method, ModelInfo
from batchplan.tracer.environment import has_package, library_versions
from batchplan.trainers import Default, trainer_defaults

DEFAULT_TRAINER = "hf-trainer"
LITGPT = "litgpt"
"""The trainer, the package, and the ``model_type`` of a file with its config's fields."""
DEFAULT_SEQ_LEN = 4096
_BEYOND = "seq-len-beyond-model"
"""Taken where the user gives none, or the model's maximum where that is less."""
_LARGEST_PARAMS = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What both commands start from."""

    model: ModelInfo
    model_text: str | None
    """As the user named it."""
    resolved: ResolvedModel | None
    """None when only a number of parameters was given."""
    num_params: int | None
    activation_bytes: int
    gpu: Gpu
    gpu_text: str
    nodes: int | None
    """None: as many as the devices need."""
    inter_node_gb_per_s: float | None
    seq_len: int
    trainer: str
    defaults: Mapping[str, Default]
    versions: Mapping[str, str]
    """Packages of the environment that will train."""
    given: Mapping[str, Any]
    """Recipe fields that the user decided."""
    python: Path | None
    revision: str | None
    trust_remote_code: bool
    offline: bool
    caveats: tuple[Caveat, ...]
    library: str = "transformers"
    """Whose model code is traced."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config; empty when only a number of parameters was given."""
        return {} if self.resolved is None else self.resolved.config

    @property
    def traced_config(self) -> dict[str, Any]:
        """The config in the words of ``library``: LitGPT knows models of the Hub by name."""
        config = dict(self.config)
        if self.library != LITGPT or config.get("model_type") == LITGPT:
            return config
        return {"model_type": LITGPT, "name": self.model.id}

    @property
    def beyond_model(self) -> str | None:
        """What is told of sequences longer than the model's positions; None where none are."""
        return next((each.text for each in self.caveats if each.code == _BEYOND), None)

    def inputs(self) -> dict[str, Any]:
        """Return the shared inputs as keyword arguments that give the same answer again."""
        found: dict[str, Any] = {
            "model": self.model_text,
            "params": self.num_params,
            "activations": self.activation_bytes if self.resolved is None else None,
            "gpu": self.gpu_text,
            "nodes": self.nodes,
            "inter_node_gb_per_s": self.inter_node_gb_per_s,
            "seq_len": self.seq_len,
            "trainer": self.trainer,
            "python": None if self.python is None else str(self.python),
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "offline": self.offline,
        }
        return found


def resolve(model: str | None, fields: SharedFields) -> Request:
    """Resolve the shared inputs.

    Raises:
        SpecError: when an input is wrong or two contradict each other.
        SourceError: when the model's config cannot be had.
    """
    _refuse_unknown(fields)
    gpu_text = fields.get("gpu")
    if not gpu_text:
        raise SpecError(
            "--gpu is missing: a name such as a100-80gb, a size such as 24GiB, or local."
        )
    if model is None and fields.get("params") is None:
        raise SpecError("Name a MODEL, or give --params COUNT for arithmetic on states alone.")
    if model is not None and fields.get("params") is not None:
        raise SpecError("Name a MODEL or give --params, not both.")
    nodes = None if fields.get("nodes") is None else whole("nodes", fields["nodes"])
    if nodes is not None and nodes > MAX_RANKS:
        raise SpecError(f"--nodes {nodes} is too large: at most {MAX_RANKS:,}.")
    python = _interpreter(fields.get("python"))
    trainer = fields.get("trainer") or DEFAULT_TRAINER
    recipe_names = get_type_hints(RecipeFields)
    given = given_fields(
        {name: value for name, value in fields.items() if name in recipe_names},
        fields.get("recipe"),
    )
    gpu, measured = _as_measured(find_gpu(gpu_text))
    library, assumed = _library(trainer, python)
    versions = library_versions(python, library)
    defaults = trainer_defaults(trainer, versions[library])
    trust, offline = bool(fields.get("trust_remote_code")), bool(fields.get("offline"))
    resolved = None
    num_params = None
    activation_bytes = 0
    if model is None:
        num_params, info = _parameters_only(fields, given)
        if fields.get("activations"):
            activation_bytes = num_bytes("activations", fields["activations"])
    else:
        if fields.get("activations"):
            raise SpecError("--activations goes with --params; a MODEL's activations are traced.")
        revision = fields.get("revision")
        resolved = resolve_model(model, revision=revision, trust_remote_code=trust, offline=offline)
        info = resolved.info
        if resolved.needs_remote_code and not trust:
            raise SpecError(
                f"{info.id} runs code of its own repository. Read it, then pass "
                "--trust-remote-code."
            )
        if resolved.config.get("model_type") == LITGPT:
            library, assumed = LITGPT, ()
    seq_len, caveats = _seq_len(fields.get("seq_len"), info)
    return Request(
        model=info,
        model_text=model,
        resolved=resolved,
        num_params=num_params,
        activation_bytes=activation_bytes,
        gpu=gpu,
        gpu_text=gpu_text,
        nodes=nodes,
        inter_node_gb_per_s=_inter_node(fields.get("inter_node_gb_per_s")),
        seq_len=seq_len,
        trainer=trainer,
        defaults=defaults,
        versions=versions,
        given=given,
        python=python,
        revision=fields.get("revision"),
        trust_remote_code=trust,
        offline=offline,
        caveats=(*caveats, *assumed, *measured),
        library=library,
    )


def _as_measured(gpu: Gpu) -> tuple[Gpu, tuple[Caveat, ...]]:
    """Return the device with the overheads that probes measured on it, and what to say of that."""
    from batchplan.prober.places import has_measurements

    if not has_measurements():
        return gpu, ()
    from batchplan.prober.overheads import taught

    return taught(gpu)


def _library(trainer: str, python: Path | None) -> tuple[str, tuple[Caveat, ...]]:
    """Return whose model code ``trainer`` runs, and a caveat when it is not installed."""
    if trainer != LITGPT:
        return "transformers", ()
    if has_package(python, LITGPT):
        return LITGPT, ()
    text = (
        "LitGPT is not installed where the model is traced, so transformers' code of the same "
        "model is traced in its place. Name an interpreter that has it with --python."
    )
    return "transformers", (Caveat(code="litgpt-missing", text=text),)


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    known = get_type_hints(SharedFields)
    for name in fields:
        if name not in known:
            raise UnknownNameError("input", name, known)


def _parameters_only(fields: SharedFields, given: Mapping[str, Any]) -> tuple[int, ModelInfo]:
    if given.get("method", Method.FULL) != Method.FULL.value:
        raise SpecError(
            f"{option('method')} {given['method']} needs a MODEL: how many parameters train "
            "depends on its layers."
        )
    num_params = whole("params", fields.get("params"))
    if num_params > _LARGEST_PARAMS:
        raise SpecError(f"--params {num_params:.3g} is absurdly large: at most 1e15.")
    text = f"{num_params / 1e9:g}B parameters"
    return num_params, ModelInfo(id=text, architecture="parameters only", source="--params")


def _seq_len(given: object, info: ModelInfo) -> tuple[int, tuple[Caveat, ...]]:
    longest = info.max_seq_len
    if given is None:
        seq_len = min(longest or DEFAULT_SEQ_LEN, DEFAULT_SEQ_LEN)
        text = f"No --seq-len given: {seq_len:,} tokens a sequence are assumed."
        return seq_len, (Caveat(code="seq-len-assumed", text=text),)
    seq_len = whole("seq_len", given)
    if seq_len > MAX_SEQ_LEN:
        raise SpecError(f"--seq-len {seq_len:.4g} is too large: at most {MAX_SEQ_LEN:,}.")
    if longest is None or seq_len <= longest:
        return seq_len, ()
    text = f"--seq-len {seq_len:,} is more than the {longest:,} positions of {info.id}."
    return seq_len, (Caveat(code=_BEYOND, text=text),)


def _inter_node(given: object) -> float | None:
    if given is None:
        return None
    try:
        rate = math.nan if isinstance(given, bool) else float(str(given))
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise SpecError(
            f"{option('inter_node_gb_per_s')} {shown(given)} must be GB/s above 0, such as 25."
        )
    return rate


def _interpreter(python: str | PathLike[str] | None) -> Path | None:
    if python is None:
        return None
    path = Path(python).expanduser()
    if not path.is_file():
        raise SpecError(f"--python {path}: no such file.")
    return path
