"""Names and docstrings speak the field's language: private words, participles and riddles stay below their limits."""

import subprocess
import sys

from support.pack import PACK


def test_words_stay_below_their_limits():
    command = [sys.executable, PACK / "tools" / "count_words.py", "--where"]
    run = subprocess.run(command, cwd=PACK, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
