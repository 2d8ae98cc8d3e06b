# ruff: noqa: TID253 - it is loaded by the trace worker alone
"""``lightning.pytorch.demos.Transformer`` with the sizes of Lightning's FSDP pages.

The layers of torch's ``nn.Transformer`` are called one by one, because its own loop compares the
values of a mask, which a trace does not have.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class LightningDemoConfig(PretrainedConfig):
    """Sizes and dropout."""

    model_type = "lightning_demo"

    def __init__(self, dropout: float = 0.2, **fields):
        """Take any field of the file."""
        self.dropout = dropout
        super().__init__(**fields)


class LightningDemoForCausalLM(PreTrainedModel):
    """Encoder and decoder over one table, a head of its own, log-softmax and nll_loss."""

    config_class = LightningDemoConfig
    _supports_sdpa = True
    supports_gradient_checkpointing = False

    def __init__(self, config):
        """Make the parts."""
        super().__init__(config)
        width, vocab = config.hidden_size, config.vocab_size
        sizes = (width, config.num_attention_heads, config.intermediate_size, config.dropout)
        count = config.num_hidden_layers
        self.embedding = nn.Embedding(vocab, width)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(*sizes, batch_first=True) for _ in range(count)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder_layers = nn.ModuleList(
            nn.TransformerDecoderLayer(*sizes, batch_first=True) for _ in range(count)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, vocab)
        self.post_init()

    def _init_weights(self, module):
        """Leave every weight as its module made it."""

    def get_input_embeddings(self):
        """Return the table of tokens."""
        return self.embedding

    def get_output_embeddings(self):
        """Return the head."""
        return self.decoder

    def forward(self, input_ids=None, labels=None, **_):
        """Return the loss of the target, which is the labels."""
        length, width = input_ids.shape[1], self.config.hidden_size
        target = input_ids if labels is None else labels
        places = torch.zeros(length, width, device=input_ids.device)
        source = self.dropout(self.embedding(input_ids) * width**0.5 + places)
        found = self.dropout(self.embedding(target) * width**0.5 + places)
        mask = torch.full((length, length), -torch.inf, device=input_ids.device).triu(1)
        for layer in self.encoder:
            source = layer(source)
        source = self.encoder_norm(source)
        for layer in self.decoder_layers:
            found = layer(found, source, tgt_mask=mask)
        logits = self.decoder(self.decoder_norm(found))
        output = nn.functional.log_softmax(logits, dim=1).view(-1, self.config.vocab_size)
        loss = None if labels is None else nn.functional.nll_loss(output, labels.reshape(-1))
        return CausalLMOutput(loss=loss, logits=logits)
