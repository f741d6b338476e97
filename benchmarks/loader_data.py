"""What benchmarks/loader.py needs beside this project: the peers in environments of their own, and their formats.

python benchmarks/loader_data.py mds|litdata FOLDER        (with the peer's own interpreter)
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PEERS = {  # what pip is asked for
    "mosaicml-streaming": "mosaicml-streaming==0.13.0",
    "litdata": "litdata==0.2.76",
    "megatron-energon": "megatron-energon==7.4.1",
}


def samples(folder: Path) -> Iterator[dict[str, bytes]]:
    """The training samples of the packed shards: the members of each by extension, and its key."""
    for shard in sorted(folder.glob("shards/train-*.tar")):
        sample: dict[str, Any] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                if sample.get("key", key) != key:
                    yield sample
                    sample = {}
                content = tar.extractfile(member)
                assert content is not None
                sample |= {"key": key, extension: content.read()}
        yield sample


def write_webdataset(folder: Path) -> None:
    """Shards by webdataset's own writer: a PAX header for every member."""
    import webdataset

    (folder / "webdataset").mkdir()
    with webdataset.ShardWriter(str(folder / "webdataset" / "%06d.tar"), maxcount=250, verbose=0) as writer:
        for sample in samples(folder):
            writer.write({"__key__": sample["key"], **{k: v for k, v in sample.items() if k != "key"}})


def write_imagefolder(folder: Path) -> None:
    for sample in samples(folder):
        genre = json.loads(sample["json"])["genre_ids"][0]
        (folder / "posters" / str(genre)).mkdir(parents=True, exist_ok=True)
        (folder / "posters" / str(genre) / f"{sample['key']}.jpg").write_bytes(sample["jpg"])


def write_energon(folder: Path, python: Path) -> None:
    home = folder / "energon"
    home.mkdir()
    for shard in sorted(folder.glob("shards/train-*.tar")):
        os.link(shard, home / shard.name)
    program = [str(python), "-c", "from megatron.energon.cli.main import main; main()"]
    how = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
    subprocess.run([*program, "prepare", *how, str(home)], check=True, capture_output=True)


def write_mds(folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "tokens": "bytes", "json": "bytes"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit="16mb") as writer:
        for sample in samples(folder):
            writer.write({"jpg": sample["jpg"], "tokens": sample["tokens.npy"], "json": sample["json"]})


def write_litdata(folder: Path) -> None:
    import litdata

    litdata.optimize(
        fn=_litdata_shard,
        inputs=[str(folder)],
        output_dir=str(folder / "litdata"),
        chunk_bytes="16MB",
        num_workers=1,
    )


def _litdata_shard(folder: str) -> Iterator[dict[str, bytes]]:
    for sample in samples(Path(folder)):
        yield {"jpg": sample["jpg"], "tokens": sample["tokens.npy"], "json": sample["json"]}


if __name__ == "__main__":
    {"mds": write_mds, "litdata": write_litdata}[sys.argv[1]](Path(sys.argv[2]))
