# ruff: noqa: TID253 - it is loaded by the trace worker alone
"""``BertForSequenceClassification`` as transformers 4.15 had it, on torch 1.10.

Up to 1.10 the backward of softmax took its input beside its result (``_softmax_backward_data(grad,
result, dim, self)`` in ``derivatives.yaml``), so both are kept.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput


class Bert2022Config(PretrainedConfig):
    """Sizes and dropout."""

    model_type = "bert_2022"

    def __init__(self, dropout: float = 0.1, type_vocab_size: int = 2, **fields):
        """Take any field of the file."""
        self.dropout = dropout
        self.type_vocab_size = type_vocab_size
        super().__init__(**fields)


class OldSoftmax(torch.autograd.Function):
    """Softmax that keeps its input too."""

    @staticmethod
    def forward(ctx, scores):
        """Return the shares."""
        shares = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(shares, scores)
        return shares

    @staticmethod
    def backward(ctx, grad):
        """Return the gradient of the scores."""
        shares, _ = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(grad, shares, -1, shares.dtype)


class Layer(GradientCheckpointingLayer):
    """Attention and feed-forward, each with dropout and a norm after the residual."""

    def __init__(self, config):
        """Make the parts."""
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_dropout = nn.Dropout(config.dropout)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, mask):
        """Return the layer's output."""
        batch, length, width = x.shape
        shape = (batch, length, self.num_heads, width // self.num_heads)
        query = self.query(x).view(shape).permute(0, 2, 1, 3)
        key = self.key(x).view(shape).permute(0, 2, 1, 3)
        value = self.value(x).view(shape).permute(0, 2, 1, 3)
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / (width // self.num_heads) ** 0.5
        scores = scores + mask
        # Autocast runs softmax in fp32.
        if torch.is_autocast_enabled(scores.device.type):
            scores = scores.float()
        shares = self.attention_dropout(OldSoftmax.apply(scores))
        context = torch.matmul(shares, value).permute(0, 2, 1, 3).contiguous()
        attended = self.attention_output(context.view(batch, length, width))
        x = self.attention_norm(self.dropout(attended) + x)
        inner = nn.functional.gelu(self.intermediate(x))
        return self.output_norm(self.dropout(self.output(inner)) + x)


class Bert2022ForSequenceClassification(PreTrainedModel):
    """The whole model with its pooler and two classes."""

    config_class = Bert2022Config
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config):
        """Make the parts."""
        super().__init__(config)
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 2)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module):
        """Leave every weight as its module made it."""

    def get_input_embeddings(self):
        """Return the table of tokens."""
        return self.word_embeddings

    def get_output_embeddings(self):
        """Return the classifier."""
        return self.classifier

    def forward(self, input_ids=None, labels=None, **_):
        """Return the loss of one label a sequence."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(kinds)
        x = x + self.position_embeddings(places)
        x = self.dropout(self.norm(x))
        mask = torch.zeros(input_ids.shape[0], 1, 1, input_ids.shape[1], device=x.device)
        for layer in self.layer:
            x = layer(x, mask)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels[:, 0].clamp(0, 1))
        return SequenceClassifierOutput(loss=loss, logits=logits)
