"""Files that are whole or absent."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from genre_dist.storage import AnyPath, upload

_TEMPORARY = re.compile(r".+\..+-\d+-[0-9a-f]{8}\.tmp|\.(movies\.parquet|\d+\.jpg)\.part", re.DOTALL)
"""The second kind is of older versions: a catalogue's files."""


@contextmanager
def atomic_file(path: AnyPath, mode: str = "wb", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, on an error remove it.

    Without `sync` a crash of the machine may leave a file that is not whole, a crash of the process may not.
    Its name is this process's alone, so writers of the same file on several nodes never meet: the last rename counts.
    After a kill it stays behind until `remove_leftovers`. What is for a remote place is written here and then uploaded.
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
        # a full disk does not say which file it was
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: AnyPath) -> int:
    """Remove what killed writers left in a folder (not below it), and return how many files that were.

    For whoever has just taken the folder's lock, before any other rank is let in: all writers but this one are dead
    then.
    """
    removed = 0
    if isinstance(folder, Path) and folder.is_dir():
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                with suppress(OSError):  # a leftover is not worth an error
                    (folder / name).unlink()
                    removed += 1
    return removed
