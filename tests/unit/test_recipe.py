"""The recipe of the embedded model."""

import pandas as pd

from notebooks.embedded_model.readers import read_selqa


def test_blank_sentences_move_no_label(tmp_path):
    rows = {"question": "q", "sentence": ["One.", "  ", "Three."], "label": [0, 0, 1]}
    (tmp_path / "train2").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "train2/selqa.parquet")
    pool = read_selqa(tmp_path)
    (query,) = pool.queries
    assert pool.texts == ["One.", "Three."]
    assert [pool.texts[i] for i in query.positives] == ["Three."]
    assert [pool.texts[i] for i in query.siblings] == ["One."]
