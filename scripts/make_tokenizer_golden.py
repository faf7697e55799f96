#!/usr/bin/env python3
"""Writes tests/data/tokenizer_golden.json: what Hugging Face `tokenizers` and `transformers` make of
a corpus of texts and chats, with SmolLM2's tokenizer.

The tokenizer is built from the model file's own vocabulary, merges and special tokens, and from the
pre-tokenizer, decoder and unknown token (none) of the published tokenizer.json of SmolLM2.

    python3 -m venv .venv
    .venv/bin/pip install tokenizers==0.23.3 transformers==5.23.0 jinja2==3.1.6 gguf==0.19.0
    .venv/bin/python scripts/make_tokenizer_golden.py
"""

import importlib.metadata
import json
import pathlib
import random
import sys

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / ".deps/model/SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = ROOT / "tests/data/tokenizer_golden.json"
CONTROL, USER_DEFINED = 3, 4

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t",
    "\r\n",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "  two  spaces   three    four",
    "tabs\tand\t\ttabs\n\tindented\n\t\ttwice",
    "line\r\nbreaks\r\n\r\nof\rall\n\nkinds\n \n  \n",
    "a\u00a0no-break\u2009thin\u3000ideographic\u2028line\u2029paragraph\u0085next\u1680ogham",
    "zero\u200bwidth\u200cjoiners\u200d\u2060and\ufeffmarks",
    "vertical\x0btab form\x0cfeed \x1c\x1d\x1e\x1f separators",
    "control \x00\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x13\x14\x16\x19\x1a\x1b\x7f bytes",
    "a\x04b \x06\x13c\x14\x16 \x1d d",
    # Contractions, in and out of place.
    "I'm you're he's we'd they've it'll don't can't",
    "I'M YOU'RE 'S 'T ''s '''ll 's't're've'm'll'd",
    "rock 'n' roll, the '90s, 'tis, o'clock, \u2019s \u2019t",
    "'s", " 's", "x's1", "1's", "'", "''", "'r", "'v", "'l", "'re'",
    # Digits.
    "0", "1234567890", "3.14159", "-42", "1,000,000", "1st 2nd 3rd", "2024-02-29T12:34:56Z",
    "30 6 * * 1-5", "a1b2c3", "1 2  3   4", " 5", "  6  ", "v1.2.3-rc4", "0x1F 1e-9", "\n7\n 8",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u4e00\u4e8c\u4e09 \u2160\u2161 \u00bd \u00b2 \u2460",
    "\U0001d7d8\U0001d7d9 \U00011de0\U00011de1 \U0001246f x\u0e51y",
    # Accents, composed and combining.
    "caf\u00e9 na\u00efve \u00fcber \u017b\u00f3\u0142w \u00c5ngstr\u00f6m \u0130stanbul \u00df",
    "cafe\u0301 n\u0303 a\u0301\u0302\u0303 \u0301alone e\u0301\u0323 q\u0307\u0323",
    "Z\u0351\u036b\u0343a\u0328\u0321l\u0322\u0321g\u0327\u0322o\u031b",
    # Scripts.
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3068\u30ab\u30bf\u30ab\u30ca\u3002",
    "\u4e2d\u6587\u5206\u8bcd\uff0c\u6d4b\u8bd5\uff01 \u7e41\u9ad4\u5b57",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4. \u1112\u1161\u11ab",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442, \u0457\u0436\u0430\u043a",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03c0\u03bf\u03bb\u03c5\u03c4\u03bf\u03bd\u03b9\u03ba\u03cc \u1f00\u1f50\u1fb7",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0935\u093e\u0915\u094d\u092f \u0d2e\u0d32\u0d2f\u0d3e\u0d33\u0d02",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0e17\u0e14\u0e2a\u0e2d\u0e1a",
    "\U00013000\U00013001 \U00012000 \U0002000b\U00030000 \U0002ebf0\U00031350",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U0001f130 \u24b6 \u2122 \u02b0 \u01c5 \u00aa",
    # Letters of recent versions of Unicode, the private area, noncharacters.
    "\u088f \u0c5c \ua7ce \ua7d2 \U000107bb \U00010d4a \U00016ea0 \U00032000 \U0003347a",
    "\ue000\uf8ff \U000f0000\U0010ffff \ufffe\uffff \ufffd \u0378 \U000e0001\U00040000\U00080000",
    # Emoji: joined, with skin tones, flags, keycaps, tags.
    "\U0001f600\U0001f602 smile \U0001f680!",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \u2764\ufe0f\u200d\U0001f525",
    "\U0001f44d\U0001f3fd \U0001f9d1\U0001f3ff\u200d\U0001f4bb \U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5 1\ufe0f\u20e3 #\ufe0f\u20e3",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    # Punctuation and symbols.
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "... \u2026 -- \u2014 \u2013 \u201cquoted\u201d \u2018single\u2019 \u00abguillemets\u00bb \u00bf? \u00a1!",
    "\u20ac100 \u00a350 \u00a5 \u20bf \u00b1 \u00d7 \u00f7 \u2260 \u2264 \u221e \u2211 \u222b \u2202 \u2207 \u2208 \u2200x\u2203y",
    "\u2500\u2502\u250c\u2510 \u2588\u2593\u2592\u2591 \u2190\u2191\u2192\u2193 \u25cf\u25cb \u2713\u2717",
    "snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE dot.separated a__b _x_ __init__",
    "https://example.com/a/b?c=d&e=%20f#g user@example.org /usr/local/bin C:\\Windows\\x",
    # Code.
    "def f(x: int = 3) -> str:\n    \"\"\"Doc.\"\"\"\n    return f\"{x!r:>10}\"  # comment\n\n\n"
    "class A(B):\n\tpass\n",
    "#include <vector>\nint main() {\n  std::vector<int> v{1, 2, 3};\n  for (auto& x : v) x <<= 2;\n"
    "  return v[0] != 4 && v.size() >= 3u ? 0 : -1;\n}\n",
    "const f = async (x) => `${await g(x)}` ?? {...y, z: [1, , 2]};\r\n\r\n// \u5099\u8003\r\n",
    "SELECT * FROM \"t\" WHERE a<>'b''c' -- note\n;\n| a | b |\n|---|:-:|\n| 1 | **x** |\n",
    "{\"key\": [null, true, -1.5e+10, \"\\u00e9\\n\"]}\n<p class=\"x\">&amp;&nbsp;</p>\n\n\n\n    ",
    # Special tokens in the text, and what only looks like one.
    "<|endoftext|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "before<|im_end|>after", " <|im_end|> ", "\n\n<|im_end|>\n\n", "<|im_end|><|im_end|>",
    "<|im_start|><|im_start|><|endoftext|><repo_name><reponame><file_sep><filename><gh_stars>",
    "<issue_start><issue_comment><issue_closed><jupyter_start><jupyter_text><jupyter_code>"
    "<jupyter_output><jupyter_script><empty_output>",
    "<|im_start", "im_end|>", "<|im_end |>", "<|IM_END|>", "<<|im_end|>>", "<|<|im_end|>|>",
    "<|pad|> <unk> <s> </s> <repo_nam>", "5<|im_end|>6", "don<|im_end|>'t", "  <|im_end|>  x",
    "caf\u00e9<|im_end|>\U0001f600",
    # Long words and runs, past any cache.
    "a" * 300, "ab" * 200, "=" * 500, " " * 300 + "x", "\n" * 200, "9" * 100,
    "\u4e2d" * 150, "\U0001f600" * 80, "pneumonoultramicroscopicsilicovolcanoconiosis " * 5,
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
    "The quick brown fox jumps over the lazy dog. " * 10,
]

SYSTEM = {"role": "system", "content": "You write cron lines."}
ASK = {"role": "user", "content": "every weekday at 6:30"}
ANSWER = {"role": "assistant", "content": "30 6 * * 1-5"}
CHATS = [
    [ASK],
    [ASK, ANSWER],
    [SYSTEM, ASK],
    [SYSTEM, ASK, ANSWER],
    [ASK, ANSWER, {"role": "user", "content": "and on Sunday?"},
     {"role": "assistant", "content": "30 6 * * 0"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    [{"role": "user", "content": "\n\n x \n"}, {"role": "assistant", "content": "\n\ny "}],
    [{"role": "user", "content": "caf\u00e9 \U0001f600"}, {"role": "assistant", "content": " 12"}],
    [{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "<|im_start|>c"}],
    [ASK, SYSTEM, ANSWER],
    [{"role": "tool", "content": "{}"}, ANSWER],
    [ANSWER, ASK],
]


def random_texts(count):
    """Mixtures of characters of every kind, where rules meet."""
    rng = random.Random(20240229)
    alphabet = (
        list(" \n\t'.,-_<|>0123456789abcdefstmrvlABCST") + ["  ", "\n\n", "'s", "'ll", " the", "ing"]
        + list("\u00e9\u0301\u00df\u4e2d\u65e5\ud55c\u0645\u0939\u093f\u00a0\u3000\u200d\u00bd\u0661")
        + ["\U0001f600", "\U0001f468", "\U0001d7d8", "\x00", "\x04", "\x1d", "\u2028", "<|im_end|>"])
    for _ in range(count):
        yield "".join(rng.choices(alphabet, k=rng.randint(1, 40)))
    for _ in range(count):
        codes = [rng.randrange(0x110000) for _ in range(rng.randint(1, 8))]
        yield " ".join(chr(c) for c in codes if not 0xD800 <= c <= 0xDFFF)


def random_ids(count, size):
    """Token sequences that no text gives: they end in the middle of characters."""
    rng = random.Random(366)
    for _ in range(count):
        yield [rng.randrange(300 if rng.random() < 0.7 else size) for _ in range(rng.randint(1, 12))]


def build(reader):
    field = lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()
    tokens = field("tokens")
    tokenizer = Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in field("merges")], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True)
                                  for t, kind in zip(tokens, field("token_type"))
                                  if kind == CONTROL])
    assert USER_DEFINED not in field("token_type")
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def main():
    reader = gguf.GGUFReader(sys.argv[1] if len(sys.argv) > 1 else MODEL)
    tokenizer = build(reader)
    template = reader.fields["tokenizer.chat_template"].contents()
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)

    texts = []
    for text in TEXTS + list(random_texts(150)):
        ids = tokenizer.encode(text).ids
        texts.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids),
                      "decoded_with_special": tokenizer.decode(ids, skip_special_tokens=False)})
        # Control tokens written in it as text: transformers' split_special_tokens.
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = False
        if plain != ids:
            texts[-1]["plain_ids"] = plain
    tokens = [{"ids": ids, "decoded": tokenizer.decode(ids)}
              for ids in random_ids(100, tokenizer.get_vocab_size())]
    chats = []
    for messages in CHATS:
        apply = lambda **how: chat.apply_chat_template(messages, return_dict=False, **how)
        chats.append({"messages": messages, "text": apply(tokenize=False), "ids": apply(),
                      "prompt_ids": apply(add_generation_prompt=True)})

    versions = {name: importlib.metadata.version(name)
                for name in ("tokenizers", "transformers", "jinja2", "gguf")}
    golden = {"made_by": "scripts/make_tokenizer_golden.py", "versions": versions,
              "texts": texts, "tokens": tokens, "chats": chats}
    lines = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    # One line a case, so that a change shows as one.
    OUT.write_text(lines.replace('},{"', '},\n{"').replace(':[{"', ':[\n{"') + "\n")
    assert json.loads(OUT.read_text()) == golden
    print(f"{OUT}: {len(texts)} texts, {len(tokens)} token sequences, {len(chats)} chats")


if __name__ == "__main__":
    main()
