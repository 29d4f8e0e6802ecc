"""Drawings of talking faces: an `Appearance` is a person, a `Motion` moves it, and `draw` makes frames of both.

Lengths are in head units: 1 is half the height of a head. Everything is drawn as polygons, eight times finer than a
pixel where it counts, so that a mouth that opens by half a pixel shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4
HEAD_SHARE = 0.37  # half a head's height, as a share of the frame's height
MOUTH_OPENING = 0.2  # half the height of a mouth that is fully open
Color = tuple[int, int, int]

# All between slate and sand: a VAE this small keeps brightness and one axis of colour, from blue-grey to orange.
SKINS: tuple[Color, ...] = (
    (248, 222, 200), (238, 202, 172), (222, 180, 146), (196, 148, 110), (158, 112, 80), (122, 84, 60),
)  # fmt: skip
HAIRS: tuple[Color, ...] = (
    (28, 26, 26), (64, 46, 34), (104, 76, 54), (160, 128, 96), (116, 118, 124), (206, 202, 198),
)  # fmt: skip
IRISES: tuple[Color, ...] = ((66, 46, 32), (70, 92, 120), (40, 36, 34), (104, 106, 112))
CLOTHES: tuple[Color, ...] = (
    (66, 80, 102), (52, 54, 62), (108, 118, 132), (150, 108, 78), (206, 208, 212), (188, 160, 132),
)  # fmt: skip
BACKGROUNDS: tuple[Color, ...] = (
    (176, 190, 206), (204, 208, 212), (218, 204, 188), (124, 134, 148), (88, 96, 106), (154, 166, 182),
)  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """Features of a face that stay the same while it speaks."""

    skin: Color
    hair: Color
    iris: Color
    clothes: Color
    lips: Color
    hair_style: int  # 0 short, 1 long, 2 bald, 3 fringe
    head_width: float
    jaw: float  # 0 round .. 1 narrow
    eye_distance: float
    eye_size: float
    brow_thickness: float
    nose: float
    mouth_width: float  # half of it, at rest
    mouth_height: float  # below the middle of the head
    lip_thickness: float
    x: float  # place of the head, in head units from the middle of its part of the frame
    y: float
    size: float


@dataclass(frozen=True)
class Motion:
    """Tracks of everything that moves, one value for each video frame."""

    opening: np.ndarray  # 0 closed .. 1 fully open
    width: np.ndarray  # -1 rounded .. 1 spread
    smile: np.ndarray  # -1 serious .. 1 smiling; 0 in the portrait
    brows: np.ndarray  # -1 lowered .. 1 raised; 0 in the portrait
    blink: np.ndarray  # 0 open .. 1 closed
    sway_x: np.ndarray  # head units
    sway_y: np.ndarray

    def __len__(self) -> int:
        return len(self.opening)

    def __getitem__(self, frames: slice) -> Motion:
        return Motion(*(track[frames] for track in vars(self).values()))


def random_appearance(random: np.random.Generator) -> Appearance:
    """Random features of a new face."""

    def vary(color: Color, amount: int = 14) -> Color:
        lighter = random.integers(-amount, amount + 1)
        return tuple(int(np.clip(c + lighter, 8, 247)) for c in color)

    skin = vary(SKINS[random.integers(len(SKINS))], 8)
    redness = random.uniform(0.55, 0.75)
    return Appearance(
        skin=skin,
        hair=vary(HAIRS[random.integers(len(HAIRS))]),
        iris=vary(IRISES[random.integers(len(IRISES))]),
        clothes=vary(CLOTHES[random.integers(len(CLOTHES))]),
        lips=(int(skin[0] * 0.86), int(skin[1] * redness), int(skin[2] * redness)),
        hair_style=int(random.integers(4)),
        head_width=random.uniform(0.74, 0.86),
        jaw=random.uniform(0, 1),
        eye_distance=random.uniform(0.32, 0.38),
        eye_size=random.uniform(0.12, 0.15),
        brow_thickness=random.uniform(0.045, 0.07),
        nose=random.uniform(0.07, 0.11),
        mouth_width=random.uniform(0.3, 0.38),
        mouth_height=random.uniform(0.5, 0.55),
        lip_thickness=random.uniform(0.045, 0.065),
        x=random.uniform(-0.12, 0.12),
        y=random.uniform(-0.06, 0.06),
        size=random.uniform(0.93, 1.07),
    )


def random_background(random: np.random.Generator) -> Color:
    """Random colour of a plain wall."""
    lighter = random.integers(-12, 13)
    return tuple(int(c + lighter) for c in BACKGROUNDS[random.integers(len(BACKGROUNDS))])


def random_motion(
    random: np.random.Generator, opening: np.ndarray, width: np.ndarray, smile: float, brows: float
) -> Motion:
    """Motion of a face: blinks, a slow sway, and the way from the portrait's neutral face to the prompted one.

    It arrives after 10 frames.

    Args:
        opening, width: the mouth's track, one value a video frame; the portrait (frame 0) is shut.
        smile, brows: -1 or 1 as in the prompt; 0 keeps those of the portrait.
    """
    count = len(opening)
    frames = np.arange(count)
    arrival = 0.5 - 0.5 * np.cos(np.pi * np.clip(frames / 10, 0, 1))
    blink = np.zeros(count)
    middle = random.uniform(15, 70)
    while middle < count:
        blink = np.maximum(blink, np.clip(1.6 - np.abs(frames - middle) / 2.2, 0, 1))
        middle += random.uniform(45, 110)
    sway = [
        random.uniform(0.006, 0.014) * np.sin(2 * np.pi * (frames / random.uniform(60, 110)) * direction)
        for direction in random.choice([-1, 1], 2)
    ]
    onset = np.clip(frames / 2, 0, 1)  # the portrait's mouth is shut, and follows the sound from the second frame on
    return Motion(opening * onset, width * onset, smile * arrival, brows * arrival, blink, *sway)


def draw(people: list[tuple[Appearance, Motion]], background: Color, height: int = 128, width: int = 128) -> np.ndarray:
    """Frames `f h w 3` uint8 of the people side by side, as many as their motions have values."""
    return np.stack([draw_frame(people, background, frame, height, width) for frame in range(len(people[0][1]))])


def draw_frame(
    people: list[tuple[Appearance, Motion]], background: Color, frame: int, height: int, width: int
) -> np.ndarray:
    """Frame `h w 3` uint8 at one moment of the motions."""
    canvas = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), background)
    for index, (appearance, motion) in enumerate(people):
        middle = (index + 0.5) / len(people) * width
        scale = min(height, 1.2 * width / len(people)) * HEAD_SHARE * appearance.size
        _Pen(canvas, scale, middle, 0.47 * height).person(appearance, motion, frame)
    return np.asarray(canvas.reduce(SUPERSAMPLING))


def head_position(
    appearance: Appearance, index: int, num_people: int, height: int, width: int
) -> tuple[float, float, float]:
    """Position of a head at rest, in pixels: x and y of its middle, and the length of a head unit."""
    scale = min(height, 1.2 * width / num_people) * HEAD_SHARE * appearance.size
    return (index + 0.5) / num_people * width + appearance.x * scale, 0.47 * height + appearance.y * scale, scale


def mouth_box(appearance: Appearance, index: int, num_people: int, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the pixels where a mouth may be."""
    x, y, unit = head_position(appearance, index, num_people, height, width)
    return _box(x, y + appearance.mouth_height * unit, 0.55 * unit, 0.4 * unit)


def eye_box(appearance: Appearance, index: int, num_people: int, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the pixels where eyes and brows may be."""
    x, y, unit = head_position(appearance, index, num_people, height, width)
    return _box(x, y - 0.26 * unit, 0.65 * unit, 0.32 * unit)


def _box(x: float, y: float, half_width: float, half_height: float) -> tuple[slice, slice]:
    rows = slice(max(int(y - half_height), 0), int(y + half_height))
    return rows, slice(max(int(x - half_width), 0), int(x + half_width))


class _Pen:
    """Polygons in head units around the middle of one head."""

    def __init__(self, canvas: Image.Image, scale: float, x: float, y: float) -> None:
        self.draw = ImageDraw.Draw(canvas)
        self.unit = scale * SUPERSAMPLING
        self.x, self.y = x * SUPERSAMPLING, y * SUPERSAMPLING

    def shape(self, xs: np.ndarray, ys: np.ndarray, color: Color) -> None:
        """A filled polygon."""
        points = np.stack([self.x + self.unit * xs, self.y + self.unit * ys], axis=1)
        self.draw.polygon(points.ravel().tolist(), fill=color)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """A filled ellipse."""
        self.shape(x + rx * COS, y + ry * SIN, color)

    def person(self, face: Appearance, motion: Motion, frame: int) -> None:
        """Whole person, from back to front."""
        values = {name: float(track[frame]) for name, track in vars(motion).items()}
        self.x += self.unit * face.x
        self.y += self.unit * face.y
        self.body(face)
        self.x += self.unit * values["sway_x"]
        self.y += self.unit * values["sway_y"]
        self.head(face)
        self.eyes(face, values["blink"], values["brows"])
        self.mouth(face, values["opening"], values["width"], values["smile"])

    def body(self, face: Appearance) -> None:
        """Shoulders, neck and long hair, which do not sway."""
        if face.hair_style == 1:
            self.ellipse(0, 0.15, face.head_width + 0.2, 1.2, face.hair)
        self.ellipse(0, 1.95, 1.25, 0.85, face.clothes)
        shade = tuple(int(c * 0.88) for c in face.skin)
        self.shape(np.array([-0.3, 0.3, 0.34, -0.34]), np.array([0.6, 0.6, 1.25, 1.25]), shade)

    def head(self, face: Appearance) -> None:
        """Hair, ears, face and nose."""
        if face.hair_style != 2:
            self.ellipse(0, -0.18, face.head_width + 0.08, 0.92, face.hair)
        for side in (-1, 1):
            self.ellipse(side * face.head_width, 0.05, 0.1, 0.17, face.skin)
        narrowing = 1 - 0.22 * face.jaw * np.clip(SIN, 0, 1) ** 2
        self.shape(face.head_width * COS * narrowing, np.where(SIN > 0, SIN, 0.85 * SIN), face.skin)
        if face.hair_style == 3:
            top = np.abs(COS) < 0.93
            self.shape(face.head_width * COS[top], np.where(SIN[top] > 0, -0.48, 0.88 * SIN[top]), face.hair)
        shade = tuple(int(c * 0.84) for c in face.skin)
        self.shape(np.array([0, face.nose, -face.nose]), np.array([-0.05, 0.24, 0.24]), shade)

    def eyes(self, face: Appearance, blink: float, brows: float) -> None:
        """Two eyes under their brows."""
        openness = max(1 - blink, 0.12)
        for side in (-1, 1):
            x = side * face.eye_distance
            white = (244, 244, 244) if blink < 0.85 else tuple(int(c * 0.7) for c in face.skin)
            self.ellipse(x, -0.14, face.eye_size * 1.15, face.eye_size * openness, white)
            if openness > 0.3:
                self.ellipse(x, -0.14, face.eye_size * 0.55, face.eye_size * min(openness, 0.62), face.iris)
            inner, outer = x - side * 0.17, x + side * 0.18
            low, high = -0.37 - 0.1 * brows + 0.05 * min(brows, 0) * -1, -0.39 - 0.1 * brows
            thick = face.brow_thickness
            dark = tuple(int(c * 0.75) for c in face.hair)
            self.shape(np.array([inner, outer, outer, inner]), np.array([low, high, high + thick, low + thick]), dark)

    def mouth(self, face: Appearance, opening: float, width: float, smile: float) -> None:
        """Lips around a dark opening; the corners rise with a smile."""
        half = face.mouth_width * (1 + 0.22 * width + 0.08 * smile)
        gap, lip = MOUTH_OPENING * opening, face.lip_thickness
        bend = face.mouth_height - 0.11 * smile * (COS**2 - 0.5)
        self.shape(half * COS, bend + (gap + lip * np.sqrt(np.abs(SIN))) * SIN, face.lips)
        if gap > 0.004:
            inside = half * 0.88
            self.shape(inside * COS, bend + gap * SIN, (58, 20, 26))


_ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
COS, SIN = np.cos(_ANGLES), np.sin(_ANGLES)
