"""Reading image files of any colour mode, large JPEGs with the decoder's own downscaling."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dho_plugin.errors import DataError

# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, TypeError, ValueError, EOFError, IndexError, RuntimeError),
    *(struct.error, Image.DecompressionBombError),
)
JPEG_SCALES = (8, 4, 2, 1)
_SCIENTIFIC = ("TIFF", "FITS", "SPIDER")
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]

# Set once for the process: changed for each image, Python would print its once-only warnings over and over.
# Images up to Pillow's error limit are read, and of damaged EXIF data nothing is used, so neither warning helps.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


class UnreadableImageError(DataError):
    """An image file cannot be decoded."""

    def __init__(self, message: str):
        # DataLoader rebuilds a worker's exception with the worker's whole traceback as its message.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class ImageFile:
    """An image file whose size is known before its pixels are decoded, so that they can be decoded smaller.

    Args:
        path: path of the file.
        upright: `INPUT.UPRIGHT`: turn a photo by its EXIF orientation; else that is ignored, as by torchvision's
            ImageFolder.

    Attributes:
        size: width and height in pixels, of the turned image.

    Raises:
        UnreadableImageError: the file is missing, no image, or larger than Pillow's limit.
    """

    def __init__(self, path: str, upright: bool = False):
        self.path = path
        with _explained(path):
            self._file = Image.open(path)
            # Some formats learn their true size as they are decoded, and none of them is decoded smaller.
            if not isinstance(self._file, JpegImageFile):
                self._load()
        self._turn = _TURNS.get(_orientation(self._file)) if upright else None
        width, height = self._file.size
        self.size: tuple[int, int] = (height, width) if self._turn in _ON_ITS_SIDE else (width, height)

    def decode(self, reduction: float = 1.0) -> tuple[Image.Image, int]:
        """Decode the file as RGB, 8 bits a channel; it can be done once.

        Args:
            reduction: how many times smaller a JPEG may come; other formats come as they are.

        Returns:
            The image and the scale 1, 2, 4 or 8 <= reduction: pixel x of the image covers the pixels [x * scale,
            (x + 1) * scale) of the file, so its size is rounded up. Transparency is dropped, 16-bit gray is scaled.

        Raises:
            UnreadableImageError: the file is damaged or truncated.
        """
        scale = 1
        with _explained(self.path):
            if isinstance(self._file, JpegImageFile):
                scale = self._draft(next(scale for scale in JPEG_SCALES if scale <= max(1, reduction)))
                self._load()
            image = _to_rgb(self._file)
        return (image if self._turn is None else image.transpose(self._turn)), scale

    def _draft(self, scale: int) -> int:
        """Tell the decoder to come `scale` times smaller, and return how much smaller it comes."""
        width, height = self._file.size
        if self._turn is not None:  # turned, a rounded-up border could lie in front of pixel 0
            scale = next(s for s in JPEG_SCALES if s <= scale and width % s == height % s == 0)
        if scale == 1:
            return 1
        drafted = self._file.draft(None, (max(1, width // scale), max(1, height // scale)))
        return round(width / drafted[1][2]) if drafted else 1

    def _load(self) -> None:
        with self._file:  # closes the file; the pixels stay
            self._file.load()


def read_image(path: str, upright: bool = False) -> Image.Image:
    """Decode an image file of any colour mode at its full size, as RGB, 8 bits a channel: see `ImageFile`.

    Raises:
        UnreadableImageError: the file is missing, damaged, truncated, no image, or larger than Pillow's limit.
    """
    return ImageFile(path, upright).decode()[0]


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn a decoder's error into one that names the file and what to do."""
    try:
        yield
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        mend = "Replace or remove the file"
        if isinstance(error, Image.DecompressionBombError):
            mend = f"Make it smaller: up to {2 * Image.MAX_IMAGE_PIXELS:,} pixels are read"
        raise UnreadableImageError(
            f"{path}: cannot be read as an image ({reason}). {mend}, "
            "or set DATASET.UNREADABLE skip to go on without it."
        ) from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data fails in many ways, and says nothing
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":  # convert() would copy it
        return image
    if image.mode == "F" or (image.mode == "I" and image.format in _SCIENTIFIC):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {image.mode}) whose black and white nobody knows: save it as 8 bits"
        )
    if image.mode.startswith("I"):  # convert("RGB") would clip 16-bit values at 255
        gray = np.asarray(image).clip(0, 65535) // 257
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
