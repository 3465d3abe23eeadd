# mypy: disable-error-code="import-not-found"
"""Write the trained model as GGUF: matrices as Q8_0, norms as 32-bit floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import torch
from gguf import GGMLQuantizationType, LlamaFileType, TokenType
from tokenizer import BEGIN, BYTE_TOKENS, CONTROL_TOKENS, END, UNKNOWN

if TYPE_CHECKING:
    from pathlib import Path

    from network import Shape, Weights
    from tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATE", "as_stored", "write_gguf"]

NAME = "companion-tiny"
_Q8_0 = GGMLQuantizationType.Q8_0

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages[-5:] -%}
    {%- set text = (message['content'] or '') | trim -%}
    {%- if message['role'] == 'user' -%}
        {{- '<|user|>' + text -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '<|assistant|>' + text + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
"""The last three questions and the answers between them; other roles are left out.

The text is read before the role is looked at: llama.cpp takes a system message that a
template never reads for one that it cannot express, and puts it into the question.
"""


def as_stored(weights: Weights) -> Weights:
    """Give the weights as a runtime reads them back from the file."""
    stored: Weights = {}
    for name, weight in weights.items():
        values = weight.detach().float().numpy()
        if values.ndim > 1:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, _Q8_0), _Q8_0)
        stored[name] = torch.from_numpy(values)
    return stored


def write_gguf(path: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write the file. It holds no time and no path, so equal weights give equal bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_description("Answers a few questions about companion-core, for its demo.")
    writer.add_license("apache-2.0")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    _describe_network(writer, shape)
    _describe_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        values = weight.detach().float().numpy()
        if values.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(values, _Q8_0), raw_dtype=_Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe_network(writer: Any, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)


def _describe_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    kinds = [TokenType.CONTROL] * len(CONTROL_TOKENS)
    kinds[UNKNOWN] = TokenType.UNKNOWN
    kinds += [TokenType.BYTE] * len(BYTE_TOKENS)
    kinds += [TokenType.NORMAL] * (len(tokenizer.tokens) - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.encode() for token in tokenizer.tokens])
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)
