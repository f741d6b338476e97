"""The reader of anyone's tars: their samples become batches as those of packed shards do."""

import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.sample_rows import RowReader
from genre_dist.packing.posters import HALVE_FROM, Fit, load_rgb, square
from genre_dist.packing.tokenizer import tokenizer_of
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Field
from genre_dist.stream.fields import FieldReader, ImageReader
from genre_dist.stream.foreign import load_links
from genre_dist.stream.manifest import Manifest, TarManifest
from genre_dist.stream.reader import ShardReader
from genre_dist.stream.tar_reader import Links, links_of, members_at
from genre_dist.tars.tar_samples import TarRows, TarSample


class TarSampleReader(ShardReader):
    """Reads the samples of listed tars: images of any size are resized, texts are tokenised here.

    Images are decoded whatever `decode` says: a device decodes JPEGs of one size only.
    """

    manifest: TarManifest

    def __init__(self, manifest: TarManifest, *arguments: Any, **options: Any) -> None:
        super().__init__(manifest, *arguments, **options)
        schema = manifest.declared
        self._rows = TarRows(RowReader(schema, "keep" if schema.labels.choose == "many" else "refuse"))
        self._tokenizer = tokenizer_of(manifest.folder, manifest.text)
        self._links = lru_cache(64)(self._links_of)

    def _field_reader(self, field: Field) -> FieldReader:
        return AnyImageReader(field, self.manifest) if field.kind == "image" else super()._field_reader(field)

    def members(self, data: memoryview, id: int, shard: int, offset: int) -> tuple[str, Mapping[str, memoryview]]:
        path, listed = self.index.paths[shard], self.index.shards[shard]
        # the server of a remote tar tells its size with every answer
        if isinstance(path, Path) and (size := os.stat(path).st_size) != listed.bytes:
            raise ValueError(
                f"the tar has {size:,} bytes and had {listed.bytes:,} when it was listed; run `genre-dist index` again"
            )
        key, members = members_at(data, offset, partial(self._links, shard), partial(self._source.fetch, shard))
        sample = TarSample(self._rows, self._tokenizer, key, members, listed.split, key, LeftOut())
        if number_of_id(sample.id) != id:
            raise ValueError(f"{key} lies where another sample did; run `genre-dist index` again")
        return sample.id, sample

    def _links_of(self, shard: int) -> Links:
        return links_of(load_links(self.manifest.folder, self.index.shards[shard]))


class AnyImageReader(ImageReader):
    """Images of any size and kind, made square as packing makes them."""

    def __init__(self, field: Field, manifest: Manifest) -> None:
        super().__init__(field, int(manifest.image["size"]), decode=True)
        self.fit: Fit = manifest.image["fit"]  # type: ignore[assignment]
        cv2.setNumThreads(0)  # each core reads samples of its own

    def decode_into(self, file: memoryview, out: NDArray[np.uint8]) -> None:
        size = len(out)
        out[:] = square(load_rgb(bytes(file), least=HALVE_FROM * size)[0], size, self.fit)
