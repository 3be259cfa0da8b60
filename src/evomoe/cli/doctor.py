"""``evomoe doctor``: what is installed here, what runs on what, and what is wrong with it. A bug report needs all of it."""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evomoe.support.errors import broken_torchvision
from evomoe.support.processes import check_processes
from evomoe.support.version import __version__

_ROOM = 20
"""GB that a 7B model and its checkpoints need at the least."""
_VARIABLES = re.compile(r"(OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES|HF_\w+|TRANSFORMERS_\w+|EVOMOE_\w+|PYTORCH_\w+|NCCL_\w+)")
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")


@dataclass
class Findings:
    """What was found: lines to read, and sentences on what is wrong."""

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def examine() -> Findings:
    """Looks at this machine and this environment; it installs, downloads and writes nothing."""
    found = Findings()
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_memory()}"
    found.lines.append(f"evomoe {__version__}, Python {platform.python_version()}, {machine}")
    _packages(found)
    _devices(found)
    _folders(found)
    try:
        check_processes()
    except ValueError as error:
        found.wrong.append(str(error).rstrip("."))
    variables = sorted(name for name in os.environ if _VARIABLES.fullmatch(name))
    shown = [f"{name}={'(set)' if _SECRET.search(name) else os.environ[name]}" for name in variables]
    found.lines.append(f"environment: {', '.join(shown) or 'nothing that matters is set'}")
    return found


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return ""
    return f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory"


_BRINGS = {
    "all": "every extra but deepspeed",
    "app": "evomoe app",
    "deepspeed": "ZeRO",
    "demo": "evomoe demo and its pictures",
    "lora": "stageN.lora",
    "mini": "the mini world and the paper's tables",
    "plots": "evomoe plot and the report's pictures",
    "serve": "evomoe serve",
    "video": "videos; pictures for SmolVLM and Qwen-VL, whose processors need it",
    "xlsx": "MMBench's answers as Excel files",
}
"""What each extra is for."""


def _requirements() -> Iterator[tuple[str, Requirement]]:
    """What the package asks for, by extra; "" for what it always needs."""
    for text in importlib.metadata.requires("evomoe") or ():
        requirement = Requirement(text)
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", str(requirement.marker or ""))
        if canonicalize_name(requirement.name) != "evomoe":
            yield extra[1] if extra else "", requirement


def _packages(found: Findings) -> None:
    """The versions of what is always needed, and which extras are whole."""
    extras: dict[str, list[str]] = {}
    versions = []
    for extra, requirement in _requirements():
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if not extra:
            versions.append(f"{requirement.name} {version or 'missing'}")
            if not fits:
                found.wrong.append(f"{requirement.name} is {version or 'missing'}: pip install '{_bare(requirement)}'")
        elif extra != "dev":
            extras.setdefault(extra, []).extend([] if fits else [_bare(requirement)])
    found.lines.append(f"packages: {', '.join(versions)}")
    for extra, missing in extras.items():
        brings = f" ({_BRINGS[extra]})" if missing and extra in _BRINGS else ""
        found.lines.append(f"extra {extra}{brings}: {'there' if not missing else 'lacks ' + ', '.join(missing)}")
    if _version("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception as error:  # whatever it raises, transformers would meet it too
            found.wrong.append(broken_torchvision(error))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _bare(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _devices(found: Findings) -> None:
    """What computes, and whether it does."""
    try:
        import torch

        from evomoe.support.device import best_device, device_name
    except ImportError as error:
        found.wrong.append(f"torch cannot be imported: {error}")
        return
    device = best_device()
    count = torch.accelerator.device_count() if device.type != "cpu" else 1
    names = f"{count} x {device_name()}" if device.type != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    found.lines.append(f"device: {names}, torch {torch.__version__}")
    if device.type == "cpu" and Path("/dev/nvidia0").exists():
        found.wrong.append("there is an NVIDIA GPU, and this torch cannot use it: install a CUDA build that fits the driver")
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        found.wrong.append(f"{device.type} does not compute: {str(error).splitlines()[0]}")


def _folders(found: Findings) -> None:
    """Where models and the mini world are kept, and how much room there is."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from evomoe import mini

    for what, folder in (
        ("models and data of the hub", Path(HF_HUB_CACHE)),
        ("the mini world", mini.cache()),
        ("here", Path.cwd()),
    ):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 1e9
        found.lines.append(
            f"folder for {what}: {folder}, {free:.0f} GB free" if what != "here" else f"this folder: {free:.0f} GB free"
        )
        if not there.is_dir():
            found.wrong.append(f"{there} is a file, and {folder} is to be a folder")
        elif not os.access(there, os.W_OK):
            found.wrong.append(f"{there} cannot be written to")
        elif free < _ROOM:
            found.wrong.append(f"{there} has {free:.1f} GB left; a model of 7B and its checkpoints take {_ROOM} GB and more")
