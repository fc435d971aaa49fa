"""Stored pixels -> upright RGB on white, for pictures that Pillow has opened."""

import numpy as np
from PIL import ExifTags, Image

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadPixels(ValueError):
    """Pixels of a kind that is not read; the message says which and what is allowed."""


def turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, 3) upright."""
    if orientation not in _UPRIGHT:
        return rgb
    return np.array(Image.fromarray(rgb).transpose(_UPRIGHT[orientation]))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, that is still to be applied."""
    if image.format == "TIFF":  # Pillow rotates these itself
        return 1
    try:
        # The PNG reader's own getexif would decode the picture.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block must not cost the picture
        return 1
    return value if value in _UPRIGHT else 1


def on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise UnreadPixels("pixels are 32-bit floats of unknown range; allowed: 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise UnreadPixels(f"pixel values reach from {low} to {high}; allowed: 0 to 65535")
    grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
