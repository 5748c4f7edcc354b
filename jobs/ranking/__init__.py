"""Validated rows + scores -> the ranked table and the rejects.

`with_scores` joins rows with the scores of their pairs, `write_ranked` ranks every list of
candidates, writes both tables and holds their rows against those of the input; `all_candidates` is
the ranking before `top_k` and `min_score`, which an evaluation measures.
"""
