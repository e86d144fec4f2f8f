"""A check of DWARF 5's line table headers (section 6.2.4) before pyelftools reads them.

They announce how many names they list, and how each is encoded. An encoding may take no byte at
all: then nothing stops a reader of a damaged header before it has read 2^64 of them.
"""

from __future__ import annotations

__all__ = ["MalformedHeader", "require_names_take_bytes"]

_STRING, _BLOCK, _UDATA, _STRX = 0x08, 0x09, 0x0F, 0x1A
_OFFSETS = (0x0E, 0x1F)  # DW_FORM_strp, DW_FORM_line_strp
_SIZES = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4}
_NAMES_AT = 5  # behind the header's length: five bytes, then the lengths of the opcodes
_TABLES = 2  # directories, files


class MalformedHeader(ValueError):
    """A line table's header makes no sense."""


def require_names_take_bytes(section: bytes) -> None:
    """Check the header of a line table, which ``section`` begins with, if it is of version 5.

    :raises MalformedHeader: it announces more names than it has bytes.
    """
    wide = section[:4] == b"\xff\xff\xff\xff"
    at = 12 if wide else 4
    if int.from_bytes(section[at : at + 2], "little") != 5:
        return
    at += 4
    length = int.from_bytes(section[at : at + (8 if wide else 4)], "little")
    at += 8 if wide else 4
    try:
        _Names(section[at : at + length], 8 if wide else 4).skip()
    except IndexError:
        raise MalformedHeader("a line table's header is cut short") from None


class _Names:
    """Walks over a header's lists of names."""

    def __init__(self, header: bytes, offset_size: int) -> None:
        self._header, self._offset_size = header, offset_size
        self._at = _NAMES_AT + max(header[_NAMES_AT], 1)

    def skip(self) -> None:
        for _ in range(_TABLES):
            forms = [(self._number(), self._number())[1] for _ in range(self._byte())]
            entries = self._number()
            if entries and (not forms or entries > len(self._header)):
                raise MalformedHeader(
                    f"a line table's header of {len(self._header)} bytes lists {entries} names"
                )
            for _ in range(entries):
                for form in forms:
                    self._skip(form)

    def _skip(self, form: int) -> None:
        if form == _STRING:
            end = self._header.find(b"\0", self._at)
            self._at = end + 1 if end >= 0 else len(self._header) + 1
        elif form in (_UDATA, _STRX):
            self._number()
        elif form == _BLOCK:
            self._at += self._number()
        elif form in _OFFSETS:
            self._at += self._offset_size
        elif form in _SIZES:
            self._at += _SIZES[form]
        else:
            raise MalformedHeader(f"a line table's header encodes names as {form:#x}")

    def _byte(self) -> int:
        self._at += 1
        return self._header[self._at - 1]

    def _number(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
