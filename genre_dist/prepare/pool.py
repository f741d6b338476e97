"""Packing shards that are planned, on several processes."""

from genre_dist.prepare.report import Report
from genre_dist.prepare.shard import Job, finished, pack_shard
from genre_dist.progress import progress_bar
from genre_dist.workers import in_processes


def pack_all(jobs: list[Job], workers: int) -> list[Report]:
    """Pack what is not finished yet; returns all reports in the order of the jobs."""
    reports = {job.file: report for job in jobs if (report := finished(job))}
    todo = [job for job in jobs if job.file not in reports]
    with progress_bar() as progress:
        task = progress.add_task("packing shards", total=len(jobs), completed=len(reports))
        for job, report in in_processes(pack_shard, todo, workers, f"packing {jobs[0].out}" if jobs else ""):
            reports[job.file] = report
            progress.advance(task)
    return [reports[job.file] for job in jobs]
