"""Command lines of any content: looked at, or refused in words that name the option; nothing is read or written."""

import contextlib
import io
import wave

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from multitalk_pack.benchmarks.tiny_weights import write_tiny
from multitalk_pack.pipeline.__main__ import _parser
from multitalk_pack.pipeline.errors import ConfigError, Problems
from multitalk_pack.pipeline.preflight.checks import describe
from PIL import Image
from support.command_line import check
from support.fuzz import MONITOR, fuzzed

OPTIONS = {option: action for action in _parser()._actions for option in action.option_strings[-1:]}
NUMBERS = (
    "0", "-1", "1", "40", "64", "0.5", "1e400", "1e308", "-1e308", "1e-300", "nan", "inf", "1/0", "9" * 30, "9" * 5000,
)  # fmt: skip
SHAPES = (
    "64x64", "65x64", "0x0", "-16x16", "64x", "x", "4112x64", "999999999x16", "0,0,50,100", "50,0,0,100", "nan,0,1,1",
    "0,0,inf,1", "1,2,3", ",,,", "0,0,1e308,1e308",
)  # fmt: skip
PLACES = (
    "{0}/portrait.png", "{0}/voice.wav", "{0}/no.wav", "{0}", "", "/", "..", "~", "silent", "cpu", "meta", "cuda:99",
    "{0}/umt5_tiny.safetensors", "{0}/umt5_tiny.safetensors:0.5", ":", "a:b:c", "x" * 5000,
)  # fmt: skip
UNDECODED = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)  # how Python spells bytes that are no text
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0") | UNDECODED)
VALUES = st.sampled_from(NUMBERS) | st.sampled_from(SHAPES) | st.sampled_from(PLACES) | TEXTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    Image.new("RGB", (120, 90), "white").save(folder / "portrait.png")
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((torch.rand(16000) * 9999).to(torch.int16).numpy().tobytes())
    return folder


def command_line(options, folder):
    """The options, those of a run that works first."""
    usual = {"--image": "portrait.png", "--audio": "voice.wav", "--base": "wan2.1_i2v_480p_tiny.safetensors"}
    argv = [f"{option}={folder / name}" for option, name in usual.items()] + ["--num-frames=41", "--size=64x64"]
    for option, value in options:
        argv.append(option if OPTIONS[option].nargs == 0 else f"{option}={value.replace('{0}', str(folder))}")
    return argv


def report_on(arguments):
    """All that is said of a command line; None where the options themselves are refused."""
    problems, output = Problems(), io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            run = check(arguments, problems)
    except SystemExit as stop:
        assert stop.code == 0 or "error: argument --" in output.getvalue(), output.getvalue()
        assert "invalid _" not in output.getvalue(), "a name of ours is no answer"
        return None
    except ConfigError:
        return describe(problems, None)
    return describe(problems, run.estimate)


@fuzzed
@given(options=st.lists(st.tuples(st.sampled_from(sorted(OPTIONS)), VALUES), max_size=4))
@example(options=[("--fps", "1/0")])
@example(options=[("--fps", "1e308")])
@example(options=[("--size", "999999999x16")])
@example(options=[("--steps", "9" * 30)])
@example(options=[("--num-frames", "9" * 30)])
@example(options=[("--num-frames", "360000")])
@example(options=[("--device", "meta")])
@example(options=[("--box", "left")])
@example(options=[("--output", "0")])
@example(options=[("--audio", "{0}/voice.wav"), ("--size", "4096x4096")])
def test_any_options(options, folder):
    with MONITOR.on() as monitor:
        text = report_on(command_line(options, folder))
    left = [path for path in monitor.paths_out if path.parts[1] != "dev" and path.exists()]
    assert not monitor.ran and not left, "the output's place is tried, and nothing of that is left"
    assert text is None or text.startswith(("This cannot run:\n- ", "Nothing was found"))
