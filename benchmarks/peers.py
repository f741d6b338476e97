"""Environments of other projects' packages, to measure them beside ours without a change to what we run on."""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def environment(peer: str, requirement: str, cache: Path) -> Path | str:
    """The Python interpreter of a peer's own environment, made if it is not there; or why it cannot be had.

    A .pth file lends it this project's packages, so that torch is not fetched again; what the peer asks for in another
    version comes first.
    """
    home = cache / peer
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        shutil.rmtree(home, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True, text=True)
            asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
            site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
            (site / "project.pth").write_text(sysconfig.get_path("purelib"))
            install = [str(python), "-m", "pip", "install", "--quiet", requirement]
            subprocess.run(install, check=True, capture_output=True, text=True, timeout=900)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            return said[-1] if said else "pip failed"
        (home / "ready").touch()
    return python


def cache() -> Path:
    """Where the environments are kept unless a benchmark is told otherwise."""
    return Path(tempfile.gettempdir(), "genre_dist-peers")
