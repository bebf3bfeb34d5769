"""Bytes -> pictures -> pixels: sniffing, bounded decoding, and the preprocessing that training and serving share.

It does not know HTTP, adapters' tensors or the device, and imports no torch.
"""

from adapters.limits import Deadline, MediaLimits
from adapters.media.decode import Source, decode, seen_by, take
from adapters.media.images import decode_image
from adapters.media.preprocess import Pixels, Preprocess, geometry, rows
from adapters.media.sniff import sniff
from adapters.media.timeline import Excerpt, Sampling, Span
from adapters.media.video import Frames, decode_clip

__all__ = [
    "Deadline", "Excerpt", "Frames", "MediaLimits", "Pixels", "Preprocess", "Sampling", "Source", "Span", "decode",
    "decode_clip", "decode_image", "geometry", "rows", "seen_by", "sniff", "take",
]  # fmt: skip
