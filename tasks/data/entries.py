"""An entry of a user's suite, and the expectation of Great Expectations that it describes: nothing of it is run as code.

Great Expectations evaluates some texts as code: a row_condition goes to pandas' query, and others are SQL or fetch a JSON schema.
Its models take a list of pairs for an object too. So what is taken is a closed list, EXPECTATIONS: types that judge columns of a
table, each with its arguments, each argument with its shape, which no object has. All of them print their arguments escaped.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from igpo_core.errors import DataError
from tasks.data.data_docs import shown

SEVERITIES = ("critical", "warning", "info")
WRITE_ONE = (
    "write it with great_expectations 1.x, as json.dumps(suite.to_json_dict()), which gives {name, expectations: [{type, kwargs, "
    "severity}, ..]}"
)
LONGEST = 2000  # characters of a text, and values of a list, that an argument has
CONDITION = (
    "which Great Expectations may run as code, so that no suite may have one: leave it out, and write a rule for all rows (with "
    "`mostly`, or a regex that the other rows match too), or judge a file of the rows that are meant"
)
CONDITIONS = ("row_condition", "condition_parser")
OF_TYPES = (
    "expect_table_column",
    "expect_column_to_exist",
    "expect_column_type_to_be",
    "expect_column_values_to_be_of_type",
)

_MISSING = {
    "pair": ("both_values_are_missing", "either_value_is_missing", "neither"),
    "columns": ("all_values_are_missing", "any_value_is_missing", "never"),
}


def is_text(value: Any) -> bool:
    """Return whether a value is a text that can be shown and written: without half of a surrogate pair, not too long."""
    return type(value) is str and len(value) <= LONGEST and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return type(value) is list and 0 < len(value) <= LONGEST and all(of(one) for one in value)


_Shape = tuple[str, Callable[[Any], bool]]  # in words; whether a value has it
_TEXT: _Shape = (f"a text of at most {LONGEST} characters", is_text)
_TEXTS: _Shape = (
    f"a list of 1 to {LONGEST} texts of at most {LONGEST} characters",
    lambda value: _is_list(value, is_text),
)
_VALUES: _Shape = (
    f"a list of 1 to {LONGEST} texts and numbers",
    lambda value: _is_list(value, lambda one: is_text(one) or _is_number(one) or type(one) is bool),
)
_NUMBER: _Shape = ("a number", _is_number)
_COUNT: _Shape = ("a whole number", lambda value: type(value) is int and _is_number(value))
_FLAG: _Shape = ("true or false", lambda value: type(value) is bool)
_SHARE: _Shape = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)


def _one_of(*words: str) -> _Shape:
    return f"one of {', '.join(words)}", lambda value: type(value) is str and value in words


# of arguments that name columns, see _require_columns
_COLUMN: _Shape = ("the name of a column", is_text)
_COLUMNS: _Shape = (
    "a list of two or more names of columns",
    lambda value: _is_list(value, is_text) and len(value) > 1,
)
OF_COLUMNS = ("column", "column_A", "column_B", "column_list")

_ROWS = {"column": _COLUMN, "mostly": _SHARE}
_WHOLE = {"column": _COLUMN}
_PAIR = {"column_A": _COLUMN, "column_B": _COLUMN, "mostly": _SHARE, "ignore_row_if": _one_of(*_MISSING["pair"])}
_SEVERAL = {"column_list": _COLUMNS, "mostly": _SHARE, "ignore_row_if": _one_of(*_MISSING["columns"])}
_STRICT = {"strict_min": _FLAG, "strict_max": _FLAG}
_BETWEEN = {"min_value": _NUMBER, "max_value": _NUMBER, **_STRICT}
_COUNTED = {"min_value": _COUNT, "max_value": _COUNT, **_STRICT}
_SET = {"value_set": _VALUES}
_ANY_ALL = {"match_on": _one_of("any", "all")}

EXPECTATIONS: Mapping[str, Mapping[str, _Shape]] = {
    "expect_table_row_count_to_be_between": _COUNTED,
    "expect_table_row_count_to_equal": {"value": _COUNT},
    "expect_column_values_to_be_null": _ROWS,
    "expect_column_values_to_not_be_null": _ROWS,
    "expect_column_values_to_be_unique": _ROWS,
    "expect_column_values_to_be_in_set": _ROWS | _SET,
    "expect_column_values_to_not_be_in_set": _ROWS | _SET,
    "expect_column_values_to_be_between": _ROWS | _BETWEEN,
    "expect_column_values_to_be_increasing": _ROWS | {"strictly": _FLAG},
    "expect_column_values_to_be_decreasing": _ROWS | {"strictly": _FLAG},
    "expect_column_values_to_be_json_parseable": _ROWS,
    "expect_column_values_to_be_dateutil_parseable": _ROWS,
    "expect_column_values_to_match_strftime_format": _ROWS | {"strftime_format": _TEXT},
    "expect_column_values_to_match_regex": _ROWS | {"regex": _TEXT},
    "expect_column_values_to_not_match_regex": _ROWS | {"regex": _TEXT},
    "expect_column_values_to_match_regex_list": _ROWS | {"regex_list": _TEXTS} | _ANY_ALL,
    "expect_column_values_to_not_match_regex_list": _ROWS | {"regex_list": _TEXTS},
    "expect_column_value_lengths_to_be_between": _ROWS | _COUNTED,
    "expect_column_value_lengths_to_equal": _ROWS | {"value": _COUNT},
    "expect_column_distinct_values_to_contain_set": _WHOLE | _SET,
    "expect_column_most_common_value_to_be_in_set": _WHOLE | _SET | {"ties_okay": _FLAG},
    "expect_column_unique_value_count_to_be_between": _WHOLE | _COUNTED,
    "expect_column_proportion_of_unique_values_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_proportion_of_non_null_values_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_min_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_max_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_mean_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_median_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_stdev_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_sum_to_be_between": _WHOLE | _BETWEEN,
    "expect_column_pair_values_to_be_equal": _PAIR,
    "expect_column_pair_values_a_to_be_greater_than_b": _PAIR | {"or_equal": _FLAG},
    "expect_compound_columns_to_be_unique": _SEVERAL,
    "expect_select_column_values_to_be_unique_within_record": _SEVERAL,
}


def build(entry: Any, table: str, known: Mapping[str, Any], where: str) -> Any:
    """Return the expectation that an entry describes. known: the columns of the table.

    Raises DataError, beginning with `where`, for an entry that is not in the closed list, or is not shaped as it says.
    """
    from great_expectations.exceptions.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    if type(entry) is not dict or type(entry.get("type")) is not str:
        raise DataError(f"{where} names no `type` (before 1.0 it was expectation_type): {WRITE_ONE}")
    kind = entry["type"]
    where = f"{where} ({shown(kind)})"
    kwargs = _arguments(kind, entry, known, table, where)
    severity = SEVERITIES[0] if entry.get("severity") is None else entry["severity"]
    if severity not in SEVERITIES:
        raise DataError(f"{where}: severity is '{shown(severity)}'; it is one of {', '.join(SEVERITIES)}")
    description = entry.get("description")
    if description is not None and not is_text(description):
        raise DataError(f"{where}: `description` is not {_TEXT[0]}")
    try:
        built = ExpectationConfiguration(
            type=kind, kwargs=kwargs, severity=FailureSeverity(severity), description=description
        ).to_domain_obj()
    except (GreatExpectationsError, ValueError, TypeError, re.error) as error:
        raise DataError(
            f"{where} is no expectation of Great Expectations: {shown(' '.join(str(error).split()))}"
        ) from error
    _require_harmless(built, known, where)
    return built


def _arguments(kind: str, entry: Mapping[str, Any], known: Mapping[str, Any], table: str, where: str) -> dict[str, Any]:
    """The arguments of an entry, without those that are null."""
    given = entry.get("kwargs", {})
    if type(given) is not dict:
        raise DataError(f"{where}: `kwargs` is no object: {WRITE_ONE}")
    for name in CONDITIONS:
        if entry.get(name) is not None or given.get(name) is not None:
            raise DataError(f"{where} has a {name}, {CONDITION}")
    if kind.startswith(OF_TYPES):
        raise DataError(f"{where}: the columns of {table} are always {', '.join(known)}: leave this entry out")
    if kind not in EXPECTATIONS:
        raise DataError(f"{where} is none of those that are taken, which are {', '.join(EXPECTATIONS)}: leave it out")
    shapes = EXPECTATIONS[kind]
    for name, value in given.items():
        if value is None:
            continue
        if name not in shapes:
            raise DataError(f"{where} has an argument '{shown(name)}'; its arguments are {', '.join(shapes)}")
        if name in OF_COLUMNS:
            _require_columns(name, value, known, table, where)
        told, fits = shapes[name]
        if not fits(value):
            if type(value) is dict and "$PARAMETER" in value:
                raise DataError(
                    f"{where}: `{name}` has a parameter ($PARAMETER), which nobody gives here: write the value"
                )
            raise DataError(f"{where}: `{name}` is '{shown(value)}': it has to be {told}")
    return {name: value for name, value in given.items() if value is not None}


def _require_columns(name: str, value: Any, known: Mapping[str, Any], table: str, where: str) -> None:
    for column in value if type(value) is list else [value]:
        if type(column) is not str or column not in known:
            raise DataError(
                f"{where}: `{name}`: there is no column '{shown(column)}' in {table}, which has {', '.join(known)}"
            )


def _require_harmless(built: Any, known: Mapping[str, Any], where: str) -> None:
    """Raise DataError where what was built has a condition, or names what is no column, whatever the entry looked like."""
    if getattr(built, "row_condition", None) is not None:
        raise DataError(f"{where} has a row_condition, {CONDITION}")
    for name in OF_COLUMNS:
        value = getattr(built, name, None)
        columns = [] if value is None else value if isinstance(value, list | tuple) else [value]
        if not all(type(column) is str and column in known for column in columns):
            raise DataError(f"{where}: `{name}` names what is no column: it has {', '.join(known)}")
