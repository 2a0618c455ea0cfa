"""Great Expectations' Data Docs on this machine: an in-memory context that writes them, and pages without markup of others.

Data Docs escape nothing and replace $names: every text of a row, and of a suite that somebody wrote, goes into them escaped.
"""

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas

EXCERPT = 200  # characters of a value in the quarantine, and on pages


def open_context() -> Any:
    """An in-memory context. Analytics off: nothing leaves this machine."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when it is imported
    import great_expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def as_text(column: "pandas.Series[Any]") -> "pandas.Series[Any]":
    """A column whose texts are no markup in Data Docs, which escape nothing and replace $names."""
    if pandas.api.types.is_numeric_dtype(column.dtype):
        return column
    return column.astype("object").map(literal, na_action="ignore")


def literal(text: Any) -> str:
    """Return the beginning of a text as Data Docs show it: no markup, and no name that they would replace."""
    return html.escape(shown(text)).replace("$", "&#36;")


def escaped(value: Any) -> Any:
    """Return a JSON value with the beginning of every text in it as no markup, names of keys left as they are. A text that can
    be printed is shown as it stands, so that a pattern with a backslash is read as it was written."""
    if isinstance(value, Mapping):
        return {name: escaped(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(part) for part in value]
    if not isinstance(value, str):
        return value
    told = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in value[:EXCERPT])
    return html.escape(told).replace("$", "&#36;")


def shown(value: Any) -> str:
    """The beginning of a value without control characters, for a terminal or a page."""
    return ascii(str(value)[:EXCERPT])[1:-1]


_FROM_OTHER_HOSTS = re.compile(
    r"""<script\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>\s*</script>|<(?:link|img)\b[^>]*\b(?:href|src)=["']?(?:https?:)?//[^>]*>""",
    re.IGNORECASE,
)
_POLICY = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'self' 'unsafe-inline'; """
    """img-src 'self' data:">"""
)


def _without_scripts(data_docs: Path) -> None:
    """Take out what Data Docs would load from other hosts, and forbid every script in them."""
    for path in data_docs.rglob("*.html"):
        page = _FROM_OTHER_HOSTS.sub("", path.read_text(encoding="utf-8"))
        path.write_text(re.sub(r"<head>", lambda head: head[0] + _POLICY, page, count=1), encoding="utf-8")


def write_pages(context: Any, data_docs: Path) -> None:
    """Write the Data Docs of what the context holds now into a folder, without scripts."""
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(data_docs)}
    context.add_data_docs_site(
        data_docs.name,
        {
            "class_name": "SiteBuilder",
            "store_backend": store,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    context.build_data_docs(site_names=[data_docs.name])
    _without_scripts(data_docs)
    _write_index(data_docs)


def _write_index(data_docs: Path) -> None:
    """Replace the index, whose table a script draws, by links to the same pages."""
    parts = []
    for title, place in (("What was checked", "validations"), ("What is expected", "expectations")):
        pages = sorted(path.relative_to(data_docs) for path in (data_docs / place).rglob("*.html"))
        links = "".join(
            f'<li><a href="{html.escape(quote(page.as_posix()))}">{html.escape(_title(page))}</a></li>'
            for page in pages
        )
        parts.append(f"<h2>{title}</h2><ul>{links}</ul>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_POLICY}<title>Data Docs</title></head>'
        f"<body><h1>Data Docs</h1>{''.join(parts)}</body></html>\n"
    )
    (data_docs / "index.html").write_text(page, encoding="utf-8")


def _title(page: Path) -> str:
    """validations/<suite>/<run>/<time>/<batch>.html: suite and time; expectations/<suite>.html: the suite."""
    return f"{page.parts[1]}, {page.parts[-2]}" if len(page.parts) > 2 else page.stem
