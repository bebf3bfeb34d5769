"""Any picture that Pillow decodes -> RGB, with what is transparent laid on a background, as a viewer shows it.

It does not know files.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from adapters.errors import UnsupportedMedia

_ALPHA = frozenset({"LA", "PA", "RGBA"})
_OPAQUE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})


def flattened(picture: Image.Image, background: str) -> Image.Image:
    """Mode RGB; an opaque picture's colours are those of Pillow's ``convert("RGB")``.

    ``background`` is a colour as Pillow names it: ``white``, ``#ffffff``. 16-bit grey keeps its high byte, as Pillow
    reads 16-bit colour. Raises UnsupportedMedia for 32-bit numbers and for modes without a conversion.
    """
    mode = picture.mode
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise UnsupportedMedia(
            f"the pixels are 32-bit numbers (mode {mode}) without a known range; send 8 or 16 bits a channel",
            field="mode", expected="8 or 16 bits a channel", got=mode,
        )  # fmt: skip
    if mode in ("La", "RGBa"):  # colours that are multiplied by alpha
        picture, mode = picture.convert(mode.upper()), mode.upper()
    if mode in _ALPHA or (mode in _OPAQUE and "transparency" in picture.info):
        return _on(background, picture.convert("RGBA"))
    if mode not in _OPAQUE:
        raise UnsupportedMedia(
            f"the pixels are of mode {mode}, which has no conversion to RGB here; send RGB", field="mode", got=mode
        )
    return _plain(picture)


def _on(background: str, picture: Image.Image) -> Image.Image:
    """An RGBA picture, blended in its own colour space with 8 bits, as browsers do."""
    if picture.getchannel("A").getextrema()[0] == 255:
        return _plain(picture)
    canvas = Image.new("RGB", picture.size, background)
    canvas.paste(picture, mask=picture)
    return canvas


def _plain(picture: Image.Image) -> Image.Image:
    rgb = picture.convert("RGB")
    rgb.info.clear()
    return rgb
