"""Jobs in the test's own process."""

from __future__ import annotations

from pathlib import Path

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.running.engines import serial
from manifold_bench.bench.running.job import job_call


def run_here(job: Job, folder: Path) -> str:
    """Run a job, as a run of the harness does in two processes; return ok or failed."""
    return str(serial.run_here(job_call(job, folder)))
