"""Peak memory of a run: a window, however long the video, and little of the weights' files."""

import pytest
from multitalk_pack.pipeline.host import TorchHost
from multitalk_pack.pipeline.media.video import VideoWriter
from support import run
from support.peak import LiveTensors, linux_only, run_script

LONG_VIDEO = """
import dataclasses, torch
from pathlib import Path
from multitalk_pack.benchmarks.measure import PeakMemory
from multitalk_pack.pipeline.host import TorchHost
from multitalk_pack.pipeline.media.video import VideoWriter
from support import run
from support.media import hum
num_frames, folder = int(sys.argv[1]), Path(sys.argv[2])
model = run.model(num_layers=1)
config = run.config(steps=1, text_scale=1.0, audio_scale=1.0, window_frames=None, motion_frames=None)
parts = (model, run.audio(model, num_frames), run.conditioning(model), config)
store = run.open_store(folder, *parts)
peaks, peak = [], PeakMemory(torch.device('cpu'))
with VideoWriter(folder / "talk.mp4", sound=hum(num_frames / 25, 16000, 1)) as writer:
    for frames in run.generate(*parts, TorchHost('cpu'), store=store):
        writer.add(frames)
        del frames
        peaks.append(peak.megabytes())
print(json.dumps(peaks))
"""


@pytest.mark.long
@pytest.mark.xdist_group("memory")
@linux_only
def test_three_thousand_frames_take_the_memory_of_three_windows(tmp_path):
    peaks = run_script(LONG_VIDEO, 3000, tmp_path)
    assert len(peaks) == 42
    assert peaks[-1] < 1.05 * peaks[2]


def test_twelve_windows_hold_the_tensors_of_three(tmp_path):
    model, config = run.model(num_layers=1), run.config(steps=1, window_frames=21, motion_frames=5)
    peaks = []
    for num_windows in (3, 12):
        inputs = model, run.audio(model, 5 + 16 * num_windows), run.conditioning(model), config
        store, count = run.open_store(tmp_path / str(num_windows), *inputs), 0
        with VideoWriter(tmp_path / "talk.mp4") as video, LiveTensors() as live:
            for frames in run.generate(*inputs, TorchHost("cpu"), store=store):
                video.add(frames)
                del frames
                count += 1
        assert count == num_windows
        peaks.append(live.peak)
    assert peaks[1] < 1.05 * peaks[0]


def test_ten_times_the_frames_are_decoded_in_the_same_memory(tmp_path):
    vae = run.vae(width=24)  # beside whose work a hundred latents count little, as in the published one's
    peaks = []
    for num_latents in (11, 101):
        latents = run.random((16, num_latents, 2, 2), 1)
        with VideoWriter(tmp_path / "talk.mp4") as video, LiveTensors() as live:
            for frames in vae.decode(latents):
                video.add(frames)
        assert video.num_frames == 4 * num_latents - 3
        peaks.append(live.peak)
    assert peaks[1] < 1.05 * peaks[0]
