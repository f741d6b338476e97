"""The resources that concurrent stages share: the machine's GPUs, each for one stage only, or else its cores."""

import os
from collections.abc import Sequence

from genre_dist.study.tasks import Task


class Resources:
    """The free GPUs, and the number of cores of each concurrent stage. With one lane a stage has all resources.

    Raises ValueError if a stage has more ranks than there are GPUs, where there are any.
    """

    def __init__(self, parallel: int, chain: Sequence[Task], gpus: Sequence[str], cores: int) -> None:
        self.parallel, self._free, self._cores, self._has_gpus = parallel, list(gpus), cores, bool(gpus)
        if parallel > 1 and gpus:
            for task in chain:
                if _gpus_of(task) > len(gpus):
                    raise ValueError(
                        f"{task.name} has {task.processes} ranks for {len(gpus)} GPUs; with several lanes each rank "
                        "has one of its own: lower processes, or use one lane"
                    )

    def fits(self, task: Task) -> bool:
        return self.parallel == 1 or not self._has_gpus or _gpus_of(task) <= len(self._free)

    def take(self, task: Task) -> dict[str, str]:
        """Reserve a task's share until `give_back`; returns the environment variables that limit the task to it."""
        if self.parallel == 1:
            return {}
        if self._has_gpus and task.run:
            mine, self._free = self._free[: task.processes], self._free[task.processes :]
            return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
        if "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, self._cores // (self.parallel * task.processes)))}

    def give_back(self, share: dict[str, str]) -> None:
        """Release the share of a task that has ended."""
        if gpus := share.get("CUDA_VISIBLE_DEVICES"):
            self._free += gpus.split(",")


def _gpus_of(task: Task) -> int:
    return task.processes if task.run else 0


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch  # seconds, which a study with one stage at a time does not need

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[: torch.cuda.device_count()] or [str(number) for number in range(torch.cuda.device_count())]
