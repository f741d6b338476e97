"""The rows of an offline run of Weights & Biases, read back from its files.

A `.wandb` file is 7 bytes of header and a LevelDB log: blocks of 32 KiB of fragments, each with a checksum, a length
and its type (full record, first, middle, last). Records are protobuf messages of wandb.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, FRAGMENT_HEADER = 7, 32768, 7
WHOLE, FIRST, _, LAST = 1, 2, 3, 4


def history(folder: Path, run_id: str = "*") -> Iterator[dict[str, Any]]:
    """The logged rows of all offline segments of a run in `folder`/wandb, oldest segment first.

    A segment whose process was killed may end anywhere; it is read as far as it goes.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for path in sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")):
        for data in records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def records(data: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file, up to the first that is cut short or damaged."""
    position, parts = HEADER, b""
    while position + FRAGMENT_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < FRAGMENT_HEADER:  # padding: no fragment fits
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + FRAGMENT_HEADER : position + FRAGMENT_HEADER + length]
        if len(fragment) < length or checksum != zlib.crc32(fragment, zlib.crc32(bytes([kind]))):
            return
        parts = fragment if kind in (WHOLE, FIRST) else parts + fragment
        if kind in (WHOLE, LAST):
            yield parts
        position += FRAGMENT_HEADER + length
