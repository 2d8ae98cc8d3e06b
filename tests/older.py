"""Releases that a test can run beside our own torch, and that our own environment cannot hold."""

from __future__ import annotations

OLD = ("transformers==4.48.1", "peft==0.13.2", "tokenizers==0.21.0", "huggingface_hub<1.0")
OLDEST = ("transformers==4.45.2", "peft==0.13.2", "tokenizers==0.20.3", "huggingface_hub<1.0")
NEEDS = ("requests", "urllib3", "charset-normalizer", "certifi")
TORCHTUNE = (
    # torchtune needs a torchao that peft refuses.
    *("torchtune==0.6.1", "torchao==0.10.0", "torchdata==0.11.0"),
    *("omegaconf==2.4.0", "tiktoken==0.14.0", "sentencepiece==0.2.3"),
)
