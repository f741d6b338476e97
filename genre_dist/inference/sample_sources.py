"""Samples of a declared data set to predict, from its catalogue or from a table with images, found as import does."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genre_dist.catalogue.catalogue import samples_file
from genre_dist.catalogue.import_options import declared_images
from genre_dist.catalogue.left_out import LeftOut
from genre_dist.catalogue.poster_search import Look, TarMember, find_posters, further_files
from genre_dist.catalogue.sample_rows import images_of
from genre_dist.catalogue.sample_table import SampleTable, open_inputs
from genre_dist.catalogue.samples import image_file, load_catalogue_schema, read_samples
from genre_dist.inference.prediction import Unlabelled
from genre_dist.sample_ids import number_of_id
from genre_dist.schema import Schema

Images = dict[int, tuple[Look, str | TarMember]]
"""Number of a sample -> its best image: a path as text, which takes less RAM than a Path, or a tar's member."""


class ImageFiles:
    """The search for the images of a table, with a digest of their paths, sizes and modification times."""

    def __init__(self, declared: Schema, left_out: LeftOut, progress: Callable[[], None]) -> None:
        self._declared, self._left_out, self._progress = declared, left_out, progress
        self.digest = hashlib.sha256()

    def find(self, paths: Iterable[Path], of_key: Mapping[str, int], prefix: str = "") -> Images:
        """The best image of each number; `prefix` begins its lines in the digest."""
        images: Images = {}
        for path in paths:
            for found in find_posters(path, of_key, self._left_out, self._progress, self._declared):
                number = of_key[found.key]
                if number in images and found.look <= images[number][0]:
                    self._left_out.add(further_files(self._declared), found.where)
                    continue
                file = found.source if isinstance(found.source, TarMember) else str(found.source)
                images[number] = found.look, file
                status = (found.source.tar if isinstance(found.source, TarMember) else found.source).stat()
                line = f"{prefix}{number} {file} {status.st_size} {status.st_mtime_ns}\n"
                self.digest.update(line.encode("utf-8", "surrogateescape"))
        return images


def image_in(images: Images, number: int) -> Path | TarMember | None:
    """The image of a number; None without one, and for an empty file."""
    look, file = images.get(number, (Look.EMPTY, ""))
    return None if look is Look.EMPTY else file if isinstance(file, TarMember) else Path(file)


def catalogue_samples(catalogue: Path, declared: Schema) -> Iterator[tuple[str, Unlabelled]]:
    """All samples of a catalogue. Raises ValueError if it lacks a field that the model's data had."""
    schema = load_catalogue_schema(catalogue)
    if other := sorted(set(declared.fields) ^ set(schema.fields), key=lambda field: field.name):
        raise ValueError(f"{samples_file(catalogue)}: its field {other[0].name} is not as the model's data declares it")
    for row in read_samples(catalogue, schema):
        values = {
            field.name: (image_file(catalogue, field.name, number_of_id(row["id"])) if is_there else None)
            if field.kind == "image"
            else (row[field.name] or None)
            for field in schema.fields
            for is_there in [field.kind == "image" and row[f"{field.name}:status"] == "ok"]
        }
        yield row["id"], Unlabelled(values)


def table_samples(
    path: Path, posters: Sequence[Path], declared: Schema, progress: Callable[[], None], left_out: LeftOut
) -> tuple[Iterator[tuple[str, Unlabelled]], str]:
    """The samples of a table, and a digest of the paths, sizes and times of their images."""
    table = open_inputs(path, declared)
    of_key: dict[str, dict[str, int]] = {field.name: {} for field in images_of(declared)}
    for sample in table.samples(left_out):
        progress()
        for name, key in sample.keys.items():
            of_key[name].setdefault(key, number_of_id(sample.id))
    images = ImageFiles(declared, left_out, progress)
    paths = declared_images(posters, declared) if posters else {}
    found = {name: images.find(paths.get(name, ()), keys, f"{name} ") for name, keys in of_key.items()}
    return _unlabelled(table, found), images.digest.hexdigest()


def _unlabelled(table: SampleTable, images: Mapping[str, Images]) -> Iterator[tuple[str, Unlabelled]]:
    for sample in table.samples(LeftOut()):
        values: dict[str, Any] = {name: sample.values[name] if sample.has(name) else None for name in sample.values}
        number = number_of_id(sample.id)
        yield sample.id, Unlabelled(values | {name: image_in(own, number) for name, own in images.items()})
