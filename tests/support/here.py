"""Jobs in the test's own process: the judge in its thread, the attack in another, with the channel between them."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

from manifold_bench.bench.planning.jobs import Job
from manifold_bench.bench.running.attacking import serve_attack
from manifold_bench.bench.running.engines.channel import Channel
from manifold_bench.bench.running.job import run_job


def run_here(job: Job, folder: Path) -> str:
    """Run a job, as a run of the harness does in two processes; return ok or failed."""
    if job.attack is None:
        return run_job(job, folder)
    mine, theirs = Pipe()
    attack = Thread(target=serve_attack, args=(job, folder, Channel(theirs)))
    attack.start()
    try:
        return run_job(job.for_judge, folder, Channel(mine))
    finally:
        mine.close()
        attack.join()
