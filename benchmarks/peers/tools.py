"""The tools that are asked, and those that cannot be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One estimator on PyPI."""

    name: str
    adapter: str
    """Name of its script in ``adapters``."""
    requirements: tuple[str, ...]
    """The tool first; what it needs beside our own interpreter's torch and transformers after."""
    says: str
    """Which of its figures is compared."""


_RICH = ("rich==15.0.0", "markdown-it-py==4.0.0", "mdurl==0.1.2", "pygments==2.20.0")

TOOLS = (
    Tool(
        name="accelerate estimate-memory",
        adapter="accelerate_estimate",
        requirements=("accelerate==1.15.0",),
        says="peak of training with Adam; no activations",
    ),
    Tool(
        name="DeepSpeed estimators",
        adapter="deepspeed_estimate",
        requirements=("deepspeed==0.19.8", "hjson", "py-cpuinfo", "msgpack", "einops", "ninja"),
        says="model states a GPU; no activations",
    ),
    Tool(
        name="fitcheck-llm",
        adapter="fitcheck_estimate",
        requirements=("fitcheck-llm==0.3.1", "click", *_RICH),
        says="total less overhead",
    ),
    Tool(
        name="ftuneai",
        adapter="ftune_estimate",
        requirements=("ftuneai==0.4.1", "pyyaml"),
        says="total less overhead",
    ),
    Tool(
        name="gpu-estimator",
        adapter="gpu_estimator_estimate",
        requirements=("gpu-estimator==0.2.0", "click"),
        says="total less 20 % overhead",
    ),
    Tool(
        name="llm-analysis",
        adapter="llm_analysis_estimate",
        requirements=("llm-analysis==0.2.2", "fire==0.5.0", "six", "termcolor"),
        says="weights, gradients, states and activations",
    ),
    Tool(
        name="qmemcalc",
        adapter="qmemcalc_estimate",
        requirements=("qmemcalc==0.1.1",),
        says="total less buffers",
    ),
    Tool(
        name="torch-preflight",
        adapter="preflight_estimate",
        requirements=("torch-preflight==0.5.0", "libcst", *_RICH),
        says="total less context and fragmentation",
    ),
    Tool(
        name="vramcalc",
        adapter="vramcalc_estimate",
        requirements=("vramcalc==0.1.2",),
        says="total",
    ),
)

NOT_ASKED = {
    "AgileRL's planner": "its memory model is not importable apart from its training stack",
    "LLMem": "not on PyPI: the package of that name caches another service's answers",
    "SimuMax": "not on PyPI",
    "xMem": "not on PyPI: the package of that name is another one",
}
