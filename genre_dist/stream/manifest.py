"""Reading and writing the manifest of a folder of shards: their contents and how they were packed. Pure data."""

import json

from typing_extensions import TypedDict

from genre_dist.atomic import atomic_file
from genre_dist.schema import TMDB, Schema
from genre_dist.storage import AnyPath, any_path, read_bytes
from genre_dist.stream.film_manifest import FilmContents, FilmManifest, Shard
from genre_dist.stream.manifest_base import FILE, SPLITS, Encoding, Image, Manifest, Moments, Text
from genre_dist.stream.sample_manifest import SampleContents, SampleManifest, SampleShard
from genre_dist.stream.tar_manifest import TarContents, TarManifest
from genre_dist.validation import LARGEST_BYTES, parse_json

__all__ = [
    "FILE",
    "SPLITS",
    "AnyShard",
    "Encoding",
    "FilmManifest",
    "Image",
    "Manifest",
    "Moments",
    "SampleManifest",
    "SampleShard",
    "Shard",
    "TarManifest",
    "Text",
    "lists_tars",
    "load_manifest",
    "save_manifest",
    "shard_kind",
]
AnyShard = Shard | SampleShard
NEWEST = 3
"""Newest schema version that is read."""
_REMEDY = "this is not a manifest that `genre-dist pack` wrote; pack the shards again, or fetch them again"


def shard_kind(declared: Schema) -> type[AnyShard]:
    """The type of the entries for a data set's shards."""
    return Shard if declared == TMDB else SampleShard


def save_manifest(manifest: Manifest) -> None:
    """Write `manifest.json` into its folder, atomically."""
    with atomic_file(manifest.folder / FILE, "w") as file:
        json.dump(manifest.to_dict(), file, indent=1)


class _Head(TypedDict):
    format: object
    schema: object


def load_manifest(folder: AnyPath | str) -> Manifest:
    """Read the manifest of a folder of shards, which may lie behind a URL (https://, s3://, ...).

    Raises ValueError if it is missing (the message says how to make shards), of another schema version, or invalid:
    every file name must be one of its folder, every number a possible count.
    """
    folder = any_path(folder)
    path = folder / FILE
    try:
        written = read_bytes(path, LARGEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"no shards in {folder} ({FILE} is missing). Make some:  genre-dist sample --films 2000 --out catalogue  "
            f"&&  genre-dist pack --catalogue catalogue --out {folder}   (or `genre-dist import` your own data first)"
        ) from None
    schema = parse_json(_Head, written, path, _REMEDY)["schema"]
    if isinstance(schema, int | str) and schema not in (1, 2, 3):
        raise ValueError(
            f"{path}: written with schema version {schema!r}, this version reads 1 to {NEWEST}; pack the shards again, "
            "or use the genre_dist that packed them"
        )
    if schema == 3:
        return TarManifest(folder=folder, **vars(parse_json(TarContents, written, path, _REMEDY)))
    if schema == 2:
        return SampleManifest(folder=folder, **vars(parse_json(SampleContents, written, path, _REMEDY)))
    return FilmManifest(folder=folder, **vars(parse_json(FilmContents, written, path, _REMEDY)))


def lists_tars(folder: AnyPath) -> bool:
    """Whether a folder has the manifest of anyone's tars."""
    try:
        return isinstance(load_manifest(folder), TarManifest)
    except ValueError:
        return False
