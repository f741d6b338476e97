"""Tars as other people's tools write them, and what can be read of them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import webdataset

from genre_dist.stream import TarReader, evaluation_stream
from genre_dist.stream.foreign import Tars


def like_img2dataset(folder: Path, tars: int = 4, samples: int = 25) -> dict[str, dict[str, bytes]]:
    """Tars as img2dataset writes them, with stock webdataset's writer: key -> members."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for tar in range(tars):
        with webdataset.TarWriter(str(folder / f"{tar:05d}.tar")) as writer:
            for number in range(samples):
                key = f"{tar:05d}{number:04d}"
                members = {"jpg": key.encode() * (number + 1), "json": json.dumps({"key": key}).encode()}
                if number % 3:
                    members["txt"] = f"caption {number}".encode()
                writer.write({"__key__": key} | members)
                made[key] = members
    return made


def write_tar(path: Path, names: list[str], **how: Any) -> Path:
    with tarfile.open(path, "w", **how) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path


def samples_of(tars: Tars, wanted: tuple[str, ...] = (), workers: int = 0) -> dict[str, dict[str, Any]]:
    """The samples that can be read, by key."""
    batches = evaluation_stream(TarReader(tars, wanted), batch=9, workers=workers)
    return {sample.pop("__key__"): sample for batch in batches for sample in batch.samples if sample}
