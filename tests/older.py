"""Older releases that a test can trace with, beside our own torch."""

from __future__ import annotations

OLD = ("transformers==4.48.1", "peft==0.13.2", "tokenizers==0.21.0", "huggingface_hub<1.0")
OLDEST = ("transformers==4.45.2", "peft==0.13.2", "tokenizers==0.20.3", "huggingface_hub<1.0")
NEEDS = ("requests", "urllib3", "charset-normalizer", "certifi")
