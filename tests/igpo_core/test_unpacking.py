"""Compressed files, whole, cut anywhere, damaged anywhere, encrypted, too large."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import resource
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest

from igpo_core.data import unpacking
from igpo_core.data.unpacking import unpacked
from igpo_core.errors import DataError
from tests.igpo_core.zips import zip_of

TEXT = "".join(f"{number},who is F{number * 7919 % 1000}?,F{number}\n" for number in range(60)).encode()
PLACE = Path("questions.csv")


def by_pyarrow(content: bytes, name: str) -> bytes:
    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, name) as stream:
        stream.write(content)
    return bytes(target.getvalue().to_pybytes())


def zstd(content: bytes) -> bytes:
    return by_pyarrow(content, "zstd")


PACKED = {
    "gzip": gzip.compress(TEXT, mtime=0),
    "bzip2": bz2.compress(TEXT),
    "xz": lzma.compress(TEXT),
    "zstd": by_pyarrow(TEXT, "zstd"),
    "lz4": by_pyarrow(TEXT, "lz4"),
    "zip, stored": zip_of({PLACE.name: TEXT}, zipfile.ZIP_STORED),
    "zip, deflated": zip_of({PLACE.name: TEXT}, zipfile.ZIP_DEFLATED),
    "zip, bzip2": zip_of({PLACE.name: TEXT}, zipfile.ZIP_BZIP2),
    "zip, lzma": zip_of({PLACE.name: TEXT}, zipfile.ZIP_LZMA),
}
NUMBERS = 400  # damaged copies of each


@pytest.fixture(params=PACKED)
def packed(request: pytest.FixtureRequest) -> Iterator[tuple[str, bytes]]:
    yield request.param, PACKED[request.param]


def test_it_is_read_whole(packed: tuple[str, bytes]) -> None:
    name, content = packed
    assert unpacked(PLACE, content) == (TEXT, name.split(",")[0])
    assert unpacked(PLACE, TEXT) == (TEXT, "")


def test_one_that_is_cut_is_refused_wherever_that_was(packed: tuple[str, bytes]) -> None:
    _, content = packed
    for length in range(8, len(content)):
        with pytest.raises(DataError, match=r"questions\.csv: cannot be unpacked as"):
            unpacked(PLACE, content[:length])


def test_a_damaged_file_leaves_no_memory_behind() -> None:
    """Five hundred files that are cut: pyarrow kept 16 MiB of each, of address space, until no process could be forked."""
    cut = PACKED["zstd"][: len(PACKED["zstd"]) // 2]

    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    before = taken()
    for _ in range(500):
        with pytest.raises(DataError):
            unpacked(PLACE, cut)
    assert taken() - before < 2**28


def test_damage_is_no_exception_of_a_library(packed: tuple[str, bytes]) -> None:
    """What the checksum of the kind does not see (zstd's is optional) is read."""
    name, content = packed
    draw, refused = random.Random(name), 0
    for _ in range(NUMBERS):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 2, 5))):
            damaged[draw.randrange(6, len(damaged))] = draw.randrange(256)
        try:
            unpacked(PLACE, bytes(damaged))
        except DataError:
            refused += 1
    assert refused > NUMBERS / 10


def test_a_zip_whose_entry_lost_its_name() -> None:
    """Found by benchmarks/fuzz.py: the directory says that the name has no characters, where the entry itself has one."""
    made = bytearray(zip_of({"q": b"content"}))
    entry = made.index(b"PK\x01\x02")
    made[entry + 28] = 0  # bytes of its name
    end = made.index(b"PK\x05\x06")
    del made[entry + 46 : end]
    made[made.index(b"PK\x05\x06") + 12] -= 1  # bytes of the directory
    with pytest.raises(DataError, match="cannot be unpacked as zip"):
        unpacked(Path("q.zip"), bytes(made))


def test_a_zip_of_a_compression_that_is_not_known() -> None:
    """The method's number stands ten bytes into the central directory's entry, and eight into the file's own header."""
    made = bytearray(zip_of({"q": b"content"}))
    for place in (8, made.index(b"PK\x01\x02") + 10):
        made[place : place + 2] = (97).to_bytes(2, "little")  # WavPack
    with pytest.raises(DataError, match=r"q\.zip: cannot be unpacked as zip .*compression method is not supported"):
        unpacked(Path("q.zip"), bytes(made))


def test_an_encrypted_zip_asks_for_its_password() -> None:
    """The flag stands at byte 6 of the entry and at byte 8 of its line in the directory."""
    content = bytearray(PACKED["zip, deflated"])
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="is an encrypted zip: unpack it with its password"):
        unpacked(PLACE, bytes(content))


def test_more_than_the_limit_is_not_unpacked(packed: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = packed
    monkeypatch.setattr(unpacking, "MAX_BYTES", len(TEXT))
    assert unpacked(PLACE, content)[0] == TEXT
    monkeypatch.setattr(unpacking, "MAX_BYTES", len(TEXT) - 1)
    with pytest.raises(DataError, match=f"{len(content)} bytes unpack to more than {len(TEXT) - 1}:"):
        unpacked(PLACE, content)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd], ids=lambda pack: pack.__name__)
def test_a_small_file_does_not_fill_the_memory(pack: Callable[[bytes], bytes]) -> None:
    """200 MB of zeros in at most 200 kB: beyond 16 MiB a file may unpack to fifty times its size."""
    content = pack(bytes(200_000_000))
    tracemalloc.start()
    with pytest.raises(DataError, match=f"{len(content)} bytes unpack to more than 16777216:"):
        unpacked(PLACE, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) < 200_000 and peak < 100_000_000


def test_a_frame_to_skip_stands_before_the_first_one() -> None:
    """pzstd writes the length of each frame into one: magic number, four bytes of length, as many bytes."""
    assert unpacked(PLACE, b"\x50\x2a\x4d\x18\x04\0\0\0\x1d\0\0\0" + by_pyarrow(TEXT, "zstd")) == (TEXT, "zstd")


def tarred(mode: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("questions.csv")
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT))
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (tarred("w"), "a tar archive"),
        (tarred("w:gz"), "a tar archive"),
        (zip_of({"[Content_Types].xml": TEXT, "xl/workbook.xml": TEXT}), "an Excel workbook"),
        (zip_of({}), "an empty zip"),
        (lzma.compress(TEXT, lzma.FORMAT_ALONE), "packed by LZMA alone"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (pickle.dumps({"id": "a"}, 4), "a Python pickle"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(content: bytes, name: str) -> None:
    with pytest.raises(DataError, match=f"questions.csv: is {name}"):
        unpacked(PLACE, content)


def test_what_a_mac_puts_into_a_zip_is_no_second_file() -> None:
    packed = zip_of(dict.fromkeys(["d/questions.csv", "__MACOSX/d/._questions.csv", "d/.DS_Store"], TEXT))
    assert unpacked(PLACE, packed) == (TEXT, "zip")
