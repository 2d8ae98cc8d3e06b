# ruff: noqa: TID253 - it is loaded by the trace worker alone
"""The GPT of "Build a Large Language Model (From Scratch)", chapters 4 and 5.

``native`` takes torch's own LayerNorm and GELU, as later steps of the training-speed chapter do.
The loss is cross-entropy on the logits as they are, without a copy in fp32.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class GptFromScratchConfig(PretrainedConfig):
    """Sizes, dropout, and whether torch's own LayerNorm and GELU are used."""

    model_type = "gpt_from_scratch"

    def __init__(self, *, native: bool = False, dropout: float = 0.1, **fields):
        """Take any field of the file."""
        self.native = native
        self.dropout = dropout
        super().__init__(**fields)


class OwnLayerNorm(nn.Module):
    """LayerNorm from elementary operations."""

    def __init__(self, width: int):
        """Make scale and shift."""
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        """Return the normalised input."""
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, unbiased=False)
        norm_x = (x - mean) / torch.sqrt(var + self.eps)
        return self.scale * norm_x + self.shift


class OwnGelu(nn.Module):
    """GELU's tanh approximation from elementary operations."""

    def forward(self, x):
        """Return the activation."""
        factor = (2.0 / torch.pi) ** 0.5
        return 0.5 * x * (1 + torch.tanh(factor * (x + 0.044715 * torch.pow(x, 3))))


class Attention(nn.Module):
    """Causal attention: from elementary operations, or torch's fused one."""

    def __init__(self, config):
        """Make the projections; the mask is made as it is needed."""
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.num_heads = config.num_attention_heads
        self.rate = config.dropout
        self.W_query = nn.Linear(width, width, bias=False)
        self.W_key = nn.Linear(width, width, bias=False)
        self.W_value = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        """Return the attended input."""
        batch, length, width = x.shape
        shape = (batch, length, self.num_heads, width // self.num_heads)
        keys = self.W_key(x).view(shape).transpose(1, 2)
        queries = self.W_query(x).view(shape).transpose(1, 2)
        values = self.W_value(x).view(shape).transpose(1, 2)
        if self.config._attn_implementation != "eager":
            rate = self.rate if self.training else 0.0
            context = nn.functional.scaled_dot_product_attention(
                queries, keys, values, dropout_p=rate, is_causal=True
            )
            return self.out_proj(context.transpose(1, 2).contiguous().view(batch, length, width))
        scores = queries @ keys.transpose(2, 3)
        ones = torch.ones(length, length, dtype=torch.bool, device=x.device)
        scores.masked_fill_(torch.triu(ones, diagonal=1), -torch.inf)
        weights = self.dropout(torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1))
        context = (weights @ values).transpose(1, 2)
        return self.out_proj(context.contiguous().view(batch, length, width))


class Block(nn.Module):
    """Attention and feed-forward, each with dropout on its way back into the stream."""

    def __init__(self, config):
        """Make the parts."""
        super().__init__()
        width = config.hidden_size
        norm = nn.LayerNorm if config.native else OwnLayerNorm
        gelu = nn.GELU(approximate="tanh") if config.native else OwnGelu()
        self.att = Attention(config)
        self.ff = nn.Sequential(
            nn.Linear(width, config.intermediate_size),
            gelu,
            nn.Linear(config.intermediate_size, width),
        )
        self.norm1 = norm(width)
        self.norm2 = norm(width)
        self.drop_shortcut = nn.Dropout(config.dropout)

    def forward(self, x):
        """Return the block's output."""
        x = self.drop_shortcut(self.att(self.norm1(x))) + x
        return self.drop_shortcut(self.ff(self.norm2(x))) + x


class GptFromScratchForCausalLM(PreTrainedModel):
    """The whole model, with the chapter's loss."""

    config_class = GptFromScratchConfig
    _supports_sdpa = True
    supports_gradient_checkpointing = False

    def __init__(self, config):
        """Make the parts."""
        super().__init__(config)
        norm = nn.LayerNorm if config.native else OwnLayerNorm
        self.tok_emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_emb = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop_emb = nn.Dropout(config.dropout)
        self.trf_blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_norm = norm(config.hidden_size)
        self.out_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        """Leave every weight as its module made it."""

    def get_input_embeddings(self):
        """Return the table of tokens."""
        return self.tok_emb

    def get_output_embeddings(self):
        """Return the head."""
        return self.out_head

    def forward(self, input_ids=None, labels=None, **_):
        """Return the loss on the next tokens, which the labels already are."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.drop_emb(self.tok_emb(input_ids) + self.pos_emb(places))
        for block in self.trf_blocks:
            x = block(x)
        logits = self.out_head(self.final_norm(x))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return CausalLMOutput(loss=loss, logits=logits)
