"""From a file to rows: the container (parquet, JSON array, JSON Lines, CSV) is found from the content."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from igpo_core.data.copies import as_official
from igpo_core.data.unpacking import MAX_BYTES, unpacked
from igpo_core.errors import DataError
from igpo_core.text import one_form

ALIAS_SEPARATOR = "|"
SURROGATE = re.compile("[\ud800-\udfff]")

# A field longer than the csv module's 131,072 characters is a long passage, not a fault.
_CSV_FIELD_LIMIT = 2**24

OTHER_MARKS = {"\t": "tabs", ";": "semicolons"}
MAX_CELLS = 100_000_000  # of a parquet file, rows times columns: empty ones take no room in it, but in memory


@dataclass(frozen=True)
class RawTable:
    """rows[i] stood at places[i] ("line 3", "row 3"). A row that is no object is kept as it is.

    columns: the names that occur in any row.
    """

    path: Path
    rows: tuple[Any, ...]
    places: tuple[str, ...]

    @property
    def columns(self) -> set[str]:
        """Return the fields that some row has."""
        return {name for row in self.rows if isinstance(row, dict) for name in row}

    def require(self, names: Iterable[str], what: str) -> None:
        """Raise DataError when a column is in no row at all."""
        missing = sorted(set(names) - self.columns)
        if missing:
            raise DataError(
                f"{self.path}: {what} needs the columns {missing}, which are missing; it has {sorted(self.columns)}"
            )

    def refuse_unknown(self, known: Iterable[str], what: str) -> None:
        """Raise DataError when a column is not among the known ones."""
        unknown = sorted(self.columns - set(known))
        if unknown:
            raise DataError(
                f"{self.path}: unknown columns {unknown}; {what} has {sorted(known)}. Rename or remove them"
            )


def read_table(path: str | Path) -> RawTable:
    """All rows of a file, which may be compressed (gzip, bzip2, xz, zstd, or zip with one file in it).

    Raises DataError: no such file, no rows, none of the containers, malformed (with the line), more than MAX_BYTES or MAX_CELLS.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    content, packing = unpacked(path, content)
    if content[:4] == b"PAR1":
        rows, places = _parquet(path, content)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: neither parquet nor UTF-8 text (byte {error.start}): convert it to UTF-8"
            ) from error
        first = text.lstrip()[:1]
        read = {"[": _json_array, "{": _json_lines}.get(first, _csv)
        rows, places = read(path, text)
    if not rows:
        raise DataError(
            f"{path}: holds no rows{f' (unpacked as {packing})' if packing else ''}: give a table with at least one"
        )
    table = RawTable(path, tuple(map(as_official, rows)), tuple(places))
    if not table.columns:
        raise DataError(f"{path}: none of its {len(rows)} rows is an object with named fields")
    return table


@dataclass(frozen=True)
class Unreadable:
    """A value of a table that Python has no object for: a defect of its row where the column is needed."""

    reason: str


def _parquet(path: Path, content: bytes) -> tuple[list[Any], list[str]]:
    import pyarrow
    import pyarrow.parquet

    rows: list[Any] = []
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        groups = [file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups)]
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{path}: has a column name twice: rename one of {sorted(names)}")
        taken = sum(groups)
        cells = file.metadata.num_rows * len(names)
        if cells > MAX_CELLS or taken > MAX_BYTES:
            raise DataError(
                f"{path}: {cells} values (rows times columns) in {taken} bytes, more than {MAX_CELLS} or {MAX_BYTES}: leave out "
                "columns or split it"
            )
        # A value stored once can stand in every row: so many rows at a time that even then a batch is within the limit.
        size = max(1, min(65_536, MAX_BYTES // max([1, *groups])))
        taken = 0
        for batch in file.iter_batches(batch_size=size):
            taken += batch.nbytes
            if taken > MAX_BYTES:
                raise DataError(f"{path}: unpacks to more than {MAX_BYTES} bytes: split it into several files")
            columns = [_values(column) for column in batch.columns]
            rows += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    except (pyarrow.ArrowException, OSError, *_NO_VALUE) as error:  # _NO_VALUE: names that are no text, too
        raise DataError(f"{path}: damaged parquet ({error}): fetch it again") from error
    return rows, [f"row {number}" for number in range(1, len(rows) + 1)]


def _values(column: Any) -> list[Any]:
    """Python's values of an arrow column, bytes as text, also in lists; Unreadable for each that is neither."""
    import pyarrow

    of_lists = pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)
    read = _texts if of_lists and "binary" in str(column.type.value_type) else _value
    try:
        return [read(value) for value in column.to_pylist()]
    except _NO_VALUE:
        return [_one_value(scalar, read) for scalar in column]


# What pyarrow raises of dates out of range, of text that is no UTF-8 and years that Python has not, of unknown time zones.
_NO_VALUE = (OverflowError, ValueError, KeyError)


def _one_value(scalar: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(scalar.as_py())
    except _NO_VALUE as error:
        return Unreadable(f"{type(error).__name__}: {error}"[:200])


def _value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _texts(values: Any) -> Any:
    return [_value(value) for value in values] if isinstance(values, list) else values


def _json_array(path: Path, text: str) -> tuple[list[Any], list[str]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {error.lineno}: malformed JSON array ({error.msg}): repair the line or fetch the file again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON array ({error})") from error
    return rows, [f"row {number}" for number in range(1, len(rows) + 1)]


def _json_lines(path: Path, text: str) -> tuple[list[Any], list[str]]:
    rows, places = [], []
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} line {number}: malformed JSON ({error}). JSON Lines hold one object a line; a file "
                "with objects over several lines must be one JSON array"
            ) from error
        places.append(f"line {number}")
    return rows, places


def _csv(path: Path, text: str) -> tuple[list[Any], list[str]]:
    """Values are text, untouched: "NA" and "None" are answers. A record of another width than the header is kept as a
    list, which is a bad row; an empty value is a missing one."""
    rows: list[Any] = []
    places = []
    before = csv.field_size_limit(_CSV_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        names = [name.strip() for name in header]
        if len(names) == 1 and (mark := next((mark for mark in OTHER_MARKS if mark in names[0]), "")):
            raise DataError(
                f"{path}: its columns are separated by {OTHER_MARKS[mark]}: {names[0][:200]!a}; write them with commas between, "
                "or as JSON Lines"
            )
        if len(set(names)) < len(names) or not all(names):
            raise DataError(
                f"{path}: not parquet, JSON or JSON Lines, and as CSV its first line has empty or repeated column "
                f"names: {str(header)[:200]}"
            )
        for record in reader:
            if record:
                same = len(record) == len(names)
                rows.append(
                    {name: value or None for name, value in zip(names, record, strict=True)} if same else record
                )
                places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: malformed CSV ({error}): repair the line") from error
    finally:
        csv.field_size_limit(before)
    return rows, places


@dataclass
class Row:
    """Typed access to one row's fields. name: its file and place.

    What is wrong is noted, and reading goes on with an empty value, so that the row can be shown in the quarantine.
    """

    values: dict[str, Any]
    name: str
    defects: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, raw: RawTable, index: int) -> "Row":
        """Return the row of this number; one that is no object has a defect and no values."""
        value, name = raw.rows[index], f"{raw.path.name} {raw.places[index]}"
        if isinstance(value, dict):
            return cls(value, name)
        row = cls({}, name)
        row.bad("row", f"holds {_excerpt(value)}, not an object with named fields")
        return row

    @property
    def readable(self) -> bool:
        """False for a row that is no object: its fields are not missing one by one."""
        return not (self.defects and self.defects[0].startswith("row: "))

    @property
    def defect(self) -> str | None:
        """Every fault of the row with its place, or None."""
        return f"{'; '.join(self.defects)} [{self.name}]" if self.defects else None

    def bad(self, field_name: str, reason: str) -> None:
        """Note a defect of a field."""
        self.defects.append(f"{field_name}: {reason}")

    def get(self, name: str, *, required: bool) -> Any:
        """Return a field's value, None where it is missing; a missing one that is required is a defect."""
        value = present(self.values.get(name))
        if value is None and required and self.readable:
            self.bad(name, "is missing")
        return value

    def text(self, name: str, *, required: bool = True) -> str | None:
        """Stripped text; None when missing. A required one that is missing is a defect, and ""."""
        value = self.get(name, required=required)
        if value is None:
            return "" if required else None
        return self.checked(name, value)

    def checked(self, name: str, value: Any) -> str:
        """The text of a value in one_form, or "" and a defect when it is no text that a file can hold."""
        if not isinstance(value, str):
            self.bad(name, f"is {_excerpt(value)}, not text")
            return ""
        if SURROGATE.search(value):
            self.bad(name, "holds half of a character (an unpaired surrogate)")
            return ""
        return one_form(value)

    def identifier(self, name: str) -> str:
        """Text or a whole number, as text. Missing: a defect, and the row's place stands for it."""
        value = whole(self.get(name, required=True))
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text = "" if value is None else self.checked(name, value)
        if value is not None and not text and not self.defects:
            self.bad(name, "is empty")
        return text or self.name

    def texts(self, name: str, *, required: bool = False) -> list[str]:
        """A list of texts, repeats left out, and empty ones too where it may be missing. Given as a list; or as text, which is a
        JSON list when it begins with "[" and otherwise has its items separated by "|"."""
        value = self.get(name, required=required)
        if value is None:
            return []
        found = self.listed(name, value)
        return found if required else [text for text in found if text]

    def listed(self, name: str, value: Any) -> list[str]:
        """The texts of a value that is there, as in `texts`."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                self.bad(name, f"begins with [ but is no JSON list: {_excerpt(value)}")
                return []
        elif isinstance(value, str):
            value = value.split(ALIAS_SEPARATOR)
        if not isinstance(value, list):
            self.bad(name, f"is {_excerpt(value)}, not a list of texts")
            return []
        before = len(self.defects)
        found = [self.checked(f"{name}[{place}]", item) for place, item in enumerate(value)]
        return list(dict.fromkeys(found)) if len(self.defects) == before else []

    def count(self, name: str, most: int) -> int | None:
        """A whole number from 1 to `most`, given as a number or as text; None when missing."""
        value = whole(stated(self.get(name, required=False)))
        if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}(\.0)?\s*", value):
            value = int(float(value))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(1, most + 1):
            self.bad(name, f"is {_excerpt(value)}, not a whole number from 1 to {most}")
            return None
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value, also one written as true, false, 1, 1.0, 0 or 0.0; anything else is a defect."""
        value = stated(self.get(name, required=False))
        if isinstance(value, str):
            value = TRUTHS.get(value.strip().lower(), value)
        elif isinstance(value, int | float) and value in (0, 1):
            value = bool(value)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.bad(name, f"is {_excerpt(value)}, not true or false")
            return default
        return value


def present(value: Any) -> Any:
    """The value; None for NaN, which pandas and polars write where one is missing."""
    return None if isinstance(value, float) and value != value else value


# How programs write a number that is missing as text: pandas, R, SQL and Python.
MISSING = frozenset(("", "nan", "na", "n/a", "<na>", "none", "null"))
TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def stated(value: Any) -> Any:
    """The value of a number or a truth value; None for text that says that there is none. In other columns it may be a name."""
    return None if isinstance(value, str) and value.strip().lower() in MISSING else value


def whole(value: Any) -> Any:
    """The value; a whole number for what became a float in a column in which one was missing, or a decimal number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return (
        int(value) if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value() else value
    )


def _excerpt(value: Any) -> str:
    """A value's type and beginning, for a message."""
    if isinstance(value, Unreadable):
        return f"unreadable ({value.reason})"
    shown = ascii(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def unique(names: Sequence[str]) -> list[str]:
    """The same names, with #2, #3, ... after repeats."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return made
