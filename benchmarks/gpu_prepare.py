"""Packed shards and the numbers of the model, made beforehand: a GPU machine should spend no time on them."""

import shutil
from pathlib import Path

FILMS = 1700
"""What fits 40 MB: a film takes 22 kB."""
FOLDER = "gpu-prepared"
"""The folder that is looked for beside the script and in the current folder."""


def prepared_folder() -> Path | None:
    places = [Path(__file__).parent / FOLDER, Path.cwd() / FOLDER]
    return next((place for place in places if (place / "shards" / "manifest.json").is_file()), None)


def prepare(out: Path, quick: bool) -> str:
    """Make all of it in `out`; returns a line that says what there is."""
    from gpu_bench import study_config
    from gpu_known import Known
    from gpu_speed import cases

    pack_films(out, 120 if quick else FILMS, quick)
    known = Known(None)
    for case in cases(quick):
        config = study_config(quick, case.frozen)
        known.flops(config)
        if case.is_planned:
            known.peak(config, case.checkpointing, case.kept_in, case.micro)
    known.save(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return f"{out}: {len(known.numbers)} numbers and shards, {size / 1e6:.1f} MB in all"


def pack_films(out: Path, films: int, quick: bool) -> None:
    """Pack procedural films into `out`/shards. Raises ImportError without what that needs (simplejpeg, rich)."""
    from genre_dist.catalogue.sample_films import make_sample
    from genre_dist.packing.pack import pack

    catalogue = out / "catalogue"
    shutil.rmtree(catalogue, ignore_errors=True)  # of one that was killed
    make_sample(films, 0, catalogue, (60, 90) if quick else (342, 513))
    pack(catalogue, out / "shards", size=72 if quick else 256, overwrite=True)
    shutil.rmtree(catalogue)
