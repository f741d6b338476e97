"""Files that are whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from genre_dist.storage import Place, upload


@contextmanager
def atomic_file(path: Place, mode: str = "wb", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, on an error remove it.

    Without `sync` a crash of the machine may leave a file that is not whole, a crash of the process may not.
    Its name is this process's alone, so writers of the same file on several nodes never meet: the last rename counts.
    After a kill it stays behind; it ends in `.tmp`. What is for a remote place is written here and uploaded when whole.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            finished = Path(folder, path.name)
            with open(finished, mode) as file:
                yield file
            upload(finished, path)
        return
    token = f"{os.uname().nodename[:64]}-{os.getpid()}-{os.urandom(4).hex()}"
    temporary = path.with_name(f"{path.name}.{token}.tmp")
    try:
        with open(temporary, mode) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
