"""Files and folders that commands write: whole or not at all, and no other in their place unasked."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scanpy_scvipyro.cli import _exit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from types import TracebackType

    from anndata import AnnData


class Outputs:
    """Outputs of one run: written into hidden folders beside their places, and moved there together at the end."""

    def __init__(self, *, overwrite: bool) -> None:
        self.overwrite = overwrite
        self.names: list[Path] = []
        self.places: dict[Path, Path] = {}
        self.folders: dict[Path, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _exit.undisturbed():
            try:
                if kind is None:
                    self._put_in_place()
            finally:
                for folder in self.folders.values():
                    _remove(folder)

    def claim(self, path: Path) -> Path:
        """Refuse a place that cannot be written to, before any work; return where to write instead, for now."""
        place = Path(os.path.realpath(path))  # a link stays one
        if place in self.places:
            raise ValueError(f"{str(path)!r} is named for two outputs; name another for one of them.")
        if not place.parent.is_dir():
            raise FileNotFoundError(f"{str(path)!r} is in a folder that does not exist; create it first.")
        if place.exists() and not self.overwrite:
            raise FileExistsError(f"{str(path)!r} exists already; pass --overwrite, or another name.")
        if place.parent not in self.folders:
            try:
                self.folders[place.parent] = Path(tempfile.mkdtemp(prefix=".scanpy-scvipyro-", dir=place.parent))
            except PermissionError as error:
                msg = f"cannot write to {str(path.parent)!r}; name a folder with write permission."
                raise PermissionError(msg) from error
        self.names.append(path)
        self.places[place] = self.folders[place.parent] / place.name
        return self.places[place]

    def _put_in_place(self) -> None:
        """Move what was written, old outputs aside first, which come back if something fails."""
        replaced: dict[Path, Path] = {}
        try:
            for place, written in self.places.items():
                if place.exists():
                    aside = written.with_name(f"{len(replaced)}.replaced")
                    place.rename(aside)
                    replaced[place] = aside
                written.rename(place)
        except OSError:
            for place, aside in replaced.items():
                with contextlib.suppress(OSError):
                    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
                    aside.rename(place)
            raise


def _remove(folder: Path) -> None:
    """Delete a folder for good: chunks that zarr was still writing when another one failed arrive meanwhile."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def write(adata: AnnData, path: Path) -> None:
    """Write an AnnData in the format that the suffix names."""
    if path.suffix == ".zarr":
        adata.write_zarr(path)
        return

    import h5py
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    with path.open("w+b", buffering=0) as file:
        unfailing = _Unfailing(file)
        with h5py.File(unfailing, "w") as hdf5:
            write_elem(hdf5, "/", adata)
        if unfailing.error is not None:
            raise unfailing.error
        os.fsync(file.fileno())  # a full disk of a server may only be noticed now


class _Unfailing:
    """A file for HDF5, which crashes (1.14, 2.0) when a write fails: the error is kept, and the rest is not written."""

    def __init__(self, file: FileIO) -> None:
        self.file, self.at, self.size = file, 0, 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        self.file.seek(self.at)
        found = self.file.read(size) or b""
        self.at += size
        return found.ljust(size, b"\0")

    def readinto(self, buffer: Any) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)

    def write(self, content: Any) -> int:
        rest = memoryview(content)
        with self._remembered():
            self.file.seek(self.at)
            while self.error is None and rest:
                rest = rest[self.file.write(rest) :]
        self.at += len(content)
        self.size = max(self.size, self.at)
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        with self._remembered():
            self.file.truncate(self.size)
        return self.size

    def flush(self) -> None:
        pass

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
