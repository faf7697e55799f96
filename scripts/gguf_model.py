"""A Llama GGUF file as Hugging Face's model and tokenizer, and as an mlx-lm model directory.

The weights are dequantized by the gguf package, independently of Graft's own reader, so that what
is compared against Graft shares none of its code.
"""

import json
import pathlib

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

# GGUF's tensor names inside a block, and Hugging Face's.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hugging_face_name(name):
    stem, suffix = name.rsplit(".", 1)
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{suffix}"
    _, block, part = stem.split(".")
    return f"model.layers.{block}.{BLOCK_NAMES[part]}.{suffix}"


def unpermute(weight, heads):
    """GGUF stores each head's q and k rows as rotary pairs (2i, 2i + 1); Hugging Face stores
    (i, i + head_dim / 2)."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


class GgufModel:
    """The parts of a GGUF file that a peer of Graft needs."""

    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        field = self.field
        self.heads = field("llama.attention.head_count")
        self.kv_heads = field("llama.attention.head_count_kv")
        self.config = transformers.LlamaConfig(
            vocab_size=field("llama.vocab_size"),
            hidden_size=field("llama.embedding_length"),
            intermediate_size=field("llama.feed_forward_length"),
            num_hidden_layers=field("llama.block_count"),
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=field("llama.context_length"),
            rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
            tie_word_embeddings=not any(t.name == "output.weight" for t in self.reader.tensors),
            bos_token_id=field("tokenizer.ggml.bos_token_id"),
            eos_token_id=field("tokenizer.ggml.eos_token_id"),
            attention_bias=False,
        )

    def field(self, key):
        return self.reader.fields[key].contents()

    def state_dict(self):
        """Hugging Face's names to float32 tensors."""
        state = {}
        for tensor in self.reader.tensors:
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if ".attn_q." in tensor.name:
                weight = unpermute(weight, self.heads)
            elif ".attn_k." in tensor.name:
                weight = unpermute(weight, self.kv_heads)
            state[hugging_face_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(weight))
        return state

    def torch_model(self):
        """The model in float32, in evaluation mode."""
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(self.config)
        model = model.to_empty(device="cpu")
        missing, unexpected = model.load_state_dict(self.state_dict(), strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"GGUF and Llama differ: missing {missing}, unexpected {unexpected}")
        model.tie_weights()
        # The rotary frequencies are a buffer outside the state dict, lost by way of "meta".
        model.model.rotary_emb = type(model.model.rotary_emb)(self.config)
        return model.float().eval()

    def tokenizer(self):
        """Hugging Face's tokenizer of the same vocabulary, with the file's chat template."""
        if self.field("tokenizer.ggml.pre") != "smollm":
            raise ValueError(f"no pre-tokenizer for {self.field('tokenizer.ggml.pre')}")
        tokens = self.field("tokenizer.ggml.tokens")
        kinds = self.field("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in self.field("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        backend.decoder = tokenizers.decoders.ByteLevel()
        control = [t for t, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
        backend.add_special_tokens(control)
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=tokens[self.config.bos_token_id],
            eos_token=tokens[self.config.eos_token_id],
            pad_token=tokens[self.config.eos_token_id],
            chat_template=self.field("tokenizer.chat_template"),
            clean_up_tokenization_spaces=False,
        )

    def save(self, directory):
        """A model directory as mlx-lm and transformers read it."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer().save_pretrained(directory)
        save_file(self.state_dict(), directory / "model.safetensors", {"format": "pt"})
        config = self.config.to_dict() | {
            "architectures": ["LlamaForCausalLM"],
            "rope_theta": self.field("llama.rope.freq_base"),
        }
        (directory / "config.json").write_text(json.dumps(config, indent=2, default=str))
