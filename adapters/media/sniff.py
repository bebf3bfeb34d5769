"""What a body is, from its first bytes: an allow-list of picture formats and clip containers.

It does not decode anything, and trusts neither file names nor content types.
"""

from __future__ import annotations

from typing import Literal

from adapters.errors import BrokenMedia, UnsupportedMedia

Kind = Literal["image", "video"]

READABLE = (
    "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF and HEIC pictures, "
    "and MP4, MOV, 3GP, WebM, MKV, AVI, MPEG-TS and MPEG-PS clips"
)

# Prefix -> Pillow's format name.
_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_QUICKTIME_BOXES = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
# Where the mark of a packet of an MPEG transport stream stands, and its bytes: plain, of cameras, of broadcasters.
_TRANSPORT_PACKETS = ((0, 188), (4, 192), (0, 204))
_TRANSPORT_SYNCS = 8
# Brands of the box `ftyp`. A file of the general brands says among its compatible ones what it is.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_GENERAL_BRANDS = frozenset({b"mif1", b"mif2", b"msf1", b"miaf", b"mif3"})
_STILL_BRANDS = {
    b"crx ": "a camera's raw picture (CR3)",
    b"jp2 ": "a JPEG 2000 picture",
    b"jpx ": "a JPEG 2000 picture",
    b"jxl ": "a JPEG XL picture",
    **dict.fromkeys((b"j2ki", b"j2is", b"jpeg", b"jpgs", b"avci", b"avcs", b"vvic"), "a HEIF picture of a rare codec"),
    **dict.fromkeys(_GENERAL_BRANDS, "a HEIF picture of an unknown codec"),
}
_MAX_BRANDS = 64

# Prefix -> what to call it in the refusal; only for people, never a decision.
_STRANGERS = (
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"PK\x03\x04", "a zip archive (a .pth file, a document, ...)"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x02\x00", "a TGA picture or a cursor"),
    (b"\x00\x00\x0a\x00", "a TGA picture"),
    (b"icns", "an icon of macOS"),
    (b"gimp xcf", "a GIMP document"),
    (b"qoif", "a QOI picture"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"DDS ", "a DirectDraw texture"),
    (b"\xabKTX ", "a KTX texture"),
    (b"\x0a\x05\x01\x08", "a PCX picture"),
    (b"\x59\xa6\x6a\x95", "a Sun raster picture"),
    (b"\x01\xda", "an SGI picture"),
    (b"II\xbc\x01", "a JPEG XR picture"),
    (b"IIU\x00", "a camera's raw picture (RW2)"),
    (b"IIRO", "a camera's raw picture (ORF)"),
    (b"IIRS", "a camera's raw picture (ORF)"),
    (b"MMOR", "a camera's raw picture (ORF)"),
    (b"FUJIFILMCCD-RAW", "a camera's raw picture (RAF)"),
    (b"FOVb", "a camera's raw picture (X3F)"),
    (b"\x00MRM", "a camera's raw picture (MRW)"),
    (b"BPG\xfb", "a BPG picture"),
    (b"FLIF", "a FLIF picture"),
    (b"AT&TFORM", "a DjVu document"),
    (b"%!PS", "a PostScript drawing"),
    (b"\xc5\xd0\xd3\xc6", "an Encapsulated PostScript drawing"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"P1\n", "a PBM picture"),
    (b"P2\n", "a PGM picture"),
    (b"P3\n", "a PPM picture"),
    (b"P4\n", "a PBM picture"),
    (b"P5\n", "a PGM picture"),
    (b"P6\n", "a PPM picture"),
    (b"P7\n", "a PAM picture"),
    (b"PF\n", "a PFM picture"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"RIFX", "a RIFX file"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"ID3", "an MP3 recording"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC recording"),
    (b"FLV", "a Flash video"),
    (b"\x00\x00\x01\xb3", "a bare MPEG video without its container"),
    (b"\x00\x00\x00\x01", "a bare H.264 or H.265 video without its container"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
    (b"#EXTM3U", "a playlist"),
    (b"ffconcat", "a playlist"),
)


def sniff(data: bytes) -> Kind:
    """``image`` or ``video``; raises UnsupportedMedia for anything else, BrokenMedia for an empty body."""
    return media_format(data)[0]


def media_format(data: bytes) -> tuple[Kind, str]:
    """Kind, and Pillow's name of the picture's format or our name of the clip's. Raises as ``sniff`` does."""
    if not data:
        raise BrokenMedia("the body is empty; send the bytes of one picture or clip", field="body", got=0)
    picture = _picture(data)
    if picture:
        return "image", picture
    container = _container(data)
    if container:
        return "video", container
    looks = _describe(data)
    raise UnsupportedMedia(
        f"this looks like {looks}, which is not read here: send {READABLE}"
        if looks
        else f"this is no picture or clip that can be read: send {READABLE}",
        field="body", expected=READABLE, got=looks or data[:8].hex(),
    )  # fmt: skip


def _picture(data: bytes) -> str | None:
    if data.startswith((b"II*\0", b"MM\0*")) and data[8:10] == b"CR":
        return None  # Canon's raw files look like a TIFF
    for prefix, name in _PICTURES:
        if data.startswith(prefix):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    # Two letters are too little to go by: text may start with BM.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    return _box_picture(data)


def _box_picture(data: bytes) -> str | None:
    """By the main brand, or by the compatible ones of a file whose main brand leaves it open."""
    if data[4:8] != b"ftyp":
        return None
    main, end = data[8:12], min(int.from_bytes(data[:4], "big"), 16 + 4 * _MAX_BRANDS, len(data))
    brands = {main} | ({data[at : at + 4] for at in range(16, end, 4)} if main in _GENERAL_BRANDS else set())
    if brands & _HEIC_BRANDS:
        return "HEIC"
    return "AVIF" if brands & _AVIF_BRANDS else None


def _container(data: bytes) -> str | None:
    box, brand = data[4:8], data[8:12]
    if (box == b"ftyp" and brand not in _STILL_BRANDS and _box_picture(data) is None) or box in _QUICKTIME_BOXES:
        return "mp4"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:11] == b"AVI":
        return "avi"
    if data.startswith(b"\x00\x00\x01\xba"):
        return "mpeg"
    if _is_transport_stream(data):
        return "mpegts"
    return None


def _is_transport_stream(data: bytes) -> bool:
    """Whether packets begin where they must, all but two; all of them, where the recording begins within a packet."""
    for lead, step in _TRANSPORT_PACKETS:
        for first in range(step):
            syncs = data[first : first + step * _TRANSPORT_SYNCS : step]
            missing = len(syncs) - syncs.count(0x47)
            if missing == 0 and len(syncs) == _TRANSPORT_SYNCS:
                return True
            if first == lead and data[first : first + 1] == b"G" and len(syncs) >= 3 and missing <= len(syncs) // 4:
                return True
    return False


def _describe(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return _STILL_BRANDS.get(data[8:12])
    for prefix, name in _STRANGERS:
        if data.startswith(prefix):
            return name
    if data.startswith((b"II*\0", b"MM\0*")):
        return "a camera's raw picture (CR2)"
    if data[128:132] == b"DICM":
        return "a DICOM picture"
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return "a WAV recording"
    if data[8:9] == b"{" and data[5:8] == b"\0\0\0":
        return "a safetensors file"
    text = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if text.startswith((b"data:image", b"ivborw0kggo", b"/9j/")):
        return "base64 text"
    if text.startswith((b"{", b"[")):
        return "JSON"
    return None
