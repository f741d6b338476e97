"""Posters of every kind become square RGB JPEGs, or a ValueError that says what is wrong with them."""

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from genre_dist.packing import posters
from genre_dist.packing.posters import UNTOUCHED, Fit, load_rgb, square, square_jpeg

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(width: int = 40, height: int = 60) -> NDArray[np.uint8]:
    """Upper half red, lower left green, lower right blue: uint8 [height, width, 3]."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = RED
    pixels[height // 2 :, : width // 2] = GREEN
    pixels[height // 2 :, width // 2 :] = BLUE
    return pixels


def file(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def near(pixels: NDArray[np.uint8], wanted: NDArray[np.uint8], off: float = 6) -> bool:
    return pixels.shape == wanted.shape and float(np.abs(pixels.astype(int) - wanted).mean()) < off


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))


# ---- what a poster may be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_are_told_by_content_and_not_by_name(kind: str) -> None:
    pixels, odd = load_rgb(file(Image.fromarray(picture()), kind))
    assert near(pixels, picture(), 12)
    assert odd.split(", ")[0] == ("" if kind == "JPEG" else kind)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "L"), ("JPEG", "CMYK"), *(("PNG", mode) for mode in ("L", "1", "LA", "P", "RGBA", "I;16"))],
)
def test_every_colour_mode_becomes_rgb(kind: str, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(Image.fromarray(picture()).convert("L")).astype(np.uint16) * 257)
    else:
        image = Image.fromarray(picture()).convert(mode)
    data = file(image, kind)
    pixels, odd = load_rgb(data)
    colourless = Image.fromarray(picture()).convert("1" if mode == "1" else "L").convert("RGB")
    wanted = np.asarray(colourless) if mode in ("L", "1", "LA", "I;16") else picture()
    assert near(pixels, wanted, 10)
    assert {"L": "greyscale", "CMYK": "CMYK", "P": "palette", "RGBA": "transparency"}.get(mode, kind) in odd


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_palette_with_transparency_becomes_rgb() -> None:
    image = Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    pixels, _ = load_rgb(file(image, "PNG", transparency=bytes([0, 128, 255])))
    assert near(pixels, picture())


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (6, lambda p: np.rot90(p, -1)),
        (8, lambda p: np.rot90(p, 1)),
    ],
)
def test_exif_rotation_is_applied(orientation: int, turned: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, odd = load_rgb(file(Image.fromarray(picture()), exif=exif))
    assert near(pixels, turned(picture()))
    assert odd == f"EXIF orientation {orientation}"


def test_exif_is_found_behind_other_segments_and_not_in_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = file(Image.fromarray(picture()), exif=exif)
    comment = b"\xff\xfe" + (2 + 5000).to_bytes(2, "big") + b"\xff\xda" * 2500  # as if the pixels began there
    assert load_rgb(turned[:2] + comment + turned[2:])[1] == "EXIF orientation 3"
    assert load_rgb(file(Image.fromarray(picture())) + b"Exif\0")[1] == ""


def test_one_pixel_is_a_picture() -> None:
    data, odd = square_jpeg(file(Image.fromarray(np.full((1, 1, 3), 200, np.uint8)), "PNG"), 32, "squash", 90)
    assert near(decoded(data), np.full((32, 32, 3), 200, np.uint8), 3)
    assert odd == "PNG, one pixel"


# ---- what libjpeg only warns of --------------------------------------------------------------------------------------


def with_warning(kind: str, mode: str = "RGB") -> bytes:
    """A JPEG whose pixels are all there and right, and of which libjpeg warns."""
    data = file(Image.fromarray(picture()).convert(mode))
    tables = data.find(b"\xff\xdb")
    unknown_adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x07"
    return {
        "zeros before the end": data[:-2] + bytes(16) + data[-2:],
        "anything before the end": data[:-2] + bytes(range(16)) + data[-2:],
        "bytes between segments": data[:tables] + b"\0\1\2" + data[tables:],
        "an unknown JFIF": data.replace(b"JFIF\0\1", b"JFIF\0\x09"),
        "an unknown Adobe": data[:2] + unknown_adobe + data[20:],
    }[kind]


WARNINGS = {
    "zeros before the end": "extraneous bytes before marker 0xd9",
    "anything before the end": "extraneous bytes before marker 0xd9",
    "bytes between segments": "extraneous bytes before marker 0xdb",
    "an unknown JFIF": "unknown JFIF revision number 9",
    "an unknown Adobe": "Unknown Adobe color transform code 7",
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_a_jpeg_that_libjpeg_only_warns_of_is_taken_and_noted_as_odd(kind: str) -> None:
    data = with_warning(kind)
    pixels, odd = load_rgb(data)
    assert near(pixels, picture(), 3)
    assert WARNINGS[kind] in odd
    made, noted = square_jpeg(data, 32, "squash", 90)
    assert noted == odd
    assert load_rgb(made)[1] == ""  # so that nothing is left to warn of in training


@pytest.mark.parametrize(("mode", "name"), [("L", "greyscale"), ("CMYK", "CMYK")])
def test_a_jpeg_of_other_colours_may_have_a_warning_too(mode: str, name: str) -> None:
    pixels, odd = load_rgb(with_warning("zeros before the end", mode))
    assert pixels.shape == (60, 40, 3)
    assert odd.startswith("Corrupt JPEG data")
    assert odd.endswith(name)


def test_a_flipped_bit_in_the_middle_leaves_a_picture_that_is_odd() -> None:
    data = bytearray(noise())
    for at in range(1500, 3000):  # which bit is noticed depends on libjpeg
        changed = bytes(data[:at]) + bytes([data[at] ^ 16]) + bytes(data[at + 1 :])
        with suppress(ValueError):
            pixels, odd = load_rgb(changed)
            if "extraneous" in odd:
                assert pixels.shape == (60, 40, 3)
                return
    raise AssertionError("no bit was noticed")


def test_pictures_of_a_stereo_camera_are_taken() -> None:
    image = Image.fromarray(picture())
    pixels, odd = load_rgb(file(image, "MPO", save_all=True, append_images=[image], quality=95))
    assert near(pixels, picture())
    assert odd == ""


def noise() -> bytes:
    return file(Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_that_ends_too_early_is_refused_even_with_an_end_mark(mode: str, end: bytes) -> None:
    data = file(Image.open(io.BytesIO(noise())).convert(mode))
    with pytest.raises(ValueError, match=r"not a whole image: .*remature end"):
        load_rgb(data[: len(data) * 2 // 3] + end)


def test_what_is_no_picture_is_told_in_the_same_words_every_time() -> None:
    with pytest.raises(ValueError, match=r"^not a whole image: none of the kinds JPEG, PNG, WEBP, GIF, BMP, TIFF$"):
        load_rgb(b"<html>404</html>")


# ---- what is refused -------------------------------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header names any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    data = file(Image.fromarray(picture()), kind)
    monkeypatch.setattr(posters, "MAX_PIXELS", 40 * 60 - 1)
    monkeypatch.setattr(Image.Image, "convert", decode)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    with pytest.raises(ValueError, match=r"40 x 60 pixels are more than the limit"):
        load_rgb(data)


def test_a_small_file_that_claims_a_giant_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="100000 x 100000 pixels are more than the limit of 64,000,000"):
        load_rgb(png_claiming(100_000, 100_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    data = file(Image.fromarray(noise), kind)
    with pytest.raises(ValueError, match="not a whole image"):
        square_jpeg(data[: int(len(data) * share)], 32, "squash", 90)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P6 1 1 255\n123",
        b"a text, not a picture",
        bytes(1000),
        b"\xff\xd8\xff",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "format that no poster has", "text", "zeros", "jpeg start", "eps"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole image"):
        square_jpeg(data, 32, "squash", 90)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_anywhere_gives_a_picture_or_a_value_error() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    rng = np.random.default_rng(0)
    data = file(Image.fromarray(picture()), exif=exif)
    for _ in range(600):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(2, 200, 4)] = rng.integers(0, 256, 4)
        with suppress(ValueError):
            assert load_rgb(damaged.tobytes())[0].ndim == 3


# ---- decoding at half the size ---------------------------------------------------------------------------------------


def landscape(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth light with edges of every direction and fine grain, about what photographs are made of."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    light = 120 + 60 * np.sin(x / 37 + y / 53) + 30 * ((x * 2 + y * 3) % 160 < 60) + 25 * ((x - y) % 90 < 9)
    pixels = light[..., None] + rng.normal(0, 6, (height, width, 1)) + np.array([20, 0, -30])
    return np.clip(pixels, 0, 255).astype(np.uint8)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2))))


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("width", "height"), [(480, 720), (484, 732), (1000, 1500)])
def test_a_large_poster_decoded_at_half_its_size_looks_the_same(fit: Fit, width: int, height: int) -> None:
    data = file(Image.fromarray(landscape(width, height)), quality=90)
    full, half = load_rgb(data)[0], load_rgb(data, least=480)[0]
    assert full.shape == (height, width, 3)
    assert half.shape == (-(-height // 2), -(-width // 2), 3)
    assert psnr(square(full, 80, fit), square(half, 80, fit)) > 40
    assert decoded(square_jpeg(data, 80, fit, 95)[0]).shape == (80, 80, 3)


def test_only_posters_far_larger_than_the_shards_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    whole = posters.square
    monkeypatch.setattr(posters, "square", lambda pixels, *rest: shapes.append(pixels.shape) or whole(pixels, *rest))
    for width, height in ((342, 513), (500, 750), (780, 1170), (2000, 3000), (2000, 3001)):
        square_jpeg(file(Image.fromarray(picture(width, height))), 256, "squash", 90)
    assert shapes == [(513, 342, 3), (750, 500, 3), (1170, 780, 3), (1500, 1000, 3), (3001, 2000, 3)]


# ---- the shape -------------------------------------------------------------------------------------------------------


def test_a_jpeg_that_has_the_shape_passes_through_untouched() -> None:
    data = file(Image.fromarray(picture(32, 32)))
    assert square_jpeg(data, 32, "squash", 50) == (data, UNTOUCHED)


@pytest.mark.parametrize("other", ["PNG", "grey", "turned", "larger"])
def test_anything_else_becomes_a_plain_jpeg_of_the_shape(other: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.fromarray(picture(32, 32))
    data = {
        "PNG": file(image, "PNG"),
        "grey": file(image.convert("L")),
        "turned": file(image, exif=exif),
        "larger": file(Image.fromarray(picture(64, 64))),
    }[other]
    made, _ = square_jpeg(data, 32, "squash", 90)
    assert made != data
    height, width, colours, _ = simplejpeg.decode_jpeg_header(made)
    assert (height, width, colours) == (32, 32, "YCbCr")
    assert square_jpeg(made, 32, "squash", 90) == (made, UNTOUCHED)


def test_squash_keeps_the_whole_poster() -> None:
    assert near(square(picture(40, 60), 20, "squash"), picture(20, 20), 1)


def test_crop_keeps_the_middle_square() -> None:
    assert near(square(picture(40, 60), 40, "crop"), picture(40, 60)[10:50], 1)
    assert near(square(picture(60, 40), 40, "crop"), picture(60, 40)[:, 10:50], 1)


def test_pad_keeps_the_shape_and_adds_black() -> None:
    wanted = np.zeros((60, 60, 3), np.uint8)
    wanted[:, 10:50] = picture(40, 60)
    assert near(square(picture(40, 60), 60, "pad"), wanted, 1)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (31, 33), (32, 32), (200, 10)])
def test_every_shape_becomes_the_square(fit: Fit, shape: tuple[int, int]) -> None:
    made = square(picture(*shape), 32, fit)
    assert made.shape == (32, 32, 3)
    assert made.dtype == np.uint8


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    assert near(square(stripes, 32, "squash"), np.full((32, 32, 3), 128, np.uint8), 2)
