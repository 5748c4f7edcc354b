"""What a run is made of: kinds of queries, their candidates, lengths, the student's sizes."""

from __future__ import annotations

from dataclasses import dataclass

# The student: layers of the teacher, feed-forward width, pieces, Chinese characters among them.
KEEP_LAYERS = (0, 1, 3, 5)
FFN, VOCAB, CHINESE = 1024, 14_080, 3_000
SHARP, CENTRE = 20.0, 0.42  # a teacher similarity s becomes the target logit SHARP * (s - CENTRE)
TOP, GROUPS = 40, 6  # candidates mined per source; queries a step and process
LABELLED = {"wikiqa", "xquad", "zh", "zh-cloze", "zh-long"}
# Whole documents: share of each kind of query, groups a step and process, tokens a pair.
LONG_MIX = {"claim": 0.4, "title": 0.15, "topic": 0.15, "zh-long": 0.3}
LONG_GROUPS, LONG_LIMITS = 3, (192, 256, 320, 384)
# Where a query's candidates come from.
POSITIVE, TEACHER, LEXICAL, RANDOM, SIBLING = range(5)
PLAN_EN = (POSITIVE, TEACHER, TEACHER, TEACHER, LEXICAL, LEXICAL, SIBLING, RANDOM)
PLAN_ZH = (POSITIVE, LEXICAL, LEXICAL, LEXICAL, LEXICAL, SIBLING, SIBLING, RANDOM)
PLAN_ZH_EASY = (POSITIVE, LEXICAL, LEXICAL, LEXICAL, SIBLING, RANDOM, RANDOM, RANDOM)


@dataclass(frozen=True)
class Recipe:
    """What differs between a first run and one that goes on from a checkpoint."""

    mix: dict[str, float]  # share of each kind of query
    limits: tuple[tuple[float, tuple[int, int, int]], ...]  # tokens a pair up to a share of time
    warm_up: int
    lexical: bool  # BM25 guides Chinese, with easier candidates up to half the time
    pseudo: float  # share of the pseudo-queries that is kept, to mine in less time


FIRST = Recipe(
    {"wikiqa": 0.19, "xquad": 0.09, "nfcorpus": 0.09, "what-is": 0.13, "keywords": 0.14,
     "sentence": 0.06, "zh": 0.24, "zh-cloze": 0.06},
    ((0.5, (56, 72, 80)), (0.85, (72, 96, 112)), (9.0, (96, 128, 192))),
    warm_up=60, lexical=False, pseudo=1.0,
)  # fmt: skip
SECOND = Recipe(
    {"wikiqa": 0.17, "xquad": 0.08, "nfcorpus": 0.06, "what-is": 0.14, "keywords": 0.13,
     "sentence": 0.04, "zh": 0.30, "zh-cloze": 0.08},
    ((0.5, (56, 72, 80)), (0.85, (72, 96, 128)), (9.0, (96, 160, 224))),
    warm_up=30, lexical=True, pseudo=0.25,
)  # fmt: skip
