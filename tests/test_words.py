"""Names and docstrings speak the field's language: private words, participles and riddles stay below their limits."""

import importlib.util

from support.pack import PACK


def test_words_stay_below_their_limits():
    spec = importlib.util.spec_from_file_location("count_words", PACK / "tools" / "count_words.py")
    count_words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(count_words)
    counts = count_words.count()
    assert counts.is_within_limits, "run: python tools/count_words.py --where\n" + count_words.table(counts)
