"""The embedded sample, the small model that goes with it, and the command that shows both."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
