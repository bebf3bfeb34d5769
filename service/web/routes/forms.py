"""Multipart forms, fed in chunks as they come off the wire: one with one file, and what any form is made of.

It does not know where the bytes go, nor how many may come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadRequest
from service.web.routes.parameters import unknown

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


class MultipartForm:
    """A multipart form, fed in chunks; what its parts are to come to is for who inherits it."""

    def __init__(self, boundary: bytes | None) -> None:
        if not boundary:
            raise BadRequest("the Content-Type is multipart/form-data without a boundary; let your client set it")
        self._ended = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": lambda data, start, end: self.data(data[start:end]),
            "on_part_end": self.end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise BadRequest(f"the multipart boundary cannot be used: {error}") from error

    def begin(self, name: str, filename: str | None) -> None:
        """A part of that name has begun."""
        raise NotImplementedError

    def data(self, piece: bytes) -> None:
        """Bytes of the part that began last."""
        raise NotImplementedError

    def end(self) -> None:
        """It is whole."""

    def feed(self, chunk: bytes) -> None:
        """Raises BadRequest, and what those above raise."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequest(f"the multipart form does not parse: {error}", field="body") from error

    def check_ended(self) -> None:
        """Raise BadRequest unless the form is whole."""
        if not self._ended:
            raise BadRequest("the multipart form ends before its closing boundary; send it again", field="body")

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_end(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self.begin(text_of_header(options.get(b"name")) or "", text_of_header(options.get(b"filename")))

    def _end(self) -> None:
        self._ended = True


class OneFile(MultipartForm):
    """Gives the data of the form's one part, which has one of the names."""

    def __init__(self, boundary: bytes | None, fields: Sequence[str]) -> None:
        super().__init__(boundary)
        self._fields, self._found = fields, False
        self.filename: str | None = None
        self._pieces: list[bytes] = []

    def taken(self, chunk: bytes) -> list[bytes]:
        """The part's bytes in this chunk."""
        self._pieces.clear()
        self.feed(chunk)
        return list(self._pieces)

    def check_complete(self) -> None:
        """Raise BadRequest unless the form ended and held the field."""
        self.check_ended()
        if not self._found:
            names = " or ".join(f"'{name}'" for name in self._fields)
            raise BadRequest(
                f"the multipart form has no field at all; send the file as {names}",
                field="body", expected=list(self._fields),
            )  # fmt: skip

    def begin(self, name: str, filename: str | None) -> None:
        name = name[:64]
        if name not in self._fields:
            sentence = unknown("form field", [name], self._fields)
            raise BadRequest(
                f"{sentence}; parameters go into the address, as ?top_k=3",
                field=name, expected=list(self._fields), got=[name],
            )  # fmt: skip
        if self._found:
            raise BadRequest(f"the multipart form holds more than one file (again: '{name}'); send one", field=name)
        self._found, self.filename = True, filename

    def data(self, piece: bytes) -> None:
        self._pieces.append(piece)


def text_of_header(value: bytes | None) -> str | None:
    """A parameter of a header, as browsers send it."""
    return None if value is None else value.decode("utf-8", "replace")
