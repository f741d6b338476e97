"""What ranks learn of each other beside their collectives, over a store of this process."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
import torch.distributed as dist
from helpers import until

from genre_dist.parallel.board import KILLED, Board, End, sign_in

Server = list[dist.TCPStore]
"""The store's host; empty when it is gone."""


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genre_dist.parallel.board.PATIENCE_SECONDS", 0.5)


@pytest.fixture
def server() -> Server:
    return [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))]


def connect(server: Server) -> dist.Store:
    return dist.TCPStore("127.0.0.1", server[0].port, is_master=False, timeout=timedelta(seconds=30))


def sign_in_from_elsewhere(server: Server, rank: int) -> None:
    connect(server).set(f"rank {rank}", json.dumps(["node7", 77, "another-machine pid:[1] 77 1"]))
    connect(server).set(f"sign {rank}", "5")


@pytest.fixture
def heard() -> list[End]:
    return []


@pytest.fixture
def boards(server: Server, heard: list[End]) -> Iterator[list[Board]]:
    """Of two ranks of this process."""
    stores = [connect(server) for _ in range(2)]
    for rank, store in enumerate(stores):
        sign_in(store, rank)
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(Board(store, 0, rank, 2, 0.05, heard.append)))
            for rank, store in enumerate(stores)
        ]


def test_progress_of_one_rank_is_seen_by_all(boards: list[Board]) -> None:
    before = boards[1].moved
    boards[0].progress()
    until(lambda: boards[1].moved > before, 20, "the other rank to see it")


def test_ranks_that_do_nothing_are_not_seen_to_move(boards: list[Board]) -> None:
    before = [board.moved for board in boards]
    looks = boards[0]._looks
    until(lambda: boards[0]._looks > looks + 5, 20, "some looks")
    assert [board.moved for board in boards] == before


def test_how_a_rank_ends_is_heard_once_by_all_and_the_first_end_counts(boards: list[Board], heard: list[End]) -> None:
    boards[1].tell(boards[1].own_end(2, "ended: no disk"))
    boards[0].tell(boards[0].own_end(1, "ended with a consequence"))
    boards[0].linger()
    assert [(end.rank, end.code, end.why) for end in heard] == [(1, 2, "ended: no disk")] * 2
    assert boards[0].end == boards[1].end == heard[0]


def test_where_all_ranks_are_well_there_is_no_end_to_be_found(boards: list[Board], heard: list[End]) -> None:
    assert boards[0].find_end() is None
    assert heard == []


def test_a_rank_of_another_machine_that_gives_no_sign_of_life_is_found(server: Server, heard: list[End]) -> None:
    sign_in_from_elsewhere(server, 1)
    store = connect(server)
    sign_in(store, 0)
    with closing(Board(store, 0, 0, 2, 0.05, heard.append)) as board:
        assert board.find_end() == End(1, "node7", 77, 1, KILLED)


def test_with_the_store_goes_the_rank_that_hosts_it(server: Server, heard: list[End]) -> None:
    sign_in_from_elsewhere(server, 0)
    store = connect(server)
    sign_in(store, 1)
    with closing(Board(store, 0, 1, 2, 0.05, heard.append)) as board:
        until(lambda: board._looks > 0, 20, "a look")
        server.clear()
        assert board.find_end() == End(0, "node7", 77, 1, KILLED)
    assert heard == [board.end]


def test_a_rank_of_this_machine_that_has_ended_is_found_without_anybody_asking(
    server: Server, heard: list[End], monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [connect(server) for _ in range(2)]
    sign_in(stores[0], 0)
    stores[1].set("rank 1", stores[0].get("rank 0").decode())
    stores[1].set("sign 1", "0")
    with closing(Board(stores[0], 0, 0, 2, 0.05, heard.append)) as board:
        until(lambda: board._looks > 2, 20, "some looks")
        assert board.end is None
        monkeypatch.setattr("genre_dist.parallel.processes.identity", lambda pid: "")
        until(lambda: board.end is not None, 20, "its end to be found")
        assert board.end is not None
        assert board.end.why == KILLED
