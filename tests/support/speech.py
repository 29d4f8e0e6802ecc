"""The need of tests whose people speak."""

import shutil

import pytest

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="people speak by espeak-ng (apt-get install espeak-ng)"
)
