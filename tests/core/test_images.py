"""Decoding what users bring: every mode to RGB, every bad file to one error, and the same bytes each time."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from pydantic import ValidationError

from t2v_core.errors import DataError, ImageError
from t2v_core.images import ImageTransform, decode_image, encode_for_store, encode_png, stored_size

HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, fmt, **options)
    return sink.getvalue()


def noise(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(height: int = 40, width: int = 60) -> Image.Image:
    ramp = np.linspace(0, 255, width)[None, :] * np.ones((height, 1))
    return Image.fromarray(np.stack([ramp, ramp[:, ::-1], ramp], axis=-1).astype(np.uint8))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_exactly(fmt: str) -> None:
    image = noise()
    options = {"lossless": True} if fmt == "WEBP" else {}
    assert decode_image(encoded(image, fmt, **options)).tobytes() == image.tobytes()


def test_lossy_formats_come_back_nearly() -> None:
    image = gradient()
    for data in (encoded(image, "JPEG", quality=95), encoded(image, "WEBP", quality=95), encoded(image, "GIF")):
        assert np.abs(np.asarray(decode_image(data), dtype=int) - np.asarray(image, dtype=int)).mean() < 8


@pytest.mark.parametrize(
    ("mode", "fmt", "value", "wanted"),
    [
        ("1", "PNG", 1, (255, 255, 255)),
        ("1", "TIFF", 0, (0, 0, 0)),
        ("L", "PNG", 77, (77, 77, 77)),
        ("LA", "PNG", (0, 255), (0, 0, 0)),
        ("LA", "PNG", (0, 0), (255, 255, 255)),
        ("RGBA", "PNG", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", "PNG", (255, 0, 0, 51), (255, 204, 204)),
        ("RGBA", "WEBP", (255, 0, 0, 0), (255, 255, 255)),
        ("CMYK", "TIFF", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", "PNG", 65535, (255, 255, 255)),
        ("I;16", "PNG", 257 * 100, (100, 100, 100)),
        ("I;16", "TIFF", 300, (1, 1, 1)),
        ("I", "TIFF", 65535, (255, 255, 255)),
        ("I;16", "PPM", 257 * 9, (9, 9, 9)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, fmt: str, value: object, wanted: tuple[int, int, int]) -> None:
    options = {"lossless": True} if fmt == "WEBP" else {}
    assert pixel(encoded(Image.new(mode, (5, 4), value), fmt, **options)) == wanted  # type: ignore[arg-type]


def test_cmyk_jpeg() -> None:
    red, green, blue = pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert red > 250
    assert green < 5
    assert blue < 5


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None, :].repeat(4, axis=0)
    got = np.asarray(decode_image(encoded(Image.fromarray(ramp), "PNG")))[0, :, 0]
    assert np.array_equal(got, np.rint(ramp[0] / 257))


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert pixel(encoded(image, "PNG")) == (0, 0, 255)
    assert pixel(encoded(image, "PNG", transparency=1)) == (255, 255, 255)
    assert pixel(encoded(image, "PNG", transparency=bytes([255, 51]))) == (204, 204, 255)
    assert pixel(encoded(image, "GIF", transparency=1)) == (255, 255, 255)


def test_a_transparent_colour_of_an_rgb_png() -> None:
    assert pixel(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(fmt: str) -> None:
    red, blue = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    options = {"lossless": True} if fmt == "WEBP" else {}
    assert pixel(encoded(red, fmt, save_all=True, append_images=[blue], **options)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(orientation: int, fmt: str) -> None:
    marked = np.full((16, 32, 3), 255, np.uint8)
    marked[:8, :8] = (200, 0, 0)
    upright = Image.fromarray(marked)
    to_stored = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if to_stored is None else upright.transpose(Image.Transpose(to_stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode_image(encoded(stored, fmt, exif=exif))
    assert got.size == (32, 16)
    assert np.abs(np.asarray(got, dtype=int) - marked)[[2, 2, 13], [2, 29, 2]].max() < 40


def test_broken_exif_does_not_matter() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"nonsense"):
        assert decode_image(encoded(gradient(), "JPEG", exif=exif)).size == (60, 40)


def test_bytes_that_are_no_image() -> None:
    for data in (
        b"<svg/>",
        b"plain text, not an image",
        b"\0" * 100,
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVE",
        b"%!PS-Adobe-3.0",
    ):
        with pytest.raises(ImageError, match=r"not an image.*wanted PNG, JPEG"):
            decode_image(data)
    with pytest.raises(ImageError, match="0 bytes"):
        decode_image(b"")


@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P6", b"RIFF....WEBP"]
)
@pytest.mark.parametrize("tail", [b"", b"\0", b"\xff" * 200, b"abc " * 99])
def test_a_good_head_on_rubbish(head: bytes, tail: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(head + tail)


@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("GIF", {}),
    ],
)
def test_truncated_files_are_errors(fmt: str, options: dict[str, object]) -> None:
    data = encoded(noise(), fmt, **options)
    for length in (1, 20, 60, len(data) // 2, len(data) * 9 // 10, len(data) - 12, len(data) - 9):
        with pytest.raises(ImageError):
            decode_image(data[:length])


def test_size_is_refused_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(), "PNG")

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match=r"60x40, 2400 pixels; the limit is 2399.*`max_pixels`"):
        decode_image(data, max_pixels=2399)
    for width, height in ((60_000, 60_000), (10_000, 9_000), (2**31 - 1, 2**31 - 1)):  # over Pillow's own limits too
        with pytest.raises(ImageError, match=f"{width}x{height}"):
            decode_image(png_claiming(width, height))


def test_huge_claims_in_webp_and_gif_headers() -> None:
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16382).to_bytes(3, "little") * 2
    with pytest.raises(ImageError, match="16383x16383"):
        decode_image(b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas)
    for kind, options in ((b"VP8L", {"lossless": True}), (b"VP8 ", {})):
        data = encoded(noise(), "WEBP", **options)
        assert data[12:16] == kind
        with pytest.raises(ImageError, match="60x40"):
            decode_image(data, max_pixels=2399)
    gif = bytearray(encoded(noise(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    with pytest.raises(ImageError, match=r"too large|65535x65535"):
        decode_image(bytes(gif))


def test_grey_without_a_white_point_is_refused() -> None:
    for image in (Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70_000), Image.new("I", (4, 4), -1)):
        with pytest.raises(ImageError, match="8 or 16 bits"):
            decode_image(encoded(image, "TIFF"))


def test_threads_and_global_state() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    good, bad = encoded(noise(), "TIFF"), encoded(noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with ThreadPoolExecutor(4) as pool:
        sizes = {image.size for image in pool.map(decode_image, (good, bad) * 40)}
    assert sizes == {(60, 40)}
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def store(data: bytes, image_size: int | None) -> bytes:
    return encode_for_store(decode_image(data), data, image_size=image_size)


def test_small_plain_originals_are_kept() -> None:
    for data in (encoded(noise(), "JPEG"), encoded(noise(), "PNG"), encoded(noise().convert("L"), "PNG")):
        assert store(data, 40) is data
        assert store(data, None) is data
    rotated = Image.Exif()
    rotated[0x0112] = 6
    odd = encoded(noise(), "JPEG", exif=rotated)
    assert store(odd, None) is odd
    assert store(odd, 64) != odd
    assert decode_image(store(odd, 64)).size == (40, 60)


@pytest.mark.parametrize(
    ("data", "fmt"),
    [
        (encoded(noise(), "PNG"), "PNG"),
        (encoded(noise(), "GIF"), "PNG"),
        (encoded(noise(), "BMP"), "PNG"),
        (encoded(noise(), "PPM"), "PNG"),
        (encoded(noise(), "TIFF"), "PNG"),
        (encoded(noise(), "WEBP", lossless=True), "PNG"),
        (encoded(noise(), "WEBP"), "JPEG"),
        (encoded(noise(), "JPEG"), "JPEG"),
        (encoded(noise(), "TIFF", compression="jpeg"), "JPEG"),
    ],
)
def test_large_originals_are_resized(data: bytes, fmt: str) -> None:
    first, second = store(data, 20), store(data, 20)
    assert first == second
    kept = Image.open(io.BytesIO(first))
    assert (kept.format, kept.size, kept.mode) == (fmt, (30, 20), "RGB")


def test_odd_originals_are_reencoded_without_change_of_size() -> None:
    for image, fmt in ((Image.new("RGBA", (9, 7), (255, 0, 0, 51)), "PNG"), (noise(7, 9).convert("P"), "GIF")):
        data = encoded(image, fmt)
        kept = store(data, 64)
        assert Image.open(io.BytesIO(kept)).mode == "RGB"
        assert decode_image(kept).tobytes() == decode_image(data).tobytes()


def test_no_metadata_goes_along() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    for fmt in ("PNG", "JPEG"):
        data = encoded(noise(), fmt, exif=exif, icc_profile=b"secret profile")
        assert b"secret" in data
        assert b"secret" not in store(data, 20)


def test_stored_size_keeps_the_aspect_and_never_enlarges() -> None:
    assert stored_size(60, 40, 20) == (30, 20)
    assert stored_size(40, 61, 20) == (20, 30)
    assert stored_size(7, 5, 20) == (7, 5)
    assert stored_size(7, 5, None) == (7, 5)
    for width in range(21, 90):
        assert min(stored_size(width, 1000, 20)) == 20


def test_encode_png_round_trip() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(np.asarray(decode_image(encode_png(grey.T)))[..., 0], grey.T)
    assert encode_png(grey) == encode_png(grey.copy())


def test_squash_matches_torch() -> None:
    image = noise(75, 110)
    got = ImageTransform(size=32, fit="squash", **HALF).to_uint8(image)
    x = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].double()
    want = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert got.shape == (32, 32, 3)
    assert got.dtype == np.uint8
    assert np.abs(got - want.numpy()).max() < 1.5


def test_crop_takes_the_centre() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    transform = ImageTransform(size=10, **HALF)
    for image in (Image.fromarray(wide), Image.fromarray(wide.transpose(1, 0, 2))):
        assert transform.to_uint8(image)[1:-1, 1:-1].min() == 255
    assert transform.to_uint8(Image.new("L", (3, 30_000), 9)).shape == (10, 10, 3)


def test_a_plain_square_is_untouched() -> None:
    image = noise(16, 16)
    for fit in ("crop", "squash"):
        assert np.array_equal(ImageTransform(size=16, fit=fit, **HALF).to_uint8(image), np.asarray(image))


def test_to_tensor_normalises() -> None:
    batch = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    batch.flags.writeable = False
    transform = ImageTransform(size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    got = transform.to_tensor(batch)
    want = (batch / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), want, atol=1e-6)
    assert torch.equal(transform.to_tensor(batch, torch.bfloat16), got.bfloat16())
    np.testing.assert_allclose(transform.to_tensor(batch, torch.float64).permute(0, 2, 3, 1), want, atol=1e-14)
    assert transform.to_tensor(batch[:0]).shape == (0, 3, 8, 8)
    assert torch.equal(transform.to_tensor(batch[::-1]), got.flip(0))


def test_to_tensor_refuses_other_shapes() -> None:
    transform = ImageTransform(size=8, **HALF)
    for batch in (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32)):
        with pytest.raises(DataError, match="wanted uint8"):
            transform.to_tensor(batch)  # type: ignore[arg-type]


def test_transform_is_validated_frozen_and_documented() -> None:
    for wrong in ({"size": 0}, {"std": (0.5, 0.0, 0.5)}, {"fit": "pad"}, {"colour": 1}):
        with pytest.raises(ValidationError):
            ImageTransform(**{"size": 8, **HALF, **wrong})
    transform = ImageTransform(size=8, **HALF)
    with pytest.raises(ValidationError):
        transform.size = 9
    assert all(field.description for field in ImageTransform.model_fields.values())
