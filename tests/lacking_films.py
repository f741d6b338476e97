"""A catalogue in which many films of every split lack a poster or an overview."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genre_dist.catalogue.catalogue import movies_file


def write_lacking(catalogue: Path, out: Path) -> Path:
    """The films of a catalogue, every fourth without its poster, every fifth without its overview."""
    out.mkdir()
    (out / "posters").symlink_to(catalogue / "posters")
    table = pq.read_table(movies_file(catalogue))
    for name, every, lacking in (("poster_status", 4, "none"), ("overview", 5, "")):
        values = [lacking if row % every == 0 else value for row, value in enumerate(table[name].to_pylist())]
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values))
    pq.write_table(table, movies_file(out))
    return out
