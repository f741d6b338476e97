"""Checks of installed software: Python, torch, CUDA, NCCL, DeepSpeed, the image decoders."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from genre_dist.doctor.finding import Finding

PYTHON = (3, 11)
TORCH = (2, 11)


def check_python() -> Finding:
    message = ".".join(map(str, sys.version_info[:3])) + f", {sys.executable}"
    if sys.version_info < PYTHON:
        return Finding("Python", "wrong", message, "use Python 3.11 or newer")
    return Finding("Python", "ok", message)


def check_torch() -> Finding:
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdecimal())
    if numbers < TORCH:
        return Finding("torch", "wrong", torch.__version__, "pip install 'torch>=2.11'")
    return Finding("torch", "ok", f"{torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}")


def check_cuda() -> Finding:
    """GPUs that torch can use, and GPUs that it should be able to use but cannot."""
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return Finding("CUDA", "ok", ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not Path("/dev/nvidia0").exists() and not int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
        return Finding("CUDA", "note", "no GPU here: training runs on the CPU", "fine for a try; a GPU for real runs")
    if torch.version.cuda is None:
        fix = "this torch is built without CUDA: install the build for your driver's CUDA (pytorch.org, Get started)"
    elif hidden is not None:
        fix = f"CUDA_VISIBLE_DEVICES={hidden!r} hides them: unset it, or name those to use"
    else:
        fix = "`nvidia-smi` must work here first; in a container: apptainer --nv, docker --gpus all"
    return Finding("CUDA", "wrong", "a GPU is here, but torch cannot use it", fix)


def check_nccl() -> Finding:
    if not torch.cuda.is_available():
        return Finding("NCCL", "ok", "not needed without GPUs: ranks talk over gloo")
    if not torch.distributed.is_nccl_available():
        return Finding("NCCL", "wrong", "this torch has none", "install torch's CUDA build for Linux")
    return Finding("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))


def check_deepspeed() -> Finding:
    try:
        return Finding("DeepSpeed", "ok", version("deepspeed"))
    except PackageNotFoundError:
        return Finding("DeepSpeed", "note", "not installed", "only for ZeRO: pip install 'genre_dist[deepspeed]'")


def check_decoders() -> Finding:
    """Decode an image with the decoder of training, and import the two of packing."""
    try:
        import cv2
        import simplejpeg
        from PIL import Image

        picture = np.full((16, 16, 3), 200, np.uint8)  # [16, 16, RGB]
        decoded = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(picture, quality=95))
        assert abs(int(decoded.mean()) - 200) < 8
    except (ImportError, ValueError, AssertionError) as error:
        return Finding("decoders", "wrong", str(error), "pip install simplejpeg opencv-python-headless pillow")
    message = f"simplejpeg {version('simplejpeg')}, OpenCV {cv2.__version__}, Pillow {Image.__version__}"
    return Finding("decoders", "ok", message)
