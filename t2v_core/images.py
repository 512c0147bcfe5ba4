"""Encoded bytes to 8-bit RGB, to what is stored, and to what a network sees.

Images come from users, so nothing about them is trusted: only a few raster formats are parsed, the size is read from
the header before any pixel is decoded, and every failure is one `ImageError`.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import BaseModel, ConfigDict, Field, field_validator

from t2v_core.errors import DataError, ImageError

__all__ = ["ImageTransform", "decode_image", "encode_for_store", "encode_png", "stored_size"]

# The plugin classes are called directly: `Image.open` tries other formats, follows multi-picture JPEGs and warns
# about sizes by a process-wide limit, which is not ours to set.
_READERS: tuple[tuple[tuple[bytes, ...], type[ImageFile]], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    ((b"\xff\xd8\xff",), JpegImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"BM",), BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
_QUIET = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's remarks on odd metadata quiet; the filters belong to the process, hence the lock."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reader(data: bytes) -> type[ImageFile]:
    if not data:
        raise ImageError("the file is empty (0 bytes); wanted an encoded image")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    for magics, reader in _READERS:
        if data.startswith(magics):
            return reader
    raise ImageError(f"not an image: begins with {data[:8]!r}; wanted PNG, JPEG, WebP, GIF, BMP, TIFF or PPM")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Size of a WebP from its header: Pillow's reader allocates the whole canvas when it opens one."""
    kind, at = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(at[4:7], "little") + 1, int.from_bytes(at[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(at[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(at[6:8], "little") & 0x3FFF, int.from_bytes(at[8:10], "little") & 0x3FFF


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"image is {width}x{height}, {width * height} pixels; the limit is {max_pixels}. "
            "Shrink it, or raise `max_pixels` in the config"
        )


def _open(data: bytes, max_pixels: int) -> ImageFile:
    """Read the header only; the pixels are decoded by ``load``."""
    reader = _reader(data)
    if reader is WebPImageFile:
        _check_size(_webp_size(data), max_pixels)
    with _quiet():
        image = reader(io.BytesIO(data))
    _check_size(image.size, max_pixels)
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; a broken EXIF block says nothing about the pixels and counts as upright."""
    try:
        with _quiet():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a parser fed with foreign bytes may raise anything
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError("32-bit greyscale has no fixed white; convert the image to 8 or 16 bits")
        return Image.fromarray(((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("floating-point greyscale has no fixed white; convert the image to 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def decode_image(data: bytes, *, max_pixels: int = 50_000_000) -> Image.Image:
    """Decode PNG, JPEG, WebP, GIF, BMP, TIFF or PPM to upright 8-bit RGB.

    The first frame of an animation is taken, transparency is composited on white, 16-bit greyscale is scaled.

    Args:
        data: the encoded image.
        max_pixels: the largest width x height; checked before pixels are decoded.

    Raises:
        ImageError: empty, not an image, truncated, too large, or of a kind without an 8-bit meaning.
    """
    try:
        image = _open(data, max_pixels)
        if isinstance(image, PngImageFile) and b"IEND" not in data:  # Pillow forgives a lost end
            raise ImageError("the PNG is truncated: its end chunk is missing")
        if isinstance(image, TiffImageFile):  # reads its metadata again while loading
            with _quiet():
                image.load()
        else:
            image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"image is too large ({error}); shrink it") from error
    except Exception as error:  # a decoder fed with foreign bytes may raise anything
        raise ImageError(
            f"cannot decode the image, it is damaged or truncated: {error or type(error).__name__}"
        ) from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}  # a saved copy must not carry profiles or comments along
    return rgb


def stored_size(width: int, height: int, image_size: int | None) -> tuple[int, int]:
    """Width and height after the shorter side was brought down to ``image_size``; never enlarged."""
    shorter = min(width, height)
    if image_size is None or shorter <= image_size:
        return width, height
    return round(width * image_size / shorter), round(height * image_size / shorter)


def _is_plain(image: ImageFile) -> bool:
    if image.mode not in ("L", "RGB") or image.has_transparency_data or _orientation(image) != 1:
        return False
    with _quiet():
        return not getattr(image, "is_animated", False)


def _is_lossy(image: ImageFile, original: bytes) -> bool:
    if isinstance(image, WebPImageFile):
        return b"VP8L" not in original
    return isinstance(image, JpegImageFile) or image.info.get("compression") in _LOSSY_TIFF


def encode_for_store(img: Image.Image, original: bytes, *, image_size: int | None) -> bytes:
    """The bytes to keep of an image: the original where it is small and plain, else resized.

    Args:
        img: what `decode_image` made of ``original``.
        original: the encoded image as it came.
        image_size: pixels of the shorter side to reduce to; ``None`` keeps every original as it is.

    Returns:
        ``original``, or a PNG if the original was lossless, or a JPEG of quality 95. Same input, same bytes.
    """
    if image_size is None:
        return original
    size = stored_size(*img.size, image_size)
    header = _open(original, img.width * img.height)
    if size == img.size and _is_plain(header):
        return original
    small = img if size == img.size else img.resize(size, Image.Resampling.BILINEAR)
    sink = io.BytesIO()
    if _is_lossy(header, original):
        small.save(sink, "JPEG", quality=95)
    else:
        small.save(sink, "PNG")
    return sink.getvalue()


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of grey ``[H, W]`` or colour ``[H, W, 3]`` pixels."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG")
    return sink.getvalue()


class ImageTransform(BaseModel):
    """From a decoded image to the input of a network."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: int = Field(gt=0)
    """Height and width of the input, pixels."""
    mean: tuple[float, float, float]
    """Subtracted per channel, on a scale of 0 to 1."""
    std: tuple[float, float, float]
    """Divided by per channel, on a scale of 0 to 1."""
    fit: Literal["crop", "squash"] = "crop"
    """``crop``: shorter side to ``size``, then the centre; ``squash``: both sides to ``size``, whatever the aspect."""

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError(f"std must be above 0, got {std}")
        return std

    def to_uint8(self, img: Image.Image) -> NDArray[np.uint8]:
        """Resize with antialiased bilinear interpolation.

        Returns:
            ``[H, W, 3]`` uint8.
        """
        box = None
        if self.fit == "crop":  # cropping by the box gives the same pixels without a huge copy of a thin image
            side = min(img.size)
            left, top = (img.width - side) / 2, (img.height - side) / 2
            box = (left, top, left + side, top + side)
        rgb = img if img.mode == "RGB" else img.convert("RGB")
        return np.array(rgb.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    def to_tensor(self, batch: NDArray[np.uint8], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normalise a batch: (x / 255 - mean) / std.

        Args:
            batch: ``[N, H, W, 3]`` uint8.
            dtype: of the result; half precision is computed in float32 and rounded once.

        Returns:
            ``[N, 3, H, W]`` in channels-last memory format.

        Raises:
            DataError: another shape or type.
        """
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
            raise DataError(f"batch is {batch.dtype} {list(batch.shape)}; wanted uint8 [N, H, W, 3]")
        work = torch.float64 if dtype == torch.float64 else torch.float32
        x = torch.tensor(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).to(work)
        mean, std = (torch.tensor(v, dtype=work).view(1, 3, 1, 1) for v in (self.mean, self.std))
        x = x.div_(255).sub_(mean).div_(std)
        return x.to(dtype).contiguous(memory_format=torch.channels_last)
