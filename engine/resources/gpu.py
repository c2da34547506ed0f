"""GPUs and their memory (reference 9.3).

GPU ids are strings (``"0"``), so that an allocation comes back from the log unchanged.
Memory is in GiB.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Collection

from engine.errors import ArgumentInvalid, ResourcesLacking
from engine.resources.reserving import ReservingResourceManager, checked_count, checked_number
from engine.resources.spec import Requirement, ResourceConsumerSpec, Resources

_log = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIB_PER_GIB = 1024
_NVIDIA_SMI_TIMEOUT = 30.0  # seconds; a driver that is stuck answers never


class GPUResourceManager(ReservingResourceManager):
    """Gives jobs whole GPUs, or shares of their memory.

    A job asks with ``num_of_gpus`` and, optionally, ``mem_per_gpu_in_GiB`` (0 by default: any
    number of such jobs share a GPU). It gets the first GPUs that have so much memory left,
    as ``{gpu_id: memory in GiB}``.

    Args:
        num_of_gpus: how many GPUs jobs may use; the first ones of CUDA_VISIBLE_DEVICES if it
            lists numbers, else of the host.
        mem_per_gpu_in_GiB: memory of each that jobs may use, in GiB.
        num_gpu_key: the requirement's name for the number of GPUs.
        gpu_mem_key: the requirement's name for the memory per GPU, in GiB.
        expiration_period: seconds that a reservation lasts.
        ignore_host: believe the numbers above without asking ``nvidia-smi``.
        clock: seconds that never go backwards.

    Raises:
        ArgumentTypeInvalid: a number is not one.
        ArgumentInvalid: a number is negative, or the host has fewer or smaller GPUs.
    """

    def __init__(
        self,
        num_of_gpus: int,
        mem_per_gpu_in_GiB: float,
        *,
        num_gpu_key: str = "num_of_gpus",
        gpu_mem_key: str = "mem_per_gpu_in_GiB",
        expiration_period: float = 30,
        ignore_host: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(expiration_period, clock=clock)
        number = checked_count("num_of_gpus", num_of_gpus)
        memory = checked_number("mem_per_gpu_in_GiB", mem_per_gpu_in_GiB)
        self._number_key, self._memory_key = num_gpu_key, gpu_mem_key
        self._memory = dict.fromkeys(_usable_gpus(number, memory, ignore_host), memory)

    def choose(self, requirement: Requirement, held: Collection[Resources]) -> Resources | None:
        """The first GPUs with enough memory left."""
        if self._number_key not in requirement:
            raise ArgumentInvalid(f"the resource requirement lacks {self._number_key!r}")
        number = checked_count(self._number_key, requirement[self._number_key])
        memory = checked_number(self._memory_key, requirement.get(self._memory_key, 0))
        fitting = [gpu for gpu in self._memory if self._left_on(gpu, held, memory) >= 0]
        return dict.fromkeys(fitting[:number], memory) if len(fitting) >= number else None

    def left(self, held: Collection[Resources]) -> Resources:
        """Memory left per GPU, in GiB; 0 where more is held than the site has by now."""
        return {gpu: max(0.0, self._left_on(gpu, held)) for gpu in self._memory}

    def _left_on(self, gpu: str, held: Collection[Resources], asked: float = 0) -> float:
        # One exact sum: ten jobs of 0.1 GiB fit into 1 GiB.
        used = [checked_number(f"memory of GPU {gpu}", each[gpu]) for each in held if gpu in each]
        return self._memory[gpu] - math.fsum([*used, asked])


class GPUResourceConsumer(ResourceConsumerSpec):
    """Shows an app its GPUs and no others.

    Args:
        ignore_host: do not ask ``nvidia-smi`` whether the memory is really free.
    """

    def __init__(self, ignore_host: bool = False) -> None:
        self._ignore_host = ignore_host

    def consume(self, resources: Resources) -> dict[str, str]:
        """``{"CUDA_VISIBLE_DEVICES": "0,1"}``, or ``{}`` for a job without GPUs.

        Raises:
            ResourcesLacking: a GPU is not there, or someone outside the engine uses its memory.
        """
        if not resources:
            return {}
        if not self._ignore_host:
            free = host_gpu_memory("memory.free")
            for gpu, memory in resources.items():
                if str(gpu) not in free:
                    raise ResourcesLacking(f"GPU {gpu} is not on this host")
                if free[str(gpu)] < memory:
                    raise ResourcesLacking(
                        f"GPU {gpu} has {free[str(gpu)]:.1f} GiB free, the job needs {memory:g}",
                        "see with nvidia-smi what uses it",
                    )
        return {_VISIBLE: ",".join(str(gpu) for gpu in resources)}


def host_gpu_memory(field: str = "memory.total") -> dict[str, float]:
    """GPU id -> memory in GiB, in the order of ``nvidia-smi``; empty if that cannot be asked.

    Args:
        field: ``memory.total`` or ``memory.free``.
    """
    command = ["nvidia-smi", f"--query-gpu=index,{field}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT, check=True)
        rows = [line.split(",") for line in answer.stdout.splitlines() if line.strip()]
        return {gpu.strip(): float(mebibytes) / _MIB_PER_GIB for gpu, mebibytes in rows}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _log.warning("nvidia-smi does not tell the host's GPUs: %s", error)
        return {}


def _usable_gpus(number: int, memory: float, ignore_host: bool) -> list[str]:
    if number == 0:
        return []  # a site without GPUs has no nvidia-smi to ask
    visible = _visible_gpus()
    if ignore_host:
        candidates = visible or [str(index) for index in range(number)]
    else:
        host = host_gpu_memory()
        candidates = list(host) if visible is None else [gpu for gpu in visible if gpu in host]
        small = [gpu for gpu in candidates[:number] if host[gpu] < memory]
        if small:
            raise ArgumentInvalid(
                f"mem_per_gpu_in_GiB is {memory:g}, but GPU {small[0]} has {host[small[0]]:.1f} GiB"
            )
    if len(candidates) < number:
        raise ArgumentInvalid(
            f"num_of_gpus is {number}, but this host shows {len(candidates)}",
            f"lower it, or look at nvidia-smi and {_VISIBLE}",
        )
    return candidates[:number]


def _visible_gpus() -> list[str] | None:
    """The numbers in CUDA_VISIBLE_DEVICES, or None if it is not set or names GPUs otherwise."""
    listed = os.environ.get(_VISIBLE)
    if listed is None:
        return None
    gpus = [gpu.strip() for gpu in listed.split(",") if gpu.strip()]
    if not all(gpu.isdecimal() for gpu in gpus):
        _log.warning("%s does not list numbers and is ignored", _VISIBLE)
        return None
    return list(dict.fromkeys(gpus))
