"""Which Auto class of transformers loads an architecture for training, and peft's name of its task.

Two tables: what a class name ends with, and the families whose plain ``Model`` or
``ForConditionalGeneration`` is no decoder. Source: transformers ``models/auto/modeling_auto.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AutoClass:
    """How a model is loaded."""

    name: str
    """Class of transformers that has ``from_pretrained``."""
    task_type: str | None
    """Of peft's ``LoraConfig``; None where peft has no name for the task."""


CAUSAL = AutoClass("AutoModelForCausalLM", "CAUSAL_LM")
SEQ2SEQ = AutoClass("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM")
MASKED = AutoClass("AutoModelForMaskedLM", None)

_BY_SUFFIX = {
    "ForCausalLM": CAUSAL,
    "LMHeadModel": CAUSAL,
    "ForMaskedLM": MASKED,
    "ForSeq2SeqLM": SEQ2SEQ,
    "MTModel": SEQ2SEQ,
}
_ENCODER_DECODERS = """
bart bigbirdpegasus blenderbot blenderbotsmall fsmt led longt5 m2m100 marian mbart mt5 mvp nllbmoe
pegasus pegasusx plbart prophetnet switchtransformers t5 t5gemma t5gemma2 umt5
"""
_ENCODERS = """
albert bert bigbird camembert convbert data2vectext deberta debertav2 distilbert electra ernie esm
eurobert fnet funnel gte ibert layoutlm longformer luke megatronbert mobilebert modernbert mpnet mra
nomicbert nystromformer rembert roberta robertaprelayernorm rocbert roformer squeezebert xlmroberta
xlmrobertaxl xmod yoso
"""
_GENERATION = "ForConditionalGeneration"


def auto_class(architecture: str) -> AutoClass:
    """Return how an architecture is loaded.

    A class that generates and is no text encoder-decoder (vision, audio) is named itself.

    >>> auto_class("T5ForConditionalGeneration").name, auto_class("BartModel").name
    ('AutoModelForSeq2SeqLM', 'AutoModelForSeq2SeqLM')
    >>> auto_class("Qwen2ForCausalLM").task_type, auto_class("BertForMaskedLM").task_type
    ('CAUSAL_LM', None)
    """
    for suffix, found in _BY_SUFFIX.items():
        if architecture.endswith(suffix):
            return found
    stem = architecture.removesuffix(_GENERATION).removesuffix("Model")
    family = stem.lower().replace("-", "").replace("_", "")
    if family in _ENCODER_DECODERS.split():
        return SEQ2SEQ
    if architecture.endswith(_GENERATION):
        return AutoClass(architecture, "CAUSAL_LM")
    return MASKED if family in _ENCODERS.split() else CAUSAL
