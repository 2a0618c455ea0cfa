"""Zip files for tests."""

import io
import zipfile
from collections.abc import Mapping


def zip_of(members: Mapping[str, bytes | str], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of these members, by name."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()
