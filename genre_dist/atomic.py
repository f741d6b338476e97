"""Atomic file writes: a file is whole or absent."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from genre_dist.storage import AnyPath, upload

_TEMPORARY = re.compile(r".+\..+-\d+-[0-9a-f]{8}\.tmp|\.(movies\.parquet|\d+\.jpg)\.part", re.DOTALL)
"""Older versions wrote the second kind in catalogues."""


@contextmanager
def atomic_file(path: AnyPath, mode: str = "wb", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, on an error remove it.

    Without `sync` a crash of the machine may leave a partial file, a crash of the process cannot. The temporary name is
    unique to this process, so writers of the same file on several nodes do not collide: the last rename wins. A killed
    process leaves it behind until `remove_leftovers`. A remote file is written to a local one and then uploaded.
    """
    encoding = None if "b" in mode else "utf-8"
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            finished = Path(folder, path.name)
            with open(finished, mode, encoding=encoding) as file:
                yield file
            upload(finished, path)
        return
    token = f"{os.uname().nodename[:64]}-{os.getpid()}-{os.urandom(4).hex()}"
    temporary = path.with_name(f"{path.name}.{token}.tmp")
    try:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # the error of a full disk names no file
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: AnyPath) -> int:
    """Remove the temporary files of killed writers in a folder (not below it), and return their number.

    The caller has just taken the folder's lock and has not let other ranks in yet: all other writers are dead.
    """
    removed = 0
    if isinstance(folder, Path) and folder.is_dir():
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                with suppress(OSError):  # a leftover is not worth an error
                    (folder / name).unlink()
                    removed += 1
    return removed
