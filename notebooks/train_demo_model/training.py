"""The stages: repair as a sentence encoder, training as a cross-encoder, calibration."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import BertForSequenceClassification as Model

from train_demo_model.candidates import draw
from train_demo_model.losses import follow, label_loss, lexical_target
from train_demo_model.pools import Pool, Query
from train_demo_model.recipes import (
    CENTRE,
    GROUPS,
    LABELLED,
    LONG_GROUPS,
    LONG_LIMITS,
    LONG_MIX,
    PLAN_EN,
    PLAN_ZH,
    PLAN_ZH_EASY,
    SHARP,
    Recipe,
)
from train_demo_model.student import Encoder, save
from train_demo_model.teacher import pooled

log = logging.getLogger(__name__)


class Stage:
    """One timed stage of training: a linear warm-up, then half a cosine over its time."""

    def __init__(
        self, model: Model, rate: float, minutes: float, clip: float, warm_up: int
    ) -> None:
        """Start the clock, of processor time; the last layer learns five times as fast."""
        head, body = list(model.classifier.parameters()), list(model.bert.parameters())
        self.parameters, self.clip, self.warm_up = body + head, clip, warm_up
        groups = [{"params": body, "top": rate}, {"params": head, "top": 5 * rate}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.01)
        self.start, self.minutes, self.step, self.done = time.process_time(), minutes, 0, 0.0

    def advance(self, loss: torch.Tensor) -> None:
        """Average the gradients, and the share of time gone by, over the processes; step."""
        self.step += 1
        curve = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(self.done, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * min(1.0, self.step / self.warm_up) * curve
        loss.backward()
        done = (time.process_time() - self.start) / (60 * self.minutes)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), torch.tensor([done])])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, mean in zip(grads, flat.split([*(g.numel() for g in grads), 1]), strict=False):
            grad.copy_(mean.view_as(grad))
        self.done = flat[-1].item()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def repair(
    model: Model,
    encoder: Encoder,
    targets: dict[str, np.ndarray],
    chinese: Pool,
    minutes: float,
    rng: np.random.Generator,
) -> None:
    """Teach the shrunken network the teacher's vectors, and Chinese question-passage pairs."""
    texts, stage = list(targets), Stage(model, 4e-4, minutes, math.inf, 60)
    while stage.done < 1:
        use_teacher = (stage.step + 1) % 3 > 0
        picks = rng.choice(len(texts), 48, replace=False)
        if use_teacher:
            chosen = [texts[i] for i in picks]
        else:
            asked = [q for q in rng.choice(np.array(chinese.queries), 32) if q.positives]
            chosen = [q.text for q in asked]
            chosen += [chinese.texts[rng.choice(q.positives)] for q in asked]
        batch = encoder.batch([(t,) for t in chosen], 48)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.bert(**batch).last_hidden_state
        vectors = pooled(hidden, batch["attention_mask"])
        if use_teacher:
            goal = torch.from_numpy(np.stack([targets[t] for t in chosen]))
            loss = 5 * (1 - (vectors * goal).sum(1)).mean()
        else:
            left, right = vectors.chunk(2)
            loss = 0.3 * F.cross_entropy(SHARP * left @ right.T, torch.arange(len(left)))
        stage.advance(loss)
        if stage.step % 30 < 3:
            log.info("repair %d, done %.2f, loss %.3f", stage.step, stage.done, loss.item())


def train(
    model: Model,
    encoder: Encoder,
    pools: Sequence[Pool],
    vectors: Mapping[int, tuple[np.ndarray, np.ndarray]],
    args: argparse.Namespace,
    recipe: Recipe,
    rng: np.random.Generator,
) -> None:
    """Run the cross-encoder stage, short passages first, saving now and then.

    `vectors` holds the teacher's, of queries and of passages, by the number of the pool.
    """
    kinds: dict[str, list[tuple[int, int, Query]]] = {k: [] for k in (*recipe.mix, *LONG_MIX)}
    for place, pool in enumerate(pools):
        for number, query in enumerate(pool.queries):
            kinds[query.kind].append((place, number, query))
    together = np.random.default_rng(args.order_seed)  # the same draws in every process
    stage, saved = Stage(model, args.rate, args.minutes, 2.0, recipe.warm_up), time.time()
    trace: dict[bool, list[float]] = {False: [], True: []}
    while (done := stage.done) < 1:
        limits = next(choice for end, choice in recipe.limits if done < end)
        mix, count = recipe.mix, GROUPS
        if together.random() < args.long:
            limits, mix, count = LONG_LIMITS, LONG_MIX, LONG_GROUPS
        groups, pairs = [], []
        for kind in rng.choice(list(mix), count, p=list(mix.values())):
            place, number, query = kinds[kind][rng.integers(len(kinds[kind]))]
            pool = pools[place]
            is_zh = kind.startswith("zh")
            plan_zh = PLAN_ZH_EASY if recipe.lexical and done < 0.5 else PLAN_ZH
            chosen = draw(pool, query, plan_zh if is_zh else PLAN_EN, rng)
            known = query.positives if kind in LABELLED else []
            good = torch.tensor([i in known for i in chosen])
            target = None
            if not is_zh:
                of_query, of_passages = (
                    part[at] for part, at in zip(vectors[place], (number, chosen), strict=True)
                )
                similar = torch.from_numpy(of_passages @ of_query)
                target = SHARP * (similar - CENTRE)
            elif recipe.lexical:
                target = lexical_target(pool, number, chosen)
            groups.append((is_zh, target, good))
            pairs += [(query.text, pool.texts[i]) for i in chosen]
        logits = encoder.score(model, pairs, int(rng.choice(limits))).view(count, -1)
        losses = []
        for row, (is_zh, target, good) in zip(logits, groups, strict=True):
            loss = (1.0 if is_zh else 0.3) * label_loss(row, good) if good.any() else 0.0
            if target is not None:
                loss = loss + (0.6 if is_zh else 1.0) * follow(row, target)
            losses.append(loss)
            trace[is_zh].append(loss.item())
        stage.advance(torch.stack(losses).mean())
        if stage.step % 25 == 0:
            en, zh = (np.mean(trace[k][-100:]) for k in (False, True))
            log.info("step %d, done %.3f, en %.3f, zh %.3f", stage.step, stage.done, en, zh)
        if time.time() - saved > 60 * args.save_every and not dist.get_rank():
            saved = time.time()
            save(model, encoder.tokenizer, args.out / "checkpoint")


@torch.no_grad()
def calibrate(
    model: Model, encoder: Encoder, pools: Sequence[Pool], rng: np.random.Generator
) -> None:
    """Fit a scale and an offset on held-out labelled questions, the classes weighted alike."""
    scores, labels = [], []
    for pool in pools:
        for i in rng.choice(len(pool.queries), 120, replace=False):
            query = pool.queries[i]
            chosen = draw(pool, query, PLAN_ZH, rng)
            scores.append(encoder.score(model, [(query.text, pool.texts[k]) for k in chosen], 256))
            labels.append(torch.tensor([float(k in query.positives) for k in chosen]))
    score, label = torch.cat(scores), torch.cat(labels)
    weight = torch.where(label > 0, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
    fit = torch.tensor([1.0, 0.0], requires_grad=True)
    solver = torch.optim.LBFGS([fit], max_iter=100)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = F.binary_cross_entropy_with_logits(score * fit[0] + fit[1], label, weight)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    scale, offset = fit.tolist()
    model.classifier.weight.mul_(scale)
    model.classifier.bias.mul_(scale).add_(offset)
    log.info("calibrated: scale %.3f, offset %.3f", scale, offset)
