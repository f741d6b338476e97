"""Checks of the machine and the job: disk, shared memory, limits, network, SLURM, shards and weights."""

import fcntl
import os
import resource
import shutil
import socket
import struct
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from genre_dist.doctor.finding import Finding

GIB = 2**30
LITTLE_DISK = 20 * GIB
"""ResNet152 with optimizer states is 0.8 GB a checkpoint: two kept, one being written, and the run's files."""
NO_DISK = 3 * GIB
LITTLE_SHM = GIB
"""NCCL uses some tens of MB a pair of ranks; Docker's default of 64 MB is too little for several GPUs."""
FEW_FILES = 1024
"""Readers hold at most a quarter of these open; a low limit makes them reopen shards."""


def check_disk(folder: Path) -> Finding:
    """Free space of the folder of runs."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    message = f"{free / GIB:.0f} GiB free for {folder}"
    if not os.access(existing, os.W_OK):
        return Finding("disk", "wrong", f"{existing} cannot be written to", "choose another --runs folder")
    if free < NO_DISK:
        return Finding("disk", "wrong", message, "free some space, or choose another --runs folder")
    return (
        Finding("disk", "note", message, "checkpoint.keep=1 keeps less") if free < LITTLE_DISK else ok("disk", message)
    )


def check_shm(folder: Path = Path("/dev/shm"), ranks: int = 1) -> Finding:
    if not folder.is_dir():
        return Finding("shared memory", "note", f"{folder} is missing", "NCCL wants it; in a container: mount it")
    size = shutil.disk_usage(folder).total
    message = f"{size / GIB:.1f} GiB in {folder}"
    if size < LITTLE_SHM:
        status = "wrong" if ranks > 1 else "note"
        return Finding("shared memory", status, message, "in a container: docker run --shm-size=8g, or --ipc=host")  # type: ignore[arg-type]
    return ok("shared memory", message)


def check_open_files() -> Finding:
    """The hard limit of open files, to which training raises the soft one."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = "without limit" if most == resource.RLIM_INFINITY else f"at most {most:,}"
    message += f" (now {soft:,}; readers raise it)" if soft not in (most, resource.RLIM_INFINITY) else ""
    if most != resource.RLIM_INFINITY and most < FEW_FILES:
        fix = f"raise the hard limit to {FEW_FILES:,} or more: docker run --ulimit nofile=65536, or LimitNOFILE="
        return Finding("open files", "wrong", message, fix)
    return ok("open files", message)


def check_network(nodes: int = 1, environment: Mapping[str, str] = os.environ) -> Finding:
    """The network of the ranks: that of NCCL_ and GLOO_SOCKET_IFNAME, else that of this machine's name."""
    networks = interfaces()
    listed = ", ".join(f"{name} {address}" for name, address in networks.items())
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for wanted in filter(None, environment.get(variable, "").lstrip("=^").split(",")):
            if not environment[variable].startswith("^") and not any(name.startswith(wanted) for name in networks):
                return Finding(
                    "network", "wrong", f"{variable}={wanted} is no network here ({listed})", f"export {variable}=NAME"
                )
    chosen = environment.get("GLOO_SOCKET_IFNAME") or environment.get("NCCL_SOCKET_IFNAME")
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = ""
    message = f"{listed}; " + (f"chosen: {chosen}" if chosen else f"{socket.gethostname()} is {address or 'unknown'}")
    if not chosen and (not address or address.startswith("127.")):
        fix = "on several nodes: export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, the network that joins them"
        return Finding("network", "wrong" if nodes > 1 else "note", message, fix)
    return ok("network", message)


def interfaces() -> dict[str, str]:
    """Name -> IPv4 address of the networks that are up."""
    networks = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(opened.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:
                continue
            networks[name] = socket.inet_ntoa(reply[20:24])
    return networks


def check_slurm(environment: Mapping[str, str] = os.environ) -> Finding:
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        submits = shutil.which("sbatch") is not None
        return ok("SLURM", "not in a job; sbatch is here" if submits else "not in a job")
    nodes, gpus = environment.get("SLURM_JOB_NUM_NODES", "?"), environment.get("SLURM_GPUS_ON_NODE", "0")
    message = (
        f"job {job}: {nodes} nodes, {gpus} GPUs on this one, {environment.get('SLURM_CPUS_PER_TASK', '?')} cores a task"
    )
    tasks = environment.get("SLURM_NTASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "1").split("(")[0]
    if tasks != "1":
        return Finding(
            "SLURM", "wrong", f"{message}, {tasks} tasks a node", "--ntasks-per-node=1: torchrun makes the ranks"
        )
    if gpus == "0":
        return Finding("SLURM", "note", message, "the job asked for no GPUs: --gpus-per-node=N")
    return ok("SLURM", message)


def check_shards(folder: Path) -> Finding:
    from genre_dist.storage import inside
    from genre_dist.stream.manifest import load_manifest

    try:
        manifest = load_manifest(folder)
    except (ValueError, OSError) as error:
        return Finding("shards", "wrong", str(error), "pack on this machine, or name the folder with --shards")
    paths = {shard.file: inside(folder, shard.file) for shard in manifest.shards}
    lost = [file for file, path in paths.items() if isinstance(path, Path) and not path.is_file()]
    if lost:
        return Finding("shards", "wrong", f"{folder}: {len(lost)} files are missing: {lost[0]} ...", "copy them here")
    count = sum(shard.samples for shard in manifest.shards)
    return ok("shards", f"{folder}: {count:,} {manifest.declared.samples}")


def check_weights(arch: str = "resnet152", seconds: float = 3.0) -> Finding:
    """ImageNet weights of a torchvision model: on this machine, or downloadable."""
    import torch
    from torchvision.models import get_model_weights

    weights = get_model_weights(arch).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if file.is_file():
        return ok("weights", f"{arch}: {file}")
    try:
        with urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD"), timeout=seconds):
            return ok("weights", f"{arch}: will be fetched when first needed")
    except OSError:
        fix = f"where there is a network: fetch {weights.url} to {file}; or model.poster.weights=FILE, or none"
        return Finding("weights", "note", f"{arch}: ImageNet weights are not here and out of reach", fix)


def ok(name: str, message: str) -> Finding:
    return Finding(name, "ok", message)
