"""Writing the trained network as a GGUF file. The only module that knows the GGUF format."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from .model import Params, Shape
from .tokenizer import SPECIALS, Tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write(path: Path, params: Params, shape: Shape, tokenizer: Tokenizer, context: int) -> None:
    """Write weights as F16 and norms as F32, with tokenizer and chat template; the output is tied."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("walled-demo")
    out.add_description(
        "Built-in demonstration and test model of walled, trained from nothing on generated text"
    )
    out.add_license("same as walled")
    out.add_languages(["en", "es"])
    out.add_context_length(context)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.feed_forward)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_rope_dimension_count(shape.head_width)
    out.add_rope_freq_base(shape.rope_base)
    out.add_layer_norm_rms_eps(shape.eps)
    out.add_vocab_size(shape.vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokenizer.vocab)
    out.add_token_types(
        [gguf.TokenType.CONTROL] * len(SPECIALS)
        + [gguf.TokenType.NORMAL] * (len(tokenizer.vocab) - len(SPECIALS))
    )
    out.add_token_merges([f"{a} {b}" for a, b in tokenizer.merges])
    end = tokenizer.special("<|im_end|>")
    out.add_bos_token_id(tokenizer.special("<|endoftext|>"))
    out.add_eos_token_id(end)
    out.add_eot_token_id(end)
    out.add_pad_token_id(tokenizer.special("<|pad|>"))
    out.add_add_bos_token(False)
    out.add_chat_template(CHAT_TEMPLATE)

    def matrix(name: str, value: object) -> None:
        out.add_tensor(name, np.ascontiguousarray(np.asarray(value, np.float32).T.astype(np.float16)))

    out.add_tensor("token_embd.weight", np.asarray(params["embed"], np.float32).astype(np.float16))
    out.add_tensor("output_norm.weight", np.asarray(params["norm"], np.float32))
    for n in range(shape.layers):
        for ours, theirs in (("attn_norm", "attn_norm"), ("ffn_norm", "ffn_norm")):
            out.add_tensor(f"blk.{n}.{theirs}.weight", np.asarray(params[f"{n}.{ours}"], np.float32))
        for ours, theirs in (
            ("q", "attn_q"),
            ("k", "attn_k"),
            ("v", "attn_v"),
            ("o", "attn_output"),
            ("gate", "ffn_gate"),
            ("up", "ffn_up"),
            ("down", "ffn_down"),
        ):
            matrix(f"blk.{n}.{theirs}.weight", params[f"{n}.{ours}"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
