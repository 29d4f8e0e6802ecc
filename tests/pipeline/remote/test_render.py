"""The command line's and Python's way to fal: one request, one purchase, the video where a local one would be."""

import json
import re
from pathlib import Path

import av
import pytest
from multitalk_pack.pipeline.__main__ import main
from multitalk_pack.pipeline.errors import MultiTalkError
from multitalk_pack.pipeline.model_files import ModelFiles
from multitalk_pack.pipeline.multitalk_pipeline import MultiTalkPipeline
from multitalk_pack.pipeline.remote.endpoints import AI_AVATAR, FLASHTALK, INFINITALK, MULTI
from multitalk_pack.pipeline.remote.exchange import Backoff
from multitalk_pack.pipeline.remote.ledger import Ledger
from PIL import Image
from support.fake_fal import KEY
from support.media import hum, write_sound
from support.remote import remote_threads, until
from support.run import RecordingHost


def webm(path: Path) -> Path:
    """A small video as fal may choose to make it."""
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return path


CHOICES = {"prompt": "a woman talks", "resolution": "480p", "seed": 42, "acceleration": "none"}


@pytest.fixture
def inputs(fal, tmp_path, monkeypatch):
    """Files to send and a key; waits are a hundredth of the real ones."""
    monkeypatch.setenv("FAL_KEY", KEY)
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.01,))
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "portrait.png")
    for name, duration_s in (("short", 1.0), ("usual", 5.8), ("long", 28.0)):
        write_sound(tmp_path / f"{name}.wav", hum(duration_s, 8000, 1), "pcm_s16le", "mono")
    return tmp_path


def command(inputs, endpoint, *more, voices=("usual",)):
    paths = [f"--audio={inputs / voice}.wav" for voice in voices]
    return [
        f"--image={inputs / 'portrait.png'}", *paths, f"--remote={endpoint.id}", "--prompt=a woman talks",
        f"--output={inputs / 'out.mp4'}", f"--ledger-folder={inputs / 'ledger'}", "--device=cpu", *more,
    ]  # fmt: skip


def bodies(fal) -> list[dict]:
    return [json.loads(submit.body) for submit in fal.submits]


REQUESTS = {
    AI_AVATAR: (("usual",), {**CHOICES, "num_frames": 145}),
    MULTI: (("short", "short"), {**CHOICES, "num_frames": 53}),
    INFINITALK: (("usual",), {**CHOICES, "num_frames": 145}),
    FLASHTALK: (("usual",), {"seed": 42}),
}


@pytest.mark.parametrize("endpoint", REQUESTS, ids=lambda endpoint: endpoint.id)
def test_the_command_line_buys_a_video_once(fal, inputs, endpoint, caplog):
    voices, arguments = REQUESTS[endpoint]
    for _ in range(2):
        assert main(command(inputs, endpoint, voices=voices)) == 0
        (inputs / "out.mp4").rename(inputs / "again.mp4")
    (body,) = bodies(fal)
    assert {name: value for name, value in body.items() if not name.endswith("_url")} == arguments
    assert {name for name in body if name.endswith("_url")} == {"image_url", *endpoint.voices}
    assert (inputs / "again.mp4").read_bytes() == fal.video
    price = next(message for message in caplog.messages if f" s at {endpoint.id}: about $" in message)
    assert endpoint is MULTI or "The same clip elsewhere: fal-ai/" in price
    assert Ledger(inputs / "ledger").spending_usd() > 0


def test_restart_buys_it_again_and_python_has_the_same_words(fal, inputs):
    assert main(command(inputs, FLASHTALK)) == 0
    talk = MultiTalkPipeline.of(ModelFiles(), host=RecordingHost())
    request = {"image": inputs / "portrait.png", "audio": inputs / "usual.wav", "prompt": "a woman talks"}
    request |= {"remote": FLASHTALK.id, "ledger_folder": inputs / "ledger"}
    path = talk.render(inputs / "python.mp4", **request)
    assert len(fal.submits) == 1 and path.read_bytes() == fal.video
    talk.render(inputs / "python.mp4", **request, restart=True)
    assert len(fal.submits) == 2
    assert talk.host.progress[-1].fraction > 0


def test_a_voice_beyond_one_request_becomes_several_and_caps_hold(fal, inputs, monkeypatch, capsys):
    assert main(command(inputs, AI_AVATAR, voices=("long",))) == 2
    assert "MULTITALK_FAL_MAX_USD allows $5.00" in capsys.readouterr().err and not fal.submits
    monkeypatch.setenv("MULTITALK_FAL_MAX_USD", "20")
    assert main(command(inputs, INFINITALK, voices=("long",))) == 0
    assert [body["num_frames"] for body in bodies(fal)] == [701]


MISTAKES = {
    "no key": (["--seed=1"], "No key for fal was found"),
    "a first look": (["--first-look"], "fal makes whole videos. Ask for 41 frames"),
    "another file": (["--output=out.mkv"], "fal makes .mp4 files, got out.mkv"),
    "a silent speaker": (["--audio=silent"], "fal takes a sound for each speaker"),
    "no picture": (["--image=no.png"], "no.png"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_sent_is_said_before_anything_is(fal, inputs, name, monkeypatch, capsys):
    more, message = MISTAKES[name]
    if name == "no key":
        monkeypatch.delenv("FAL_KEY")
    assert main(command(inputs, MULTI, *more)) == 2
    assert message in capsys.readouterr().err and fal.log == []


def test_choices_of_a_local_run_are_said_to_stay_here(fal, inputs, caplog):
    assert main(command(inputs, FLASHTALK, "--steps=8", "--negative-prompt=blur", "--start=0")) == 0
    assert "fal takes none of steps, start, negative_prompt; they are not sent." in caplog.messages


def test_a_run_that_is_left_is_cancelled_at_fal(fal, inputs):
    host = RecordingHost(cancel_after=0)
    with pytest.raises(KeyboardInterrupt):
        MultiTalkPipeline.of(ModelFiles(), host=host).render(
            inputs / "out.mp4", inputs / "portrait.png", inputs / "usual.wav", "a woman talks", remote=FLASHTALK.id,
            ledger_folder=inputs / "ledger",
        )  # fmt: skip
    until(lambda: not remote_threads())
    assert not (inputs / "out.mp4").exists()


def test_an_output_that_is_taken_meanwhile_leaves_the_bought_video(fal, inputs, capsys):
    fal.video = webm(inputs / "result.webm").read_bytes()
    (inputs / "out.webm").mkdir()
    assert main(command(inputs, FLASHTALK)) == 2
    said = capsys.readouterr().err
    assert f"{inputs / 'out.webm'} cannot be written (it is a folder, not a file)" in said
    bought = Path(re.search(r"The video is bought and lies in (\S+)\.\n", said)[1])
    assert bought.read_bytes() == fal.video


def test_an_unknown_endpoint_is_refused_with_all_there_are(inputs):
    with pytest.raises(MultiTalkError, match=r"is no endpoint that .*Take one of: fal-ai/ai-avatar, "):
        MultiTalkPipeline.of(ModelFiles(), host=RecordingHost()).render(
            inputs / "out.mp4", inputs / "portrait.png", inputs / "usual.wav", remote="fal-ai/other"
        )
