"""Speech features of every speaker, and their slices for a window."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import check_fps, check_num_frames
from ..errors import AudioError
from ..models.wav2vec2.encoder import encode
from ..shapes import FPS
from .dialogue import Arrangement, Speech, arrange, mix_soundtrack, plan_turns
from .waveform import SAMPLE_RATE_HZ, Sound, fit_length, peak_of

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

logger = logging.getLogger(__name__)

SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FPS
TAIL_FRAMES = 10  # 0.4 s of silence after the end, so that a window reaching past it hears silence
BUFFER_FRAMES = 8 * FPS  # of sound that a window's own features are encoded from
CONTEXT_FRAMES = 2  # before a window that its first frame hears, and after it
METERED_TAIL_S = 1.0  # after the video's end, that loudness and resampling still take into account


@dataclass(frozen=True)
class AudioEmbeds:
    """The features of all speakers at 25 a second, with a tail of silence."""

    features: Tensor  # p n layers channels
    num_frames: int  # video frames, 25 a second, that the audio covers; what follows them is the tail
    fps: Fraction = Fraction(FPS)  # of the finished video
    num_output_frames: int | None = None  # of the finished video, at `fps`; None at 25 a second
    soundtrack: Sound | None = None  # of the finished video, which silence continues; None is silent
    silence: Tensor | None = None  # layers channels, of a silent moment, for a listener beside an only speaker

    def __post_init__(self) -> None:
        if not math.isfinite(peak_of(self.features)):
            raise AudioError("The speech features hold NaN or infinity. Run the audio encoder in float32.")

    @property
    def num_speakers(self) -> int:
        """Speakers, the silent ones too."""
        return self.features.shape[0]

    def with_listener(self) -> AudioEmbeds:
        """The same with one more speaker, who keeps silent; `silence` must be there."""
        assert self.silence is not None
        listener = self.silence.expand(1, *self.features.shape[1:])
        return replace(self, features=torch.cat((self.features, listener)))

    def window(self, feature_frames: Tensor) -> Tensor:
        """
        The features of some video frames and their neighbours.

        Args:
            feature_frames: `f 5`, for every video frame the indices of itself and its neighbours
                (`generation.windows.CONTEXT`); or `p f 5`, each speaker's own.

        Returns:
            `p f 5 layers channels`.
        """
        speakers = torch.arange(self.num_speakers).view(-1, 1, 1)
        return self.features[speakers, feature_frames]


def num_frames_of(duration_s: float, fps: Fraction | float = FPS) -> int:
    """Frames of a video of `duration_s`, rounded without floating point error, a half to the even number."""
    return round(_exact(duration_s) * _exact(fps))


def num_model_frames(num_frames: int, fps: Fraction | float = FPS) -> int:
    """Frames at the model's 25 a second that cover `num_frames` at `fps`."""
    return math.ceil(num_frames * FPS / _exact(fps))


def decode_duration_s(num_frames: int) -> float:
    """Seconds of sound that a video of `num_frames`, 25 a second, is made from; nothing later needs to be decoded."""
    return num_frames / FPS + METERED_TAIL_S


def encode_audio(
    model: Wav2Vec2Model,
    speeches: Sequence[Speech],
    arrangement: Arrangement = Arrangement.PARALLEL,
    num_frames: int = 0,
    normalize_loudness: bool = True,
    normalize_input: bool = False,
    fps: Fraction | float = FPS,
    soundtrack: Sound | None = None,
    windows: Sequence[range] = (),
) -> AudioEmbeds:
    """
    The speech features of a video.

    Every track is cut, or continued with silence, to the video's length plus 0.4 s before it is encoded: silence is
    in the model's training data, missing features are not.

    Args:
        num_frames: of the finished video, counted at `fps`; 0 takes the audio's length, at least one frame.
        normalize_input: the encoder wants zero mean and unit variance (see `wav2vec2.encode`).
        fps: of the finished video; the model itself always runs at 25.
        soundtrack: the sound of the video where it is not the voices, such as the mix they were separated from.
        windows: the frames of each window, for features of its own (`encode_stream`); none encodes all sound in one go.

    Raises:
        AudioError: a sound cannot be used, or nobody has one and `num_frames` is 0.
        ConfigError: `num_frames` or `fps` is out of range.
    """
    check_num_frames(num_frames)
    check_fps(fps)
    if not num_frames:
        num_frames = _num_frames_from_audio(speeches, arrangement, fps)
    num_output_frames, num_frames = num_frames, num_model_frames(num_frames, fps)
    tracks = arrange(speeches, arrangement, normalize_loudness, decode_duration_s(num_frames))
    _log_silence(tracks, num_frames)
    num_features = num_frames + TAIL_FRAMES
    features = []
    for track in tracks:
        waveform = fit_length(track[: num_frames * SAMPLES_PER_FRAME], num_features * SAMPLES_PER_FRAME)
        if windows:
            features.append(encode_stream(model, waveform, windows, normalize_input))
        else:
            features.append(encode(model, waveform, num_features, normalize_input))
    sources = speeches if soundtrack is None else [Speech(soundtrack)]
    sound = mix_soundtrack(sources, arrangement, num_output_frames, _exact(fps))
    silence = None
    if len(tracks) == 1:
        silence = encode(model, torch.zeros(SAMPLE_RATE_HZ), FPS, normalize_input)[FPS // 2]  # far from both ends
    return AudioEmbeds(torch.stack(features), num_frames, _exact(fps), num_output_frames, sound, silence)


def encode_stream(model: Wav2Vec2Model, waveform: Tensor, windows: Sequence[range], normalize: bool) -> Tensor:
    """The features of windows that each hear the last 8 s before their end, as in FlashTalk's live mode.

    Args:
        waveform: `n`, mono, 16 kHz; silence stands before and after it.
        windows: the frames of each.

    Returns:
        `(w (f+2)) layers channels`, window by window: two frames before it, and its own.
    """
    length, end = BUFFER_FRAMES * SAMPLES_PER_FRAME, windows[-1].stop * SAMPLES_PER_FRAME
    samples = pad(waveform, (length, end))
    features = []
    for window in windows:
        buffer = samples[window.stop * SAMPLES_PER_FRAME :][:length]
        rows = encode(model, buffer, BUFFER_FRAMES, normalize)
        features.append(rows[-len(window) - CONTEXT_FRAMES :])
    return torch.cat(features)


def _num_frames_from_audio(speeches: Sequence[Speech], arrangement: Arrangement, fps: Fraction | float) -> int:
    """The frames of a video as long as the speeches."""
    if all(speech.sound is None for speech in speeches):
        raise AudioError("No speaker has a sound, so the video has no length. Give audio, or a number of frames.")
    end_s = max(segment.end_s for segment in plan_turns(speeches, arrangement))
    return max(1, num_frames_of(end_s, fps))


def _log_silence(tracks: Sequence[Tensor], num_frames: int) -> None:
    """Logs silent speakers, and audio that ends before the video."""
    missing_s = num_frames / FPS - tracks[0].shape[-1] / SAMPLE_RATE_HZ
    if missing_s >= 1 / FPS:
        logger.info("The audio ends %.2f s before the video; silence follows it.", missing_s)
    for speaker, track in enumerate(tracks, start=1):
        if not track.any():
            logger.info("Speaker %d is silent throughout.", speaker)


def _exact(number: Fraction | float) -> Fraction:
    """The fraction meant by a float: 3.26 is 326/100, 29.97 is 2997/100."""
    return Fraction(number).limit_denominator(1_000_000)
