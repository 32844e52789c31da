"""Many measurements from one file: models x backends x recipes x drafters x draft lengths, in any number of sittings.

    out: build/sweep            # bundles/ and points/ are made there; a Ray cluster must share this folder
    models:                     # or `bundles:`, a list of folders that are there already
      - name: tiny              # without `target` and `drafter`: the embedded pair
    backends: [litert]
    recipes: [mixed, w8]
    drafters: [mtp]
    lengths: [1, 2, 4, 8]
    per_domain: 4
    max_tokens: 96
    threads: 1

Each point is a command of its own, `pocketdraft bench` of one draft length beside plain decoding: one that dies takes
nothing with it. A point whose file is there is done, and is not run again.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from .errors import PocketdraftError, first_fault
from .manifest import MANIFEST_NAME, Backend

COMMAND = (sys.executable, "-c", "from pocketdraft.runtime.cli import main; main()")
Where = Literal["local", "ray"]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    target: Path | None = None
    drafter: Path | None = None


class Sweep(BaseModel):
    """See the module. Paths are relative to the file that they stand in."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    out: Path
    models: tuple[Model, ...] = ()
    bundles: tuple[Path, ...] = ()
    backends: tuple[Backend, ...] = ("litert",)
    recipes: tuple[str, ...] = ("mixed",)
    drafters: tuple[str, ...] = ("mtp",)
    lengths: tuple[PositiveInt, ...] = (1, 2, 4)
    prompts: Path | None = None
    per_domain: PositiveInt = 4
    max_tokens: PositiveInt = 96
    temperature: NonNegativeFloat = 0.0
    threads: NonNegativeInt = 1


@dataclass(frozen=True)
class Job:
    """A command of `pocketdraft` and the file by which one sees that it is done."""

    name: str
    arguments: tuple[str, ...]
    makes: Path

    @property
    def done(self) -> bool:
        return self.makes.exists()

    @property
    def folder(self) -> Path:
        """Where its file comes to lie, or its bundle, which makes a folder of its own."""
        return self.makes.parent.parent if self.makes.name == MANIFEST_NAME else self.makes.parent


@dataclass(frozen=True)
class Outcome:
    """`error` is what the command said last, None where it has done its work."""

    job: Job
    error: str | None


def read_sweep(path: Path) -> Sweep:
    """Raises PocketdraftError for a file that is missing, no YAML or has keys that are not known."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise PocketdraftError(
            "sweep needs PyYAML, which is not installed: pip install 'pocketdraft[sweep]'."
        ) from error
    if not path.is_file():
        raise PocketdraftError(f"There is no file {path}; write one, the form is in `pocketdraft sweep --help`.")
    try:
        found = Sweep.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise PocketdraftError(f"{path} is no YAML ({' '.join(str(error).split())}); mend it.") from error
    except ValidationError as error:
        raise PocketdraftError(f"{path} is no sweep, at {first_fault(error)}; mend it.") from error
    if bool(found.models) == bool(found.bundles):
        what = "both models and bundles" if found.models else "neither models nor bundles"
        raise PocketdraftError(f"{path} has {what}; give one of the two.")
    return _relative(found, path.parent)


def exports(sweep: Sweep) -> list[Job]:
    """One for each bundle that the points need, with a verify graph for each length."""
    drafts = ",".join(map(str, sweep.lengths))
    jobs = []
    for model, backend, recipe in itertools.product(sweep.models, sweep.backends, sweep.recipes):
        out = _bundle(sweep, model, backend, recipe)
        chosen = ["--target", str(model.target)] if model.target else []
        chosen += ["--drafter", str(model.drafter)] if model.drafter else []
        arguments = ("export", *chosen, "--backend", backend, "--recipe", recipe, "--drafts", drafts, "--out", str(out))
        jobs.append(Job(f"export {out.name}", (*arguments, "--quiet"), out / MANIFEST_NAME))
    return jobs


def points(sweep: Sweep) -> list[Job]:
    """One for each bundle, drafter and length."""
    bundles = [
        *sweep.bundles,
        *(_bundle(sweep, *one) for one in itertools.product(sweep.models, sweep.backends, sweep.recipes)),
    ]
    jobs = []
    for bundle, drafter, length in itertools.product(bundles, sweep.drafters, sweep.lengths):
        given = {
            "--drafter": drafter,
            "--lengths": length,
            "--per-domain": sweep.per_domain,
            "--max-tokens": sweep.max_tokens,
            "--temperature": sweep.temperature,
            "--threads": sweep.threads,
            **({"--prompts": sweep.prompts} if sweep.prompts else {}),
        }
        options = tuple(str(word) for pair in given.items() for word in pair)
        name = f"{bundle.name} {drafter} {length}"
        # Other options make another point.
        key = hashlib.sha256(repr((str(bundle), options)).encode()).hexdigest()[:8]
        makes = sweep.out / "points" / f"{_plain(name)}-{key}.json"
        jobs.append(Job(name, ("bench", str(bundle), *options, "--out", str(makes), "--no-parity", "--quiet"), makes))
    return jobs


def run(jobs: Sequence[Job], where: Where, workers: int) -> Iterator[Outcome]:
    """All that is not done, as they end. A job that fails is an outcome like any other."""
    due = [job for job in jobs if not job.done]
    for job in due:
        job.folder.mkdir(parents=True, exist_ok=True)
    yield from (_on_ray if where == "ray" else _locally)(due, workers)


def work(command: Sequence[str]) -> tuple[int, str]:
    """Exit status, and the last line of standard error."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return done.returncode, next(iter(done.stderr.strip().splitlines()[::-1]), "")


def _locally(jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(work, (*COMMAND, *job.arguments)): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield _outcome(futures[future], *future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ray(jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    """On the cluster that RAY_ADDRESS names, else on one of this machine's own, of `workers` CPUs."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PocketdraftError("--on is ray, which is not installed: pip install 'pocketdraft[ray]'.") from error
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address=address, num_cpus=None if address else workers, log_to_driver=False, logging_level="ERROR")
    try:
        remote: Callable[..., object] = ray.remote(num_cpus=1, max_retries=0)(work).remote
        waiting = {remote((*COMMAND, *job.arguments)): job for job in jobs}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                status, said = ray.get(ready)
            except ray.exceptions.RayError as error:
                status, said = -1, " ".join(str(error).split())
            yield _outcome(job, status, said)
    finally:
        ray.shutdown()


def _outcome(job: Job, status: int, said: str) -> Outcome:
    if job.done:  # a bench whose tokens differ ends with 1, and its figures say so
        return Outcome(job, None)
    return Outcome(job, said or f"it ended with status {status}")


def _bundle(sweep: Sweep, model: Model, backend: Backend, recipe: str) -> Path:
    lengths = "-".join(map(str, sweep.lengths))
    return sweep.out / "bundles" / _plain(f"{model.name} {backend} {Path(recipe).stem} {lengths}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _relative(found: Sweep, folder: Path) -> Sweep:
    def moved(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    models = tuple(
        model.model_copy(update={"target": moved(model.target), "drafter": moved(model.drafter)})
        for model in found.models
    )
    bundles = tuple(folder / bundle for bundle in found.bundles)
    changed = {"out": folder / found.out, "models": models, "bundles": bundles, "prompts": moved(found.prompts)}
    return found.model_copy(update=changed)
