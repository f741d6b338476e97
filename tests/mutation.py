"""Small mistakes, made on purpose in copies of the code, one at a time: which of them do the tests catch?

    python tests/mutation.py [--only NAME ...] [--limit SECONDS]

Each mutation names the tests that must fail. A failure counts only if the same test passes without the mutation.
Exit code 1: a mutation was missed, or could not be judged (void). pytest does not collect this file; all of it takes
some minutes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A change of one place. Files are found by their name and the old text, so that they may move."""

    name: str
    file: str
    old: str
    new: str
    test: str
    """File name of the tests that must fail."""


MUTATIONS = (
    # config: the accumulation of a rank follows from its share, not from the global batch
    Mutation(
        "accumulation",
        "batches.py",
        "return Batches(per_rank, micro, per_rank // micro)",
        "return Batches(per_rank, micro, total // micro)",
        "test_config.py",
    ),
    # acquire: one request more than the rate in a second
    Mutation(
        "request_rate",
        "limiter.py",
        "free = self.rate - len(self.under_way)",
        "free = self.rate - len(self.under_way) + 1",
        "test_limiter.py",
    ),
    # acquire: a line that has lost its checksum is believed
    Mutation(
        "journal_checksum",
        "journal.py",
        "if (mark or not is_old) and rest != ",
        "if mark and rest != ",
        "test_journal.py",
    ),
    # prepare: samples lie in the order of the hash that decides their split
    Mutation(
        "order_in_shards",
        "splits.py",
        'return _hash(tmdb_id, b"order")',
        'return _hash(tmdb_id, b"split")',
        "test_splits.py",
    ),
    # stream: ranks with one sample fewer have one batch fewer, and the others wait for them
    Mutation(
        "evaluation_batches",
        "order.py",
        "count = math.ceil(math.ceil(samples / world) / batch)",
        "count = math.ceil((last - first) / batch)",
        "test_order.py",
    ),
    # stream: a member that the end of the file cuts is taken for whole
    Mutation(
        "truncated_tar",
        "tar.py",
        "if size < 0 or start + size > len(view):",
        "if size < 0:",
        "test_tar.py",
    ),
    # models: the state at the end of the padding is read, not at the end of the text
    Mutation(
        "padded_end",
        "text.py",
        "last = (lengths - 1)[:, None, None]",
        "last = (lengths * 0 + outputs.shape[1] - 1)[:, None, None]",
        "test_text_encoder.py",
    ),
    # models: frozen BatchNorms follow the batches
    Mutation(
        "frozen_statistics",
        "poster.py",
        "            module.training = False\n",
        "            module.training = mode\n",
        "test_poster_encoder.py",
    ),
    # parallel: one rank writes nearly the whole checkpoint
    Mutation(
        "divided_checkpoint",
        "tensors.py",
        "owners[name] = loads.index(min(loads))",
        "owners[name] = loads.index(max(loads))",
        "test_strategy_choice.py",
    ),
    # parallel: the ranks that give signs of life are taken for dead
    Mutation(
        "silent_rank",
        "board.py",
        "if self._signs[rank] == before[rank] and rank != self.rank",
        "if self._signs[rank] != before[rank] and rank != self.rank",
        "test_board.py",
    ),
    # training: bytes of a checkpoint that have changed go unnoticed
    Mutation(
        "checkpoint_checksum",
        "checkpoint.py",
        "checksum(file, progress) != noted.crc32",
        "checksum(file, progress) == -1",
        "test_checkpoint.py",
    ),
    # training: the average follows the weights as they are, not slowly
    Mutation(
        "weight_average",
        "ema.py",
        "share = 1 - min(self.decay,",
        "share = 1 - max(self.decay,",
        "test_ema.py",
    ),
    # planner: ZeRO-1 is thought to spread gradients
    Mutation(
        "zero1_gradients",
        "memory.py",
        'if setting.strategy in ("fsdp", "zero2", "zero3"):\n        gradients',
        'if setting.strategy in ("fsdp", "zero1", "zero2", "zero3"):\n        gradients',
        "test_planner.py",
    ),
    # cluster: two ranks on 64 MB of shared memory are said to be well
    Mutation(
        "shared_memory",
        "machine.py",
        'status = "wrong" if ranks > 1 else "note"',
        'status = "wrong" if ranks > 2 else "note"',
        "test_doctor.py",
    ),
    # study: rare labels get the threshold of their few samples
    Mutation(
        "rare_thresholds",
        "thresholds.py",
        "return common + films / (films + COMMON_FILMS) * (own - common)",
        "return common + COMMON_FILMS / (films + COMMON_FILMS) * (own - common)",
        "test_thresholds.py",
    ),
    # study: a p value of 0, which no number of resamples can show
    Mutation(
        "p_value",
        "bootstrap.py",
        "tail = 1 + min(",
        "tail = min(",
        "test_bootstrap.py",
    ),
    # study: the earlier model minus the later one
    Mutation(
        "sign_of_a_difference",
        "intervals.py",
        "all_differences(here[j].values, here[i].values)",
        "all_differences(here[i].values, here[j].values)",
        "test_comparison.py",
    ),
    # study: a mean over drawn seeds spreads too little
    Mutation(
        "narrowness_of_seeds",
        "bootstrap.py",
        "math.sqrt(count / (count - 1))",
        "1.0",
        "test_bootstrap.py",
    ),
    # study/baselines: unknown words are counted as a word
    Mutation(
        "unknown_words",
        "features.py",
        "film.tokens[film.tokens > UNKNOWN]",
        "film.tokens[film.tokens >= UNKNOWN]",
        "test_baselines.py",
    ),
    # study/explore: December is counted as January's neighbour
    Mutation(
        "months",
        "counting.py",
        "self.months[int(month) - 1] += 1",
        "self.months[int(month) % 12] += 1",
        "test_explore.py",
    ),
    # study/chain: a report that is older than one of its runs is not made again
    Mutation(
        "stale_report",
        "tasks.py",
        "min(made) > max(used)",
        "min(made) > min(used)",
        "test_study_plan.py",
    ),
)


UNSHRUNK = """
from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=(Phase.explicit, Phase.generate))
settings.load_profile("unshrunk")
"""
"""For the tests' conftest.py: hypothesis looks for minutes for the smallest example that fails."""


def copy_of_the_code(folder: Path) -> Path:
    """The working tree as it is now: what git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():  # else it is deleted, and git not yet told
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    with (folder / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(UNSHRUNK)
    return folder


def mutate(copy: Path, mutation: Mutation) -> tuple[Path, str]:
    """Make the change; returns the file and its text before. Raises ValueError if there is not exactly one place."""
    texts = {path: path.read_text("utf-8") for path in (copy / "genre_dist").rglob(mutation.file)}
    places = {path: text.count(mutation.old) for path, text in texts.items() if mutation.old in text}
    if list(places.values()) != [1]:
        raise ValueError(f"{mutation.file} under genre_dist/ has the old text {sum(places.values())} times, not once")
    (path,) = places
    path.write_text(texts[path].replace(mutation.old, mutation.new), "utf-8")
    return path, texts[path]


def test_file(copy: Path, name: str) -> str:
    """The one test file of a name, relative to the copy. Raises ValueError if there is none, or several."""
    found = [str(path.relative_to(copy)) for path in (copy / "tests").rglob(name)]
    if len(found) != 1:
        raise ValueError(f"{name} is {len(found)} times under tests/, not once")
    return found[0]


def run_tests(copy: Path, what: str, limit: float) -> tuple[int | None, str]:
    """Run a file or a test until something fails: pytest's exit code, None past the limit, and the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--tb=no", "-rfE", what]
    command += ["--basetemp", str(copy.with_name("pytest"))]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, text=True, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return None, ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\w+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else ""


def judge(copy: Path, mutation: Mutation, limit: float) -> str:
    """`caught by TEST`, `missed`, or why it cannot be said."""
    try:
        file = test_file(copy, mutation.test)
        path, before = mutate(copy, mutation)
    except ValueError as error:
        return f"void: {error}"
    code, failed = run_tests(copy, file, limit)
    path.write_text(before, "utf-8")
    if code == 0:
        return "missed"
    if code is None:
        return f"void: {file} does not end within {limit:.0f} s; give it more (--limit)"
    if code != 1 or not failed:
        return f"void: pytest ended with {code}"
    if run_tests(copy, failed, limit)[0] != 0:
        return f"void: {failed} fails without the mutation too"
    return f"caught by {failed.partition('::')[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Which small mistakes do the tests catch?")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in MUTATIONS], default=None)
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for one run of pytest (300)")
    options = parser.parse_args()
    chosen = [each for each in MUTATIONS if options.only is None or each.name in options.only]
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_the_code(Path(folder, "code"))
        for mutation in chosen:
            began = time.monotonic()
            ends.append(judge(copy, mutation, options.limit))
            seconds = time.monotonic() - began
            print(f"{mutation.name:22} {mutation.test:24} {seconds:4.0f} s  {ends[-1]}", flush=True)
    caught = sum(end.startswith("caught") for end in ends)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
