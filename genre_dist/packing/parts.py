"""One pack divided into parts for many nodes: the part of a process, and the parts that are still missing."""

import os
import re
from collections.abc import Mapping

from genre_dist.storage import AnyPath


def parse_part(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """`i/n` -> (i, n); `slurm` -> the task's index in its SLURM array. Raises ValueError naming the accepted forms."""
    if text == "slurm":
        return _slurm_part(environment)
    number, slash, parts = text.partition("/")
    if not slash or not number.isdecimal() or not parts.isdecimal() or not 0 <= int(number) <= int(parts) > 0:
        raise ValueError(f"--part takes i/n, such as 0/4 to 3/4 or 1/4 to 4/4, or `slurm`, not `{text}`")
    return int(number), int(parts)


def _slurm_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """The part of a SLURM array task. Raises ValueError unless the array's task ids are evenly spaced."""
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP")]
    values = [environment.get(name, "") for name in names]
    missing = [name for name, value in zip(names[:3], values[:3], strict=True) if not value.isdecimal()]
    if missing:
        raise ValueError(f"--part slurm needs {', '.join(missing)}: submit with `sbatch --array=0-15`, or give i/n")
    task, count, first = map(int, values[:3])
    last, step = int(values[3] or task), int(values[4] or 1)
    index, rest = divmod(task - first, step)
    if rest or not 0 <= index < count or last - first > (count - 1) * step:
        raise ValueError("--part slurm needs an evenly spaced array such as `sbatch --array=0-15`; or give i/n")
    return index, count


def part_folder(work: AnyPath, part: tuple[int, int]) -> AnyPath:
    """The work folder of a part. It stays until the merge, whose message names the number of parts from it."""
    number, parts = part
    return work / f"{number % parts}-of-{parts}"


def missing_shards_message(out: AnyPath, missing: list[int], total: int, work: AnyPath) -> str:
    """The merge's error: the number of unfinished shards, and the commands that make them."""
    marks = [re.fullmatch(r"\d{1,9}-of-([1-9]\d{0,8})", path.name) for path in work.glob("*-of-*")]
    cut = {int(mark[1]) for mark in marks if mark}
    ways = [
        " ".join(f"--part {number}/{parts}" for number in sorted({shard % parts for shard in missing}))
        for parts in sorted(cut)
    ]
    ways.append("one pack without --part")
    return (
        f"{out}: {len(missing):,} of {total:,} shards are not finished, or packed with other options or samples; run "
        f"the same command with {', or '.join(ways)}, and --merge again"
    )
