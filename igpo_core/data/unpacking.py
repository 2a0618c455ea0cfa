"""Compressed files: what a file is packed with is found from its first bytes, and it is unpacked up to a limit."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from igpo_core.errors import DataError

# A small file can be made to fill the memory: what it unpacks to has a limit, and one by its own size (text and tables are
# packed to a fifth or a twentieth).
MAX_BYTES = 2**31
MAX_RATIO, FREE_BYTES = 50, 2**24
PIECE = 2**16  # bytes that are read at a time
ENCRYPTED = 0x1  # bit of a zip entry's flags
Stream = IO[bytes] | io.BufferedIOBase


@dataclass(frozen=True)
class Packing:
    """A kind of compressed file."""

    name: str
    start: bytes | tuple[bytes, ...]
    """The bytes that every such file begins with, one of these."""
    open: Callable[[Path, bytes], AbstractContextManager[Stream]]
    damaged: tuple[type[Exception], ...]
    """What its library raises of a file that is damaged, or packed in a way that the library does not know."""


def unpacked(path: Path, content: bytes) -> tuple[bytes, str]:
    """Return the one file in a compressed one and the name of its packing; other content as it is, with an empty name.

    Raises DataError: of a kind that is not read (FOREIGN), damaged, encrypted, several files, packed twice, larger than MAX_BYTES
    or than MAX_RATIO times its size.
    """
    packing = _packing_of(content)
    if packing is None:
        _require_known(path, content)
        return content, ""
    most = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * len(content)))
    try:
        with packing.open(path, content) as stream:
            found = _read(stream, most + 1)
    except packing.damaged as error:
        raise DataError(
            f"{path}: cannot be unpacked as {packing.name} ({error}): fetch it again or unpack it yourself"
        ) from error
    if len(found) > most:
        raise DataError(
            f"{path}: {len(content)} bytes unpack to more than {most}: unpack it yourself, into several files where it is large"
        )
    if _packing_of(found) is not None:
        raise DataError(f"{path}: is compressed twice: unpack it once")
    _require_known(path, found)
    return found, packing.name


def _read(stream: Stream, most: int) -> bytes:
    """Return at most so many bytes. By the piece: pyarrow keeps for ever what it had set aside for a read that fails."""
    found = io.BytesIO()
    while piece := stream.read(min(PIECE, most - found.tell())):
        found.write(piece)
    return found.getvalue()


def _require_known(path: Path, content: bytes) -> None:
    """Raise DataError, with its name, for a file of a kind that no reader is for: as text it would be malformed somewhere."""
    name = next((name for start, name in FOREIGN.items() if content.startswith(start)), "")
    if content[257:262] == b"ustar":
        name = "a tar archive"
    if content[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        name = "a web page (was the download refused?)"
    if name:
        raise DataError(f"{path}: is {name}, and no table: give parquet, JSON, JSON Lines or CSV")


def _packing_of(content: bytes) -> Packing | None:
    return next((packing for packing in PACKINGS if content.startswith(packing.start)), None)


def _open_gzip(path: Path, content: bytes) -> Stream:
    return gzip.GzipFile(fileobj=io.BytesIO(content))


def _open_bzip2(path: Path, content: bytes) -> Stream:
    return bz2.BZ2File(io.BytesIO(content))


def _open_xz(path: Path, content: bytes) -> Stream:
    return lzma.LZMAFile(io.BytesIO(content))


def _open_zstd(path: Path, content: bytes) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd")


def _open_lz4(path: Path, content: bytes) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "lz4")


def _open_zip(path: Path, content: bytes) -> Stream:
    archive = zipfile.ZipFile(io.BytesIO(content))
    # not is_dir, which fails at a damaged entry without a name
    members = [entry for entry in archive.infolist() if not entry.filename.endswith("/")
               and not entry.filename.startswith("__MACOSX/") and not entry.filename.endswith(".DS_Store")]  # fmt: skip
    if any(entry.filename == "xl/workbook.xml" for entry in members):
        raise DataError(f"{path}: is an Excel workbook: save its sheet as CSV in UTF-8")
    if len(members) != 1:
        raise DataError(f"{path}: is a zip of {len(members)} files: unpack it and name the one that is meant")
    if members[0].flag_bits & ENCRYPTED:
        raise DataError(f"{path}: is an encrypted zip: unpack it with its password and name the file in it")
    return archive.open(members[0])


# Of other kinds of files the first bytes, and what they are. None of these bytes begins a table.
FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x1f\x9d": "packed by compress (.Z)",
    b"\x5d\0\0": "packed by LZMA alone",
    b"\xff\x06\0\0sNaPpY": "packed by Snappy",
    b"PK\x05\x06": "an empty zip",
    b"ARROW1": "an Arrow file (Feather)",
    b"\xff\xff\xff\xff": "a stream of Arrow",
    b"SQLite format 3\0": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old kind",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
    b"\x93NUMPY": "an array of NumPy",
    b"\x89HDF": "an HDF5 file",
    b"Obj\x01": "an Avro file",
    b"%PDF-": "a PDF",
}
PACKINGS = (
    Packing("gzip", b"\x1f\x8b", _open_gzip, (OSError, EOFError, zlib.error)),
    Packing("bzip2", b"BZh", _open_bzip2, (OSError, EOFError)),
    Packing("xz", b"\xfd7zXZ\0", _open_xz, (lzma.LZMAError, EOFError)),
    # a file of pzstd or of seekable frames begins with a frame to skip
    Packing(
        "zstd",
        (b"\x28\xb5\x2f\xfd", *(bytes([start]) + b"\x2a\x4d\x18" for start in range(0x50, 0x60))),
        _open_zstd,
        (OSError,),
    ),
    Packing("lz4", b"\x04\x22\x4d\x18", _open_lz4, (OSError,)),
    Packing(
        "zip",
        b"PK\x03\x04",
        _open_zip,
        # What zipfile raises of an archive that is damaged or foreign to it. NotImplementedError is its own word for what it does
        # not read: a compression, a version, patched data, strong encryption. ValueError and OverflowError are for places beyond
        # the file and names that are no text
        (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            OverflowError,
            EOFError,
            OSError,
            zlib.error,
            lzma.LZMAError,
        ),
    ),
)
