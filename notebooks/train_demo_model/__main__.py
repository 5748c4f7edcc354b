"""Train the small embedded cross-encoder by distillation from all-MiniLM-L6-v2, on a CPU.

Stages: read the texts; choose a small vocabulary; shrink the teacher to fewer layers and a
narrower feed-forward part; repair it as a sentence encoder; train it as a cross-encoder
(English: towards the teacher's similarities and labels, Chinese: towards labels); fit a scale
and an offset into the last layer; save fp16 weights. The shipped model took five runs with one
process a core, each from the last checkpoint of the one before:

    torchrun --nproc-per-node 2 -m train_demo_model --data D --teacher T --out A --minutes 40
        (stopped after 19 minutes of the cross-encoder stage)
    torchrun --nproc-per-node 2 -m train_demo_model --data D --teacher T --out B --minutes 18
        --resume A/checkpoint
    torchrun --nproc-per-node 2 -m train_demo_model --data D --teacher T --out C --minutes 19
        --resume B/checkpoint --order-seed 107
    torchrun --nproc-per-node 2 -m train_demo_model --data D --teacher T --out E --minutes 70
        --resume C/checkpoint --order-seed 207 --long 0.25  (stopped after 37 minutes)
    torchrun --nproc-per-node 2 -m train_demo_model --data D --teacher T --out F --minutes 9
        --resume E/checkpoint --order-seed 307 --long 0.25 --rate 1.5e-4

Run in the folder above this one. D holds nfcorpus/, wikiqa/, xquad-en/, cmrc2018/ and drcd/
as their owners publish them, T is all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import BertForSequenceClassification as Model

from train_demo_model.candidates import mine
from train_demo_model.pseudo import thin
from train_demo_model.readers import read_long, read_pools
from train_demo_model.recipes import FIRST, SECOND
from train_demo_model.student import Encoder, choose_vocabulary, save, shrink
from train_demo_model.teacher import Teacher, embed
from train_demo_model.training import calibrate, repair, train

log = logging.getLogger("train_demo_model")


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40, help="of the cross-encoder stage")
    parser.add_argument("--repair-minutes", type=float, default=2.5)
    parser.add_argument("--save-every", type=float, default=4, help="minutes")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, no repair")
    parser.add_argument("--long", type=float, default=0.0, help="share of whole-document steps")
    parser.add_argument("--seed", type=int, default=7, help="of the texts that are chosen")
    parser.add_argument("--order-seed", type=int, default=7, help="of the order they come in")
    args = parser.parse_args()
    recipe = SECOND if args.resume else FIRST
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    logging.basicConfig(level=logging.WARNING if dist.get_rank() else logging.INFO)
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    english, chinese, held_en, held_zh = read_pools(args.data, rng)
    teacher = Teacher(args.teacher)
    vocabulary = choose_vocabulary(teacher, english, chinese)
    questions = [q.text for q in english.queries]
    log.info("passages: %d English, %d Chinese", len(english.texts), len(chinese.texts))
    passages = embed(teacher, english.texts, args.out / "cache/passages.npy")
    asked = embed(teacher, questions, args.out / "cache/queries.npy")
    for_repair = questions, asked
    asked = asked[thin(english, recipe.pseudo, rng)]
    thin(chinese, recipe.pseudo, rng)
    mine(english, asked, passages)
    for pool in (chinese, held_en, held_zh):
        mine(pool)
    rng = np.random.default_rng(args.order_seed + dist.get_rank())
    model, encoder = shrink(teacher, vocabulary, english.texts[::120]), Encoder(vocabulary)
    targets = dict(zip(english.texts, passages, strict=True))
    targets |= dict(zip(*for_repair, strict=True))
    if args.resume:
        model = Model.from_pretrained(args.resume, dtype=torch.float32)
    else:
        repair(model.train(), encoder, targets, chinese, args.repair_minutes, rng)
    model.train()
    pools, vectors = [english, chinese], {0: (asked, passages)}
    if args.long:
        abstracts, paragraphs = read_long(args.data, np.random.default_rng(args.seed))
        held = {q.text for q in held_zh.queries}
        paragraphs.queries = [q for q in paragraphs.queries if q.text not in held]
        kept = args.out / "cache"
        questions = [q.text for q in abstracts.queries]
        vectors[2] = (
            embed(teacher, questions, kept / "long-queries.npy"),
            embed(teacher, abstracts.texts, kept / "long-passages.npy"),
        )
        mine(abstracts, *vectors[2])
        mine(paragraphs)
        pools += [abstracts, paragraphs]
    train(model, encoder, pools, vectors, args, recipe, rng)
    if not dist.get_rank():
        calibrate(model.eval(), encoder, (held_en, held_zh), rng)
        save(model, encoder.tokenizer, args.out / "model")


if __name__ == "__main__":
    main()
