"""`make demo`: the embedded sample and model, and the command that reranks the one with the other.

`FOLDER` holds sample.jsonl (query-document pairs in English and Chinese with grades and BM25
scores) and model/ (`model.name=embedded`). Nothing else is imported from here.
"""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
