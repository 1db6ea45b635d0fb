"""Reading image files of any colour mode."""

import struct

import numpy as np
from PIL import Image

from dho_plugin.errors import DataError

# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class UnreadableImageError(DataError):
    """An image file cannot be decoded."""

    def __init__(self, message: str):
        # DataLoader rebuilds a worker's exception with the worker's whole traceback as its message.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_image(path: str) -> Image.Image:
    """Decode an image file of any colour mode as RGB, 8 bits a channel.

    Args:
        path: path of the file.

    Returns:
        The image; transparency is dropped, 16-bit gray values are scaled.

    Raises:
        UnreadableImageError: the file is missing, damaged, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(
            f"{path}: cannot be read as an image ({reason}). Replace or remove the file, "
            "or set DATASET.UNREADABLE skip to go on without it."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert("RGB") would clip 16-bit values at 255
        gray = np.asarray(image).clip(0, 65535) // 257
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
