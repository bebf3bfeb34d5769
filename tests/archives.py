"""Archives for tests, of any of the forms that a batch may have."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence

import httpx

Files = Sequence[tuple[str, bytes]]
FORMS = ("form", "zip", "stored", "tar", "tar.gz")
CALLED = {
    "zip": "application/zip",
    "stored": "application/zip",
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
}


def archive(files: Files, form: str) -> bytes:
    """A zip or tar of files, in order."""
    out = io.BytesIO()
    if form in ("zip", "stored"):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if form == "zip" else zipfile.ZIP_STORED) as packed:
            for name, content in files:
                packed.writestr(zipfile.ZipInfo(name), content, packed.compression)
    else:
        with tarfile.open(fileobj=out, mode="w:gz" if form == "tar.gz" else "w") as packed_tar:
            for name, content in files:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed_tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def body(files: Files, form: str) -> tuple[bytes, str]:
    """A batch's body, and its Content-Type."""
    if form != "form":
        return archive(files, form), CALLED[form]
    many = [(f"field {place % 3}", (name, content)) for place, (name, content) in enumerate(files)]
    request = httpx.Request("POST", "http://x", files=many or [("none", ("", b""))])
    return request.read(), request.headers["content-type"]
