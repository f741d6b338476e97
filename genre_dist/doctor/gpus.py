"""Checks of the GPUs and their prerequisites: kernels, memory, NVIDIA's library, a compiler."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from genre_dist.doctor.finding import Finding
from genre_dist.parallel.gpu import choose_device, crowded, gpu_problem, is_slice


def check_gpus() -> list[Finding]:
    """Findings for each GPU that torch sees, and for their prerequisites; none without GPUs."""
    if not torch.cuda.is_available():
        return []
    findings = [_check_gpu(number) for number in range(torch.cuda.device_count())]
    gpu_problem(choose_device())  # restores the current one
    return [*findings, _check_nvml(), _check_compiler()]


def _check_gpu(number: int) -> Finding:
    device, name = torch.device("cuda", number), f"GPU {number}"
    if problem := gpu_problem(device):
        return Finding(name, "wrong", problem)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    message = (
        f"{properties.name}, sm_{properties.major}{properties.minor}, kernels run, {free / 2**30:.1f} of "
        f"{total / 2**30:.1f} GiB free"
    )
    notes = []
    if crowded(device):
        notes.append("other processes hold memory: `nvidia-smi` lists them; micro-batches are planned for what is free")
    if is_slice(properties.name):
        notes.append("a slice of a GPU (MIG): ranks on slices of one GPU talk over gloo, slowly")
    if properties.major < 8:
        notes.append("it has no bf16: train.precision is fp32 or auto, which takes fp32")
    return Finding(name, "note" if notes else "ok", message, "; ".join(notes))


def _check_nvml() -> Finding:
    """Whether the utilisation of a GPU can be read, which runs then log."""
    try:
        percent = torch.cuda.utilization()
    except ImportError:
        return Finding("NVML", "note", "not installed: runs do not tell the GPU's load", "pip install nvidia-ml-py")
    except Exception as error:  # NVML's own errors derive from nothing narrower
        return Finding("NVML", "note", f"{error}: runs do not tell the GPU's load", "on slices of GPUs: expected")
    return Finding("NVML", "ok", f"the GPU's load can be read: {percent} %")


def _check_compiler() -> Finding:
    """The compiler (CC, gcc or clang) and Python.h, with which torch.compile's Triton builds kernel launchers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    fix = "only for train.compile: "
    if compiler is None:
        return Finding("C compiler", "note", "no gcc or clang here", fix + "install one, or name one in CC")
    if not shutil.which(compiler):
        return Finding("C compiler", "note", f"CC={compiler} is no program here", fix + "name one, or unset CC")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return Finding("C compiler", "note", f"{compiler}, but {header} is missing", fix + "install python3-dev")
    return Finding("C compiler", "ok", compiler)
