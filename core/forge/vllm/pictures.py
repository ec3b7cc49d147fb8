"""Images of a request, as vLLM's models take them: Pillow's, in RGB. Pillow comes with vLLM."""

import base64
import binascii
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, UnidentifiedImageError

PIXELS = 64 * 10**6
"""The most of one image: a small file can unpack to any size."""


def pictures(texts: Sequence[str]) -> list[Image.Image]:
    """An image of each text, which is the base64 of its file; ValueError, with its number from 1, for one that is none."""
    return [_picture(number, text) for number, text in enumerate(texts, 1)]


def _picture(number: int, text: str) -> Image.Image:
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True))) as held:
            width, height = held.size
            if width * height > PIXELS:
                raise ValueError(f"image {number} has {width} x {height} pixels, and {PIXELS:,} are the most")
            return held.convert("RGB")
    except binascii.Error as error:
        raise ValueError(f"image {number} is no base64: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        what = str(error).partition(" <")[0]
        raise ValueError(f"image {number} cannot be read: {what}") from error
