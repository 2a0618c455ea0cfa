"""The part of a checkpoint that several processes write and any number reads (torch.distributed.checkpoint).

torch reads its index, and every value that is no tensor, with pickle, which runs what a file says. Here the index may name
nothing but the classes that torch writes into it, and values are read as torch.load reads weights.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from igpo_core.errors import CheckpointError

INDEX_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # its name in Python 3.13
}


def write_shards(folder: Path, tensors: dict[str, Any]) -> None:
    """Write this process's part of `tensors`; all processes call it. Raises CheckpointError on all when one of them fails."""
    try:
        save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise CheckpointError(
            f"cannot write {folder}: {_reason(error)}. Free some space or check the permissions."
        ) from error


def read_shards(folder: Path, tensors: dict[str, Any]) -> None:
    """Read into `tensors`, sharded as they are wanted; all processes call it. Nothing that the files hold is executed.

    Raises CheckpointError on all when one of them finds a file damaged, or one that names other things than torch writes.
    """
    reader = _Reader(folder)
    try:
        load(tensors, storage_reader=reader, planner=_Planner())
    except CheckpointException as error:
        own = reader.index_error  # torch 2.11 keeps it to itself, and says "metadata is None"
        reason = f"{type(own).__name__}: {own}" if own else _reason(error)
        raise CheckpointError(
            f"{folder} cannot be read: {reason}. Delete the checkpoint, or name another one."
        ) from error


def _reason(error: CheckpointException) -> str:
    """What the first process that failed said: torch's own text is the traceback of each."""
    failure, _ = next(iter(error.failures.values()))
    return f"{type(failure).__name__}: {failure}"


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in INDEX_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which torch writes into no index of a checkpoint")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    index_error: Exception | None = None
    """Why the index could not be read, of the first try: torch makes a second one, for an index of this process alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As torch's, without what pickle would run."""
        try:
            return self._read_index(kwargs.get("rank"))
        except Exception as error:
            self.index_error = self.index_error or error
            raise

    def _read_index(self, rank: int | None) -> Metadata:
        with open(self._get_metadata_path(rank), "rb") as file:
            metadata = _Index(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it holds {type(metadata).__name__}, not Metadata")
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """torch reads this with pickle: give it what was read without and written again here."""
        own = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), own)
        own.seek(0)
        super().load_bytes(read_item, own)
