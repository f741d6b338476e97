"""img2dataset at the work of benchmarks/pack.py: run by the interpreter of its own environment.

    python benchmarks/pack_img2dataset.py POSTERS OUT --films N --shard_size N --size N --quality N --processes N

Reads the same local files through file:// addresses, so that no server takes its processor time, and prints images/s:
how steeply the images in finished shards grow over the times of the shards' reports, as for ours.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("posters", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("films", "shard_size", "size", "quality", "processes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    told = parser.parse_args()
    posters = sorted(told.posters.rglob("*.jpg"))
    addresses = [path.resolve().as_uri() for path in itertools.islice(itertools.cycle(posters), told.films)]
    table = told.out.with_suffix(".parquet")
    pq.write_table(pa.table({"url": addresses}), table)

    from img2dataset import download

    download(
        url_list=str(table),
        input_format="parquet",
        output_format="webdataset",
        output_folder=str(told.out),
        processes_count=told.processes,
        thread_count=8,
        image_size=told.size,
        resize_mode="center_crop",
        encode_quality=told.quality,
        number_sample_per_shard=told.shard_size,
        compute_hash=None,
    )
    reports = [json.loads(path.read_text()) for path in told.out.glob("*_stats.json")]
    failed = {status: n for report in reports for status, n in report["status_dict"].items() if status != "success"}
    assert not failed, failed
    ends = sorted((report["end_time"], report["successes"]) for report in reports)
    seconds = np.array([end for end, _ in ends]) - ends[0][0]
    print(float(np.polyfit(seconds, np.cumsum([images for _, images in ends]), 1)[0]))


if __name__ == "__main__":
    main()
