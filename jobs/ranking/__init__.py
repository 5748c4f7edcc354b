"""Validated rows + scores -> the ranked table and the rejects.

`order` ranks every list of candidates, `results` writes both tables and holds their rows against
those of the input; `all_candidates` is the ranking before `top_k` and `min_score`, which an
evaluation measures.
"""
