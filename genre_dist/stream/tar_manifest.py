"""The manifest of anyone's WebDataset tars to train on: `manifest.json` of schema version 3.

It has what the manifest of a packed data set has; its shards are the samples of one split in a tar, which lies
anywhere and is never written.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal

from genre_dist.stream.sample_manifest import SampleContents, SampleManifest, SampleShard
from genre_dist.validation import Address, Count, FileName

FOLDER = "tars.index"
"""Of the indexes of tars, in the folder of the listing."""


@dataclass(frozen=True, kw_only=True)
class TarShard(SampleShard):
    """The samples of one split in a tar; `bytes` is the tar's size, `sha256` of its index, address, labels and texts.

    Raises ValueError for inconsistent counts.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (no field)

    file: Address
    """Relative to the listing's folder, or absolute, or a URL."""
    name: FileName
    """Of the tar's files in the folder of indexes."""
    version: str = ""
    """Changes with the tar, see `file_version`."""
    links: Count = 0
    """Members of the tar that are links."""

    @property
    def identity(self) -> str:
        return hashlib.sha256(f"{self.sha256} {self.version}".encode()).hexdigest()

    @property
    def index_file(self) -> str:
        return f"{FOLDER}/{self.name}.{self.split}.npy"

    @property
    def links_file(self) -> str:
        """Name of the file with the targets of the tar's links, int64 [links, 3] (`TarIndex.links`)."""
        return f"{FOLDER}/{self.name}.links.npy"

    @property
    def packed(self) -> SampleShard:
        """The shard as it is called where encodings of its samples are kept."""
        about = asdict(self)
        for name in ("name", "version", "links"):
            del about[name]
        return SampleShard(**about | {"file": f"{self.name}.{self.split}.tar"})


@dataclass(frozen=True, kw_only=True)
class TarContents(SampleContents):
    """The contents of `manifest.json`. Raises ValueError if they are inconsistent."""

    schema: Literal[3] = 3  # type: ignore[assignment]
    shards: tuple[TarShard, ...]


@dataclass(frozen=True, kw_only=True)
class TarManifest(TarContents, SampleManifest):
    """A manifest and its folder."""

    @property
    def packed(self) -> SampleManifest:
        contents = vars(self) | {"schema": 2, "shards": tuple(shard.packed for shard in self.shards)}
        return SampleManifest(**contents)
