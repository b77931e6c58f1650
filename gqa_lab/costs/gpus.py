"""What it runs *on*: memory, bandwidth and arithmetic of real accelerators, each with its source."""

from dataclasses import dataclass

from gqa_lab.costs.catalogue import Catalogue, read_table
from gqa_lab.costs.shapes import check_positive


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What a data sheet promises; 1 GB is 10**9 bytes. A program reaches a part of it.

    Args:
        name: as sold.
        memory_gb: memory in GB.
        bandwidth_gb_per_s: of that memory, in GB/s.
        dense_16bit_tflops: 10**12 dense 16-bit FLOP/s with 32-bit accumulation; None where no official number is
            known. Advertised numbers are often the double of it, for sparse matrices.
        source: where the numbers were read.
        notes: other numbers in circulation.

    Raises:
        ValueError: for a number that is not greater than 0.

    Example:
        >>> round(GPUS["h100-sxm"].ridge)      # FLOPs that it can do for each byte it can read
        295
    """

    name: str
    memory_gb: int | float
    bandwidth_gb_per_s: int | float
    dense_16bit_tflops: int | float | None
    source: str
    notes: str = ""

    def __post_init__(self):
        check_positive(memory_gb=self.memory_gb, bandwidth_gb_per_s=self.bandwidth_gb_per_s)
        if self.dense_16bit_tflops is not None:
            check_positive(dense_16bit_tflops=self.dense_16bit_tflops)

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * 1e9

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return self.bandwidth_gb_per_s * 1e9

    @property
    def flops_per_s(self) -> float:
        """16-bit FLOP/s.

        Raises:
            ValueError: where no official number is known.
        """
        if self.dense_16bit_tflops is None:
            raise ValueError(f"no official 16-bit FLOP/s of {self.name} are known here; make a Gpu with your own")
        return self.dense_16bit_tflops * 1e12

    @property
    def ridge(self) -> float:
        """FLOP per byte at which reading and computing take equally long. Below it, bandwidth decides."""
        return self.flops_per_s / self.bandwidth_bytes_per_s


def _read_gpus() -> Catalogue[Gpu]:
    gpus = Catalogue()
    for row in read_table("gpus"):
        key, tflops = row.pop("key"), row.pop("dense_16bit_tflops")
        numbers = {name: float(row.pop(name)) for name in ("memory_gb", "bandwidth_gb_per_s")}
        gpus[key] = Gpu(**row, **numbers, dense_16bit_tflops=float(tflops) if tflops else None)
    return gpus


GPUS: Catalogue[Gpu] = _read_gpus()
"""28 accelerators by name, e.g. `GPUS["h100-sxm"]`; each with its source."""
