"""What reading anyone's tars for training costs beside the least that it takes.

    python benchmarks/own_tars.py            4,000 samples of 400 x 300 pixels, seven rounds
    python benchmarks/own_tars.py --quick    1,000 samples, three rounds

The tars are as img2dataset writes them: a JPEG, a caption in .txt, a JSON with the label. Ours reads them in the order
of training, in one process, as batches of 64: images resized to 128 x 128 pixels, texts as tokens, labels as rows. The
bare loop takes what stock `tarfile` yields in the order of the tars, and does the least that gives the same: it decodes
and resizes by the same functions, splits texts into words and looks these up. A third reads the same samples packed
beforehand. The three are interleaved; the figures are CPU time of one process.
"""

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from common import Row, measured, options, report

from genre_dist.catalogue.importing_samples import import_samples
from genre_dist.catalogue.sample_rows import RowReader
from genre_dist.packing.pack import pack
from genre_dist.packing.posters import load_rgb, square
from genre_dist.packing.tokenizer import tokenizer_of
from genre_dist.schema import Field, Labels, Schema
from genre_dist.stream import TrainStream
from genre_dist.stream.manifest import Manifest, load_manifest
from genre_dist.tars.sample_reader import reader_type
from genre_dist.tars.tar_listing import TarOptions, list_samples

GOAL = 0.9
BATCH, SIZE, TAR = 64, 128, 500
CLASSES = ("lamps", "mugs", "shelves")


def schema(id: str, text: str, label: str, image: tuple[str, ...] = ()) -> Schema:
    fields = (Field(name="image", kind="image", columns=image), Field(name="text", kind="text", columns=(text,)))
    return Schema(id=id, split_by=id, labels=Labels(column=label, classes=CLASSES, choose="one"), fields=fields)


def draw(samples: int, folder: Path) -> None:
    """Tars, and the same samples as a table with images."""
    (folder / "images").mkdir(parents=True)
    draws, rows = np.random.default_rng(0), []
    words = [f"word{number}" for number in range(2000)]
    for start in range(0, samples, TAR):
        with tarfile.open(folder / f"{start // TAR:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(start, min(samples, start + TAR)):
                small = draws.integers(0, 255, (12, 16, 3), np.uint8)
                jpeg = simplejpeg.encode_jpeg(cv2.resize(small, (400, 300), interpolation=cv2.INTER_CUBIC), quality=85)
                text, label = " ".join(draws.choice(words, 12)), CLASSES[number % 3]
                key, about = f"{number:09d}", {"label": label}
                (folder / "images" / f"{key}.jpg").write_bytes(jpeg)
                rows.append({"key": key, "text": text, "label": label})
                members = {"jpg": jpeg, "txt": text.encode(), "json": json.dumps(about).encode()}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "table.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def ours(manifest: Manifest, samples: int) -> None:
    reader = reader_type(manifest)(manifest, "train", ("image", "text"), 64)
    read = 0
    for micro_batches in TrainStream(reader, global_batch=BATCH, micro_batch=BATCH, seed=0, workers=0):
        read += sum(len(batch.ids) for batch in micro_batches)
    assert read == samples


def bare(folder: Path, listing: Manifest, samples: int) -> None:
    tokenizer, pixels = tokenizer_of(listing.folder, listing.text), np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    read = 0
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members: dict[str, bytes] = {}
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name.partition(".")[2]] = file.read()
                if len(members) < 3:
                    continue
                pixels[read % BATCH] = square(load_rgb(members["jpg"])[0], SIZE, "squash")
                tokenizer.encode(members["txt"].decode())
                CLASSES.index(json.loads(members["json"])["label"])
                members, read = {}, read + 1
                if read == samples:
                    return


def main() -> None:
    arguments = options(__doc__ or "")
    samples, rounds = (1_000, 3) if arguments.quick else (4_000, 7)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(samples, folder)
        reader = RowReader(schema("__key__", "txt", "json.label"), "refuse")
        listing, _ = list_samples(sorted(folder.glob("*.tar")), folder / "listing", TarOptions(reader, size=SIZE))
        images = {"image": [folder / "images"]}
        import_samples(folder / "table.jsonl", schema("key", "text", "label"), images, folder / "catalogue")
        pack(folder / "catalogue", folder / "shards", size=SIZE, workers=1)
        packed, train = load_manifest(folder / "shards"), listing.samples("train")
        ways: dict[str, Callable[[], None]] = {
            "tars as they are": lambda: ours(listing, train),
            "the bare loop": lambda: bare(folder, listing, train),
            "the same samples packed": lambda: ours(packed, train),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, read in ways.items():
                before = time.process_time()
                read()
                rates[way].append(train / (time.process_time() - before))
    ratios = [own / least for own, least in zip(rates["tars as they are"], rates["the bare loop"], strict=True)]
    ratio = measured("tars as they are over the bare loop, CPU time", ratios, "share")
    rows = [Row(**vars(ratio) | {"goal": f">= {GOAL}", "holds": ratio.value >= GOAL})]
    report(rows + [measured(way, values, "samples/s") for way, values in rates.items()], arguments.json)


if __name__ == "__main__":
    main()
