"""Films from shards: what is odd about one film is that film's fault."""

import json
from pathlib import Path

import pytest

from genre_dist.stream.manifest import load_manifest
from genre_dist.tars.films import shard_films

ABOUT = b'{"tmdb_id": '


@pytest.mark.parametrize(
    "odd",
    [b"[" * 60, b'{"genre_ids": [18], "release_date": 5}', b'{"genre_ids": 18}', b"null", b'{"genre_ids": [18.5]}'],
)
def test_what_is_odd_about_one_film_is_its_fault_alone(shards_copy: Path, odd: bytes) -> None:
    manifest = load_manifest(shards_copy)
    tar = shards_copy / manifest.shards[0].file
    data = tar.read_bytes()
    start = data.index(ABOUT)
    end = data.index(b"}", start) + 1
    assert len(odd) <= end - start
    tar.write_bytes(data[:start] + odd.ljust(end - start) + data[end:])
    films = list(shard_films(manifest))
    film = json.loads(data[start:end])["tmdb_id"]
    (changed,) = [found for found in films if found.id == film]
    is_read = b"release_date" in odd
    assert (changed.fault is None) == is_read
    assert changed.release_date == ""
    assert is_read or (str(tar) in changed.fault and f"film {film} at byte" in changed.fault)
    assert not any(found.fault for found in films if found.id != film)


def test_another_vocabulary_than_the_shards_were_packed_with_is_refused(shards_copy: Path) -> None:
    words = (shards_copy / "vocabulary.txt").read_text().splitlines(keepends=True)
    (shards_copy / "vocabulary.txt").write_text("".join([*words[:2], words[3], words[2], *words[4:]]))
    with pytest.raises(ValueError, match=r"vocabulary\.txt"):
        next(shard_films(load_manifest(shards_copy)))
