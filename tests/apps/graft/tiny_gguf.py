"""A tiny random Llama as a GGUF file, made field by field, so that a test can lie in any."""

import array
import math
import random
import struct

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, Q8_0, IQ1_S, I32 = 0, 8, 19, 26
ALIGNMENT = 32

CHAT_ML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
           "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokens():
    """GPT-2's names for the 256 bytes."""
    itself = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in itself]
    names = {byte: chr(byte) for byte in itself} | {
        byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [names[byte] for byte in range(256)]


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value_bytes(kind, value):
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(
            value_bytes(element, v) for v in values)
    formats = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?", UINT64: "<Q"}
    return struct.pack(formats[kind], value)


class Gguf:
    """Metadata, name to (type, value); tensors, name to (dims, type, data), dims innermost first."""

    def __init__(self):
        self.metadata = {}
        self.tensors = {}
        self.extra_tensors = 0  # by how much the header's count is wrong
        self.extra_metadata = 0

    def set(self, key, kind, value):
        self.metadata[key] = (kind, value)
        return self

    def without(self, *names):
        for name in names:
            self.metadata.pop(name, None)
            self.tensors.pop(name, None)
        return self

    def tensor(self, name, dims, kind=F32, data=None):
        if data is None:
            values = [random.gauss(0, 0.2) for _ in range(math.prod(dims))]
            data = array.array("f", values).tobytes()
        self.tensors[name] = (dims, kind, data)
        return self

    def bytes(self):
        head, parts = self.layout()
        data = b""
        for offset, stored in parts:
            data += b"\0" * (offset - len(data)) + stored
        return head + data

    def write(self, path):
        """As a file; where the data of a tensor is a number, as a hole of so many bytes."""
        head, parts = self.layout()
        with open(path, "wb") as file:
            file.write(head)
            for offset, stored in parts:
                if isinstance(stored, int):
                    file.truncate(len(head) + offset + stored)
                else:
                    file.seek(len(head) + offset)
                    file.write(stored)

    def layout(self):
        """What stands before the data, and the parts of the data with their offsets."""
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors) + self.extra_tensors,
                                     len(self.metadata) + self.extra_metadata)
        for key, (kind, value) in self.metadata.items():
            head += text(key) + struct.pack("<I", kind) + value_bytes(kind, value)
        parts, offset = [], 0
        for name, (dims, kind, stored) in self.tensors.items():
            head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
            parts.append((offset, stored))
            size = stored if isinstance(stored, int) else len(stored)
            offset += size + -size % ALIGNMENT
        return head + b"\0" * (-len(head) % ALIGNMENT), parts


def tiny_model():
    hidden, middle, heads, kv_heads = 32, 48, 4, 2
    kv = hidden // heads * kv_heads
    tokens = SPECIALS + byte_tokens() + ["ab"]
    model = Gguf()
    model.set("general.architecture", STRING, "llama")
    for key, value in {"block_count": 1, "embedding_length": hidden, "feed_forward_length": middle,
                       "attention.head_count": heads, "attention.head_count_kv": kv_heads,
                       "context_length": 64}.items():
        model.set("llama." + key, UINT32, value)
    model.set("llama.rope.freq_base", FLOAT32, 10000.0)
    model.set("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5)
    model.set("tokenizer.ggml.model", STRING, "gpt2")
    model.set("tokenizer.ggml.pre", STRING, "smollm")
    model.set("tokenizer.ggml.tokens", ARRAY, (STRING, tokens))
    model.set("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"]))
    model.set("tokenizer.ggml.token_type", ARRAY, (INT32, [3] * 3 + [1] * 257))
    model.set("tokenizer.ggml.eos_token_id", UINT32, 2)
    model.set("tokenizer.chat_template", STRING, CHAT_ML)

    random.seed(1)
    model.tensor("token_embd.weight", [hidden, len(tokens)]).tensor("output_norm.weight", [hidden])
    for name, dims in {"attn_norm": [hidden], "ffn_norm": [hidden], "attn_q": [hidden, hidden],
                       "attn_k": [hidden, kv], "attn_v": [hidden, kv],
                       "attn_output": [hidden, hidden], "ffn_gate": [hidden, middle],
                       "ffn_up": [hidden, middle], "ffn_down": [middle, hidden]}.items():
        model.tensor(f"blk.0.{name}.weight", dims)
    return model
