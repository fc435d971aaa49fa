"""Submit a job to the cluster of RAY_API_SERVER_ADDRESS, with the settings that img2prompt needs.

    python cluster/submit.py train lora-demo --out s3://bucket/run     # uploads this checkout
    python cluster/submit.py --image search l14-336 --out /shared/run  # runs /app of the image

It becomes `ray job submit`, whose command it prints:

- Only what a job needs is uploaded. With `--image` nothing is, and the driver runs in the group
  `driver` of the clusters in this folder, where no spot machine can be lost.
- `ray job stop` waits until the job has saved its work. Ray's default is 3 s.
- The exit code is that of the job.
"""

import argparse
import json
import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
STOP_SECONDS = 300
"""Seconds until a job that is stopped is killed: a checkpoint to an object store takes a while."""
NOT_UPLOADED = ["/tests", "/.github", "/.ci", "/out"]


def command(arguments: list[str]) -> list[str]:
    """Return the `ray job submit` command of these arguments; exits with help if they are wrong."""
    parser = argparse.ArgumentParser(
        description="Submit a job to the cluster of RAY_API_SERVER_ADDRESS.",
        epilog="Everything after the job's name goes to the job.",
    )
    parser.add_argument("--image", action="store_true", help="run the code of the image")
    parser.add_argument(
        "--id", default="", help="name of the submission, for `ray job logs` and `stop`"
    )
    parser.add_argument("--no-wait", action="store_true", help="return when it is submitted")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    runtime: dict[str, object] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    submit = ["ray", "job", "submit"]
    if given.image:
        submit += ["--entrypoint-resources", json.dumps({"driver": 1})]
        script = f"/app/jobs/{given.job}.py"
    else:
        submit += ["--working-dir", str(ROOT)]
        runtime["excludes"] = NOT_UPLOADED
        script = f"jobs/{given.job}.py"
    submit += ["--runtime-env-json", json.dumps(runtime)]
    submit += ["--submission-id", given.id or f"{given.job}-{secrets.token_hex(4)}"]
    submit += ["--no-wait"] if given.no_wait else []
    return [*submit, "--", "python", script, *given.options]


def exit_code(submission: str) -> int:
    """Return the exit code of a job that has ended; `ray job submit` knows success and failure."""
    from ray.job_submission import JobSubmissionClient  # takes seconds, and only failures need it

    info = JobSubmissionClient().get_job_info(submission)
    return (info and info.driver_exit_code) or 1


def main() -> None:
    submit = command(sys.argv[1:])
    if "RAY_API_SERVER_ADDRESS" not in os.environ:
        sys.exit("RAY_API_SERVER_ADDRESS is not set; example: http://127.0.0.1:8265")
    print(shlex.join(submit), file=sys.stderr, flush=True)
    ray = str(Path(sys.executable).with_name("ray"))
    failed = subprocess.run([ray, *submit[1:]], check=False).returncode
    if failed and "--no-wait" not in submit[: submit.index("--")]:
        failed = exit_code(submit[submit.index("--submission-id") + 1])
    sys.exit(failed)


if __name__ == "__main__":
    main()
