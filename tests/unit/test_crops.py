"""Crops and pixels: a film's crop depends on (seed, epoch, film) only, and pixels are those that models expect."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import normalize

from genre_dist.stream.images import crop_boxes, cropped, normalised, whole

GOLDEN_BOX = [0.971208, 0.0837178, 0.0694963, 0.9734018]  # left, top, right, bottom
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def ids(count: int = 2000) -> NDArray[np.int64]:
    return np.arange(1, count + 1, dtype=np.int64)


def posters(count: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, uint8 [count, size, size, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    return torch.from_numpy(np.stack([cv2.GaussianBlur(picture, (0, 0), 3) for picture in noise]))


# ---- boxes -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=30, unique=True), st.integers(0, 2**31), st.integers(0, 99))
def test_a_films_box_does_not_depend_on_the_films_beside_it(films: list[int], seed: int, epoch: int) -> None:
    together = crop_boxes(np.array(films), seed, epoch, flip=True)
    alone = [crop_boxes(np.array([film]), seed, epoch, flip=True)[0] for film in films]
    assert np.array_equal(together, np.stack(alone))
    assert np.array_equal(together[::-1], crop_boxes(np.array(films[::-1]), seed, epoch, flip=True))


@settings(deadline=None, max_examples=50)
@given(
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    st.integers(0, 2**31),
)
def test_boxes_lie_in_the_picture_and_have_the_wanted_area_unless_a_side_is_cut(
    scale: list[float], ratio: list[float], seed: int
) -> None:
    left, top, right, bottom = crop_boxes(ids(300), seed, 0, (scale[0], scale[1]), (ratio[0], ratio[1])).T
    assert min(left.min(), top.min()) >= 0
    assert max(right.max(), bottom.max()) <= 1
    width, height = right - left, bottom - top
    inside = (width < 0.9999) & (height < 0.9999)
    area = (width * height)[inside]
    assert np.all((area > scale[0] - 1e-4) & (area < scale[1] + 1e-4))
    assert np.all(width * height < scale[1] + 1e-4)
    assert np.all((width / height)[inside] > ratio[0] - 1e-3)
    assert np.all((width / height)[inside] < ratio[1] + 1e-3)


@pytest.mark.parametrize("other", [(8, 0), (7, 1)])
def test_another_seed_or_epoch_gives_other_boxes(other: tuple[int, int]) -> None:
    assert not (crop_boxes(ids(), 7, 0) == crop_boxes(ids(), *other)).all(axis=1).any()


def test_the_boxes_never_change_between_versions() -> None:
    assert crop_boxes(np.array([603]), seed=1, epoch=2, flip=True)[0] == pytest.approx(GOLDEN_BOX, abs=1e-6)


def test_flip_mirrors_about_half_of_the_films_and_keeps_the_boxes() -> None:
    plain, flipped = crop_boxes(ids(), 0, 0), crop_boxes(ids(), 0, 0, flip=True)
    mirrored = flipped[:, 0] > flipped[:, 2]
    assert mirrored.mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(np.sort(flipped[:, [0, 2]]), plain[:, [0, 2]])
    assert np.array_equal(flipped[:, [1, 3]], plain[:, [1, 3]])


def test_no_films_have_no_boxes() -> None:
    assert crop_boxes(ids(0), 0, 0).shape == (0, 4)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_normalisation_is_that_of_torchvision() -> None:
    pictures = posters(2)
    reference = normalize(pictures.permute(0, 3, 1, 2).float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(normalised(pictures), reference, atol=1e-5)


def test_the_full_box_at_the_same_size_is_the_whole_poster() -> None:
    pictures = posters(3)
    assert torch.allclose(cropped(pictures, WHOLE.repeat(3, 1), 64), whole(pictures, 64), atol=1e-4)


def test_a_mirrored_box_gives_the_mirrored_crop() -> None:
    pictures = posters(2)
    box = torch.tensor([[0.1, 0.2, 0.8, 0.9]]).repeat(2, 1)
    plain, mirrored = cropped(pictures, box, 48), cropped(pictures, box[:, [2, 1, 0, 3]], 48)
    assert torch.allclose(mirrored, plain.flip(3), atol=1e-4)


def test_a_box_on_whole_pixels_cuts_them_out() -> None:
    pictures = posters(1)
    found = cropped(pictures, torch.tensor([[0.25, 0.5, 0.75, 1.0]]), 32)
    assert torch.allclose(found, normalised(pictures)[:, :, 32:64, 16:48], atol=1e-4)


@pytest.mark.parametrize("size", [20, 32, 64, 80])
def test_a_films_pixels_do_not_depend_on_the_films_beside_it(size: int) -> None:
    pictures, boxes = posters(4), torch.from_numpy(crop_boxes(ids(4), 0, 0, flip=True))
    together, wholes = cropped(pictures, boxes, size), whole(pictures, size)
    for number in range(4):
        here = slice(number, number + 1)
        assert torch.allclose(together[here], cropped(pictures[here], boxes[here], size), atol=1e-5)
        assert torch.allclose(wholes[here], whole(pictures[here], size), atol=1e-5)


@pytest.mark.parametrize("size", [16, 24, 50])
def test_a_smaller_picture_keeps_the_mean(size: int) -> None:
    pictures = posters(2)
    wanted = normalised(pictures).mean(dim=(2, 3))
    assert torch.allclose(whole(pictures, size).mean(dim=(2, 3)), wanted, atol=0.03)
    assert torch.allclose(cropped(pictures, WHOLE.repeat(2, 1), size).mean(dim=(2, 3)), wanted, atol=0.05)


@pytest.mark.parametrize("size", [16, 32])
def test_fine_detail_is_averaged_and_not_skipped(size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (1, 128, 128, 3), np.uint8) * 255
    pictures = torch.from_numpy(noise)
    deviation = normalised(pictures).std()
    for found in (whole(pictures, size), cropped(pictures, WHOLE, size)):
        assert found.std() < 0.3 * deviation  # skipping pixels leaves 0.5


def test_pictures_come_as_float32_channels_last() -> None:
    pictures = posters(3)
    for found in (whole(pictures, 32), cropped(pictures, WHOLE.repeat(3, 1), 32)):
        assert found.shape == (3, 3, 32, 32)
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
