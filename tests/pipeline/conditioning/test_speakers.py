import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multitalk_pack.pipeline.conditioning.reference_image import BUCKETS, bucket, check_size, fit_mask
from multitalk_pack.pipeline.conditioning.speakers import (
    Place,
    draw_places,
    speaker_masks,
    to_latent_masks,
    to_token_masks,
)
from multitalk_pack.pipeline.config import Resolution
from multitalk_pack.pipeline.errors import ImageError
from multitalk_pack.pipeline.shapes import TOKEN_PIXELS, LatentSize
from support.golden import Golden
from support.speakers import published_masks

GOLDEN = Golden("ref_masks")
SIZES = [(1080, 1920), (1920, 1080), (1000, 1000), (768, 1024), (1024, 768), (600, 900), (900, 600), (400, 1000),
         (1000, 420), (500, 1175), (333, 517), (1357, 611)]  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN.cases)
def test_published_masks(case):
    facts = GOLDEN.cases[case]
    resolution = Resolution(facts["size"].removeprefix("multitalk-") + "p")
    target = bucket(*facts["image_hw"], BUCKETS[resolution])
    assert list(target) == facts["target_hw"]
    boxes = facts["bbox"] and [facts["bbox"][f"person{n + 1}"] for n in range(facts["people"])]
    masks = published_masks(tuple(facts["image_hw"]), target, facts["people"], boxes, facts["face_scale"])
    GOLDEN.assert_close(masks, f"out.{case}.masks")


def test_without_places_two_speakers_stand_where_the_published_program_puts_them():
    size = (90, 120), (576, 704)
    masks = speaker_masks([Place(), Place()], *size)
    assert torch.equal(to_latent_masks(masks, LatentSize.of_video(1, *size[1])), published_masks(*size, 2))


def iou(a, b):
    return ((a * b).sum() / torch.maximum(a, b).sum()).item()


def fitted_box(box, image_hw, target_hw):
    """The box after scale and crop, on the exact coordinates of the target's pixels."""
    scale = max(target_hw[0] / image_hw[0], target_hw[1] / image_hw[1])
    rows, columns = (
        (torch.arange(target) + 0.5 + (scale * source - target) / 2) / scale
        for target, source in zip(target_hw, image_hw, strict=True)
    )
    left, top, right, bottom = box
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return inside.float()


@pytest.mark.parametrize("resolution", Resolution)
@pytest.mark.parametrize("image_hw", SIZES)
def test_a_box_stays_where_it_was_drawn(image_hw, resolution):
    height, width = image_hw
    target = bucket(height, width, BUCKETS[resolution])
    boxes = [(0.15 * width, 0.2 * height, 0.48 * width, 0.9 * height),
             (0.52 * width, 0.25 * height, 0.85 * width, 0.8 * height)]  # fmt: skip
    boxes = [tuple(map(round, box)) for box in boxes]
    masks = speaker_masks([Place(box=box) for box in boxes], image_hw, target)
    size = LatentSize.of_video(1, *target)
    in_tokens = to_token_masks(to_latent_masks(masks, size), size)
    assert masks.shape == (3, *target) and in_tokens.sum() == size.tokens_per_frame
    for box, mask, tokens in zip(boxes, masks, in_tokens, strict=False):
        want = fitted_box(box, image_hw, target)
        assert iou(mask, want) >= 0.95
        back = tokens.repeat_interleave(TOKEN_PIXELS, 0).repeat_interleave(TOKEN_PIXELS, 1)
        assert iou(back, mask) >= grid_limit(mask)


def grid_limit(mask):
    """The limit of a grid of tokens: nearest asks each token's first pixel, so a box moves by less than one token."""
    rows, columns = mask.any(1).sum().item(), mask.any(0).sum().item()
    shared = (rows - TOKEN_PIXELS) * (columns - TOKEN_PIXELS)
    return shared / (2 * rows * columns - shared)


def tokens_of(box, image_hw, target_hw):
    """By formula, `rows columns`: the tokens whose first corner lies in the box, and the share of each that it covers.

    Scale and crop take a source's `x` to `scale x - offset`, both in whole pixels of the target.
    """
    scale = max(target / source for target, source in zip(target_hw, image_hw, strict=True))
    begins, shares = [], []
    for axis, (start, end) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scaled = math.ceil(scale * image_hw[axis])
        offset = round((scaled - target_hw[axis]) / 2)
        low, high = (scaled / image_hw[axis] * edge - offset for edge in (start, end))
        corners = torch.arange(0, target_hw[axis], TOKEN_PIXELS)
        begins.append((corners >= low) & (corners < high))
        shares.append(((corners + TOKEN_PIXELS).clamp(max=high) - corners.clamp(min=low)).clamp(min=0) / TOKEN_PIXELS)
    return (begins[0][:, None] & begins[1]).float(), shares[0][:, None] * shares[1]


@pytest.mark.parametrize("resolution", Resolution)
@pytest.mark.parametrize("image_hw", SIZES)
@pytest.mark.parametrize("share", [(0.1, 0.12, 0.52, 0.93), (0.56, 0.31, 0.91, 0.74), (0.27, 0.05, 0.77, 0.55)])
def test_the_tokens_of_a_box_are_those_that_begin_in_it(image_hw, resolution, share):
    target = bucket(*image_hw, BUCKETS[resolution])
    box = tuple(round(part * side) for part, side in zip(share, image_hw[::-1] * 2, strict=True))
    size = LatentSize.of_video(1, *target)
    fitted = speaker_masks([Place(box=box), Place()], image_hw, target)
    tokens = to_token_masks(to_latent_masks(fitted, size), size)[0]
    expected, shares = tokens_of(box, image_hw, target)
    assert iou(tokens, expected) >= 0.95
    assert tokens[shares == 1].all(), "a token that the box covers is the speaker's"
    assert not tokens[shares == 0].any(), "a token that it does not touch is not"


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.integers(300, 500), st.integers(300, 700))
def test_any_number_of_speakers_shares_the_picture(num_speakers, height, width):
    target = check_size(height // 32 * 16, width // 32 * 16)
    masks = speaker_masks([Place()] * num_speakers, (height, width), target)
    assert masks.shape == (num_speakers + 1, *target)
    assert (masks.sum(0) == 1).all() and set(masks.unique().tolist()) <= {0.0, 1.0}
    centres = [mask.nonzero().float().mean(0)[1].item() for mask in masks[:-1]]
    assert centres == sorted(centres)


def test_percent_pixels_and_masks_say_the_same():
    mask = torch.zeros(100, 200)
    mask[10:90, 20:120] = 0.9
    places = [Place(mask=mask), Place(box=(20, 10, 120, 90)), Place(box=(10, 10, 60, 90), percent=True)]
    first, *others = (speaker_masks([place], (100, 200), (448, 896)) for place in places)
    assert all(torch.equal(first, other) for other in others)


def test_a_mask_of_another_size_is_scaled_and_one_of_another_shape_is_refused():
    half = torch.zeros(50, 100)
    half[:, :50] = 1
    places = Place(mask=half[None]), Place(box=(0, 0, 50, 100), percent=True)
    scaled, painted = (speaker_masks([place], (100, 200), (448, 896)) for place in places)
    assert torch.equal(scaled, painted)
    with pytest.raises(ImageError, match="speaker 1 is 100x50, the image 200x200"):
        speaker_masks([Place(mask=half)], (200, 200), (640, 640))


def test_a_speaker_without_a_place_is_told_by_name():
    empty, places = Place(mask=torch.zeros(64, 64)), ((100, 200), (448, 896))
    with pytest.raises(ImageError, match="mask of speaker 2 is empty"):
        speaker_masks([Place(), empty], *places)
    with pytest.raises(ImageError, match=r"box of speaker 1.*holds no pixel"):
        speaker_masks([Place(box=(300, 0, 400, 50)), Place()], *places)
    with pytest.raises(ImageError, match="mask of speaker 1 must be h w"):
        speaker_masks([Place(mask=torch.zeros(2, 3, 4, 4))], *places)


def test_a_speaker_that_the_crop_takes_away_is_told_by_name():
    box = Place(box=(0, 0, 40, 400))  # at the left edge of a wide picture
    with pytest.raises(ImageError, match=r"Speaker 2 is cut off: the place at 1% from the left and 50% from the top"):
        speaker_masks([Place(box=(900, 0, 1100, 400)), box], (400, 2000), (320, 640))


def test_a_speaker_smaller_than_a_token_is_told_by_name():
    with pytest.raises(ImageError, match="place of speaker 1 is too small: 36 of 640x640 pixels"):
        speaker_masks([Place(box=(5, 5, 11, 11))], (640, 640), (640, 640))


@pytest.mark.parametrize("box", [(10, 0, 10, 5), (0, 8, 5, 2), (0, 0, float("nan"), 5)])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(ImageError, match="left < right and top < bottom"):
        Place(box=box)


def test_a_speaker_has_one_place():
    with pytest.raises(ImageError, match="a mask and a box"):
        Place(mask=torch.ones(4, 4), box=(0, 0, 1, 1))


def test_overlap_and_missing_background_are_told(caplog):
    with caplog.at_level(logging.INFO):
        boxes = [Place(box=(0, 0, 60, 100), percent=True), Place(box=(50, 0, 100, 100), percent=True)]
        masks = speaker_masks(boxes, (448, 896), (448, 896))
    assert "Speakers 1 and 2 overlap on 20% of the smaller one" in caplog.text
    assert "no background is left" in caplog.text
    assert not masks[-1].any()


def test_places_are_drawn_over_the_picture():
    masks = speaker_masks([Place(), Place()], (240, 320), (240, 320))
    image = torch.full((240, 320, 3), 128, dtype=torch.uint8)
    painted = draw_places(image, masks)
    assert painted.shape == image.shape and painted.dtype == torch.uint8
    assert torch.equal(painted[masks[-1] > 0], image[masks[-1] > 0])
    assert (painted[masks[0] > 0] != 128).any(-1).all() and (painted[masks[1] > 0] != 128).any(-1).all()
    assert (painted == 255).all(-1).any()  # the numbers


def test_masks_go_the_way_of_the_picture():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(64, 96, generator=generator) > 0.3).float()
    target = (160, 160)
    assert torch.equal(speaker_masks([Place(mask=mask)], (64, 96), target)[0], fit_mask(mask, target))
