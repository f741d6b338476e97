"""README "Your own data", run as it stands there: products of one category each, X-rays of patients with findings."""

import json
import re
import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import TESTS, Processes
from once import tell

from genre_dist.stream.manifest import load_manifest

README = (TESTS.parent / "README.md").read_text()
SECTION = README[README.index("## Your own data") : README.index("## From TMDB to shards")]
COMMANDS = re.findall(r"^    (\S.*)$", SECTION, flags=re.MULTILINE)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder in which every command of the section was run, each a process of its own."""
    tell(pytestconfig, "README's own data: fourteen commands as typed: about a minute")
    folder = tmp_path_factory.mktemp("own")
    (folder / "configs").symlink_to(TESTS.parent / "configs")
    assert len(COMMANDS) == 14
    for number, command in enumerate(COMMANDS):
        program, *words = shlex.split(command)
        with Processes(folder / f"log{number}") as process:
            process.start(["env", "-C", str(folder), str(BIN / program), *words])
            process.succeed(120)
    return folder


def test_products_are_trained_on_two_ranks_whether_or_not_they_have_an_image(project: Path) -> None:
    manifest = load_manifest(project / "products" / "shards")
    figures = json.loads((project / "runs" / "products" / "metrics-test.json").read_text())
    assert figures["samples"] == manifest.samples("test") > manifest.samples("test", ("image",))
    assert set(figures["by_fields"]) == {"text and image and numbers", "only text and numbers"}
    assert figures["accuracy"] > 0.6
    assert figures["left_out"] == 0
    ids = pq.read_table(project / "runs" / "products" / "predictions-test.parquet")["id"].to_pylist()
    assert all(re.fullmatch(r"sku-\d+", id) for id in ids)


def test_a_csv_is_predicted_under_its_own_ids(project: Path) -> None:
    rows = pq.read_table(project / "products" / "predictions" / "part-000000.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"sku-{number}" for number in range(1, 201)]
    assert all(row["left_out"] is None and len(row["labels"]) == 1 for row in rows)
    assert all(abs(sum(row["probabilities"]) - 1) < 1e-3 for row in rows)


def test_reports_and_explanations_speak_of_the_products(project: Path) -> None:
    for page in ("report", "explanation"):
        html = (project / "products" / page / "index.html").read_text()
        text = re.sub(r"(?s)<(style|script).*?</\1>|<[^>]+>", " ", html)
        assert "sku-" in text or page == "report"
        assert "shelves" in text
        assert not re.search(r"genre(?!.dist)|film|poster", text)
    told = json.loads((project / "products" / "explanation" / "explanation.json").read_text())
    assert set(told["ablation"]["loss_without"]) == {"text", "image", "numbers"}


def test_no_patient_lies_in_two_splits_and_findings_are_any_number(project: Path) -> None:
    catalogue = pq.read_table(project / "xrays" / "catalogue" / "samples.parquet").to_pylist()
    patient_of = {row["id"]: row["split_by"] for row in catalogue}
    patients = {}
    for split in ("val", "test"):
        table = pq.read_table(project / "runs" / "xrays" / f"predictions-{split}.parquet").to_pylist()
        patients[split] = {patient_of[row["id"]] for row in table}
        assert {sum(row["labels"]) for row in table} > {0, 1}
    assert not patients["val"] & patients["test"]
    assert len(set(patient_of.values())) < len(patient_of)
