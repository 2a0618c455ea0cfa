"""Small pieces of the evaluate flow."""

from collections.abc import Mapping
from pathlib import Path

from igpo_core.checkpoints import MANIFEST, newest_checkpoint, verify_folder


def locate(model: str, home: Path) -> str:
    """The folder behind a run key, a run's folder or a checkpoint (verified); any other name is passed on as it is."""
    run = home / "runs" / model
    folder = run if run.is_dir() else Path(model)
    if (folder / "checkpoints").is_dir():
        folder = newest_checkpoint(folder) or folder
    if (folder / MANIFEST).is_file():
        verify_folder(folder)
    return str(folder) if folder.exists() else model


def metric_rows(metrics: Mapping[str, float]) -> list[dict[str, str | float]]:
    """One row a slice: F1, EM, format rate, turns, searches."""
    shown = ("f1", "em", "format_rate", "turns", "searches")
    slices = sorted({name.rsplit("/", 1)[0] for name in metrics if name.endswith("/f1")})
    return [{"slice": part, **{key: round(metrics[f"{part}/{key}"], 4) for key in shown}} for part in slices]
