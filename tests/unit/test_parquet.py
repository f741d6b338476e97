"""Parquet: a file says what was written into it, or that it is damaged."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import told_or_read

from genre_dist.catalogue.parquet import open_parquet, stream_rows


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [{"id": number} for number in range(1, 6)]
    pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True, store_schema=False)
    whole = path.read_bytes()
    readings = []
    for at in range(len(whole)):
        for bit in (0, 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            readings.append(told_or_read(lambda: list(stream_rows(open_parquet(path, ""), path, ["id"], "")), path))
    assert [reading for reading in readings if reading not in (None, rows)] == []
    assert readings.count(None) > len(whole) // 2
