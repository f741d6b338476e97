"""Decoding: the same pixels whichever decoder is installed, the fastest one first, and damage is told."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import simplejpeg

from genre_dist.stream import decode
from genre_dist.stream.decode import DECODERS, check_jpeg, decode_jpeg, decoder

ORDER = list(DECODERS)


@pytest.fixture(autouse=True)
def chosen_anew() -> Iterator[None]:
    decoder.cache_clear()
    yield
    decoder.cache_clear()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth picture, uint8 [40, 56, 3], which JPEG changes little."""
    y, x = np.mgrid[0:40, 0:56]
    return np.stack([4 * x, 6 * y, 2 * x + 3 * y], axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def jpeg(picture: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(picture, quality=95)


def block(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """As if these were not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_any_decoder_can_be_missing_and_the_next_one_gives_the_same_pixels(
    number: int, picture: np.ndarray, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(ORDER[number]) is None:
        pytest.skip(f"{ORDER[number]} is not installed")
    block(monkeypatch, ORDER[:number])
    out = np.empty_like(picture)
    decode_jpeg(memoryview(jpeg), out)
    assert np.abs(out.astype(int) - simplejpeg.decode_jpeg(jpeg).astype(int)).max() <= 4
    assert np.abs(out.astype(int) - picture.astype(int)).mean() < 3
    for damaged in (jpeg[:-30], b"", b"no picture at all", jpeg[:100] + bytes(20)):
        with pytest.raises(ValueError, match=r"."):
            decode_jpeg(damaged, out)
    with pytest.raises(ValueError, match=r"an image of 56 x 40 where the shards hold 64 x 64 pixels"):
        decode_jpeg(jpeg, np.empty((64, 64, 3), np.uint8))


def test_the_fastest_one_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(decode, "_module", asked.append)
    with pytest.raises(ValueError, match="no JPEG decoder is installed"):
        decoder()
    assert asked == ["simplejpeg", "cv2"]


def warned(jpeg: bytes) -> dict[str, bytes]:
    """A JPEG with all its pixels of which libjpeg warns, in several ways."""
    unknown_adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x07"
    return {
        "zeros before the end": jpeg[:-2] + bytes(40) + jpeg[-2:],
        "an unknown JFIF": jpeg.replace(b"JFIF\0\1", b"JFIF\0\x09"),
        "an unknown Adobe": jpeg[:2] + unknown_adobe + jpeg[20:],
    }


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("kind", ["zeros before the end", "an unknown JFIF", "an unknown Adobe"])
def test_a_jpeg_with_all_its_pixels_is_decoded_though_libjpeg_warns(
    name: str, kind: str, picture: np.ndarray, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    block(monkeypatch, ORDER[: ORDER.index(name)])
    out = np.zeros_like(picture)
    decode_jpeg(memoryview(warned(jpeg)[kind]), out)
    assert np.abs(out.astype(int) - simplejpeg.decode_jpeg(jpeg).astype(int)).max() <= 4
    with pytest.raises(ValueError, match=r"an image of 56 x 40 where the shards hold 64 x 64 pixels"):
        decode_jpeg(warned(jpeg)[kind], np.empty((64, 64, 3), np.uint8))


def test_zeros_over_a_part_of_the_picture_are_damage(picture: np.ndarray) -> None:
    """Here too libjpeg may tell of bytes left over before the end mark, but they are those of the picture."""
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
    jpeg, told = simplejpeg.encode_jpeg(noise, quality=95), []
    for start in range(1000, len(jpeg) - 500, 100):
        with pytest.raises(ValueError, match=r".") as error:
            decode_jpeg(jpeg[:start] + bytes(100) + jpeg[start + 100 :], np.empty_like(picture))
        told.append(str(error.value))
    assert any("extraneous bytes before marker 0xd9" in line for line in told)


def test_a_jpeg_with_a_warning_that_is_cut_as_well_is_refused(picture: np.ndarray, jpeg: bytes) -> None:
    cut = jpeg.replace(b"JFIF\0\1", b"JFIF\0\x09")[:-200]
    with pytest.raises(ValueError, match="not a whole JPEG"):
        decode_jpeg(cut, np.empty_like(picture))


def test_a_look_at_both_ends_finds_what_is_cut_or_of_another_size(jpeg: bytes) -> None:
    check_jpeg(jpeg, (40, 56, 3))
    check_jpeg(jpeg + bytes(10), (40, 56, 3))
    check_jpeg(jpeg + b"anything that a camera adds" * 10, (40, 56, 3))
    for data in warned(jpeg).values():
        check_jpeg(data, (40, 56, 3))
    for damaged, shape in ((jpeg[:-30], (40, 56, 3)), (jpeg[200:], (40, 56, 3)), (jpeg, (40, 40, 3))):
        with pytest.raises(ValueError, match=r"."):
            check_jpeg(damaged, shape)
