"""Which classes of transformers are the layers that repeat: what FSDP wraps and checkpoints.

Trainers on transformers look them up in the model; others must be told. Source: transformers
``models/*/modeling_*.py, _no_split_modules`` (of BERT and its kin, which name none, the class in
their encoder's list).
"""

from __future__ import annotations

from batchplan.errors import SpecError

_LAYERS = {
    "BartForConditionalGeneration": ("bart", "BartEncoderLayer", "BartDecoderLayer"),
    "BertForMaskedLM": ("bert", "BertLayer"),
    "BloomForCausalLM": ("bloom", "BloomBlock"),
    "CohereForCausalLM": ("cohere", "CohereDecoderLayer"),
    "DeepseekV2ForCausalLM": ("deepseek_v2", "DeepseekV2DecoderLayer"),
    "DeepseekV3ForCausalLM": ("deepseek_v3", "DeepseekV3DecoderLayer"),
    "DistilBertForMaskedLM": ("distilbert", "TransformerBlock"),
    "FalconForCausalLM": ("falcon", "FalconDecoderLayer"),
    "GPT2LMHeadModel": ("gpt2", "GPT2Block"),
    "GPTNeoXForCausalLM": ("gpt_neox", "GPTNeoXLayer"),
    "Gemma2ForCausalLM": ("gemma2", "Gemma2DecoderLayer"),
    "Gemma3ForCausalLM": ("gemma3", "Gemma3DecoderLayer"),
    "GemmaForCausalLM": ("gemma", "GemmaDecoderLayer"),
    "GptOssForCausalLM": ("gpt_oss", "GptOssDecoderLayer"),
    "GraniteForCausalLM": ("granite", "GraniteDecoderLayer"),
    "LlamaForCausalLM": ("llama", "LlamaDecoderLayer"),
    "MistralForCausalLM": ("mistral", "MistralDecoderLayer"),
    "MixtralForCausalLM": ("mixtral", "MixtralDecoderLayer"),
    "ModernBertForMaskedLM": ("modernbert", "ModernBertEncoderLayer"),
    "OPTForCausalLM": ("opt", "OPTDecoderLayer"),
    "Olmo2ForCausalLM": ("olmo2", "Olmo2DecoderLayer"),
    "OlmoeForCausalLM": ("olmoe", "OlmoeDecoderLayer"),
    "Phi3ForCausalLM": ("phi3", "Phi3DecoderLayer"),
    "PhiForCausalLM": ("phi", "PhiDecoderLayer"),
    "Qwen2ForCausalLM": ("qwen2", "Qwen2DecoderLayer"),
    "Qwen2MoeForCausalLM": ("qwen2_moe", "Qwen2MoeDecoderLayer"),
    "Qwen3ForCausalLM": ("qwen3", "Qwen3DecoderLayer"),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "Qwen3MoeDecoderLayer"),
    "RobertaForMaskedLM": ("roberta", "RobertaLayer"),
    "SmolLM3ForCausalLM": ("smollm3", "SmolLM3DecoderLayer"),
    "StableLmForCausalLM": ("stablelm", "StableLmDecoderLayer"),
    "T5ForConditionalGeneration": ("t5", "T5Block"),
}
"""The module's name and then the classes, by architecture."""


def layer_classes(architecture: str) -> tuple[str, ...]:
    """Return the import paths of an architecture's layers.

    >>> layer_classes("Qwen2ForCausalLM")
    ('transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer',)

    Raises:
        SpecError: when they are not known.
    """
    if architecture not in _LAYERS:
        raise SpecError(
            f"Which layers of {architecture} to wrap is not known, and this trainer's FSDP must be "
            "told. Take --sharding ddp, zero2 or zero3, or another --trainer."
        )
    module, *classes = _LAYERS[architecture]
    return tuple(f"transformers.models.{module}.modeling_{module}.{name}" for name in classes)
