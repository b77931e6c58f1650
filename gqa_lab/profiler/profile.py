"""`DecodeProfile`: what a profile says, in fields; as a table, as JSON, as a trace, as a figure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gqa_lab.profiler.fit import Fit, percentile
from gqa_lab.profiler.meter import Copy
from gqa_lab.profiler.regions import Event
from gqa_lab.profiler.report import chrome_trace, flags_of, profile_table

SCHEMA = "gqa_lab.profile/1"


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """Bytes of one layer's cache.

    Args:
        predicted_bytes: what `costs` says its buffers take; None for a model that it does not know.
        allocated_bytes: what they take.
        used_bytes: what of them holds tokens.
        read_bytes: what one step reads of them, copies included; None where the meter cannot see the step.
    """

    predicted_bytes: int | None
    allocated_bytes: int
    used_bytes: int
    read_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class SequenceBytes:
    """Bytes of one sequence in all layers: `n_tokens` of `n_slots` are in use."""

    n_tokens: int
    n_slots: int
    used_bytes: int
    wasted_bytes: int

    @property
    def occupancy(self) -> float:
        """Part of its bytes that holds tokens."""
        return self.used_bytes / (self.used_bytes + self.wasted_bytes)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this machine was measured to do at most: bytes read and FLOPs of a matrix product, each per second."""

    read_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One context of the sweep: the bytes that `costs` says a step reads there, and the median of its seconds."""

    kv_len: int
    read_bytes: int
    seconds: float
    flagged: bool = False


@dataclass(frozen=True, kw_only=True)
class Fits:
    """What fits into this memory beside the weights.

    Args:
        memory_bytes: of the device; `reserve` of it is left to everything else.
        held_bytes: the weights.
        batch_size: sequences of the longest profiled length.
        kv_len: tokens of each sequence of the profiled batch, at most the model's own.
        tried: it was allocated and freed again (CUDA), not computed.
    """

    memory_bytes: int
    reserve: float
    held_bytes: int
    batch_size: int
    kv_len: int
    tried: bool


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What the fitted line says of another cache: only the bytes of the cache change."""

    what: str
    cache_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DecodeProfile:
    """What `profile_decode` returns. None is what was not measured or is not known.

    Args:
        environment: device, versions, commit and date of the measurement.
        model: what was profiled, `how` by which attention and step.
        dtype: of the weights and of the cache.
        sizes: n_layers, n_heads, n_kv_heads, head_dim, d_model, vocab_size, max_seq_len, sliding_window, kind.
        kv_lens: tokens of each sequence when the bytes are counted, and the length of its prompt.
        max_seq_len: tokens of each sequence that its buffers have room for.
        new_tokens, warm_up_tokens: decode steps that were timed, and steps before them that were not.
        layers, sequences, copies: the cache in bytes after `kv_lens` tokens.
        weights_predicted_bytes, weights_held_bytes: all weights, by `costs` and in memory.
        weights_read_bytes, cache_read_bytes: what a step reads by `costs`; of the cache, the mean of the timed steps.
        step_read_bytes, step_written_bytes: what the meter counted in one step, everything included.
        first_token_s: seconds of each reading of the prompts; empty where none was asked for.
        token_s: seconds of each decode step, until its token is known on the host.
        device_token_s: what of that the GPU was at work, by its own events; None on a CPU.
        clock_s: seconds of the two readings of the clock.
        split_token_s: seconds of each step of the split pass, which is slower.
        split_s: seconds per token by region of that pass, its own sum `split_total_s`; on CUDA time of the host only.
        split_by_layer_s: the same by layer.
        region_read_bytes: what the meter counted, by region.
        ceilings: measured.
        floor_s: the seconds below which a step cannot come at those ceilings.
        prefill_flops: matmul FLOPs of the prompts, by `costs`.
        crossover_tokens: tokens per sequence beyond which a step reads more cache than weights.
        sweep, fit: other contexts, and the line through them.
        fits, what_if: computed from all that.
        notes: what to know before believing the numbers.
        events: regions of the split pass, for the trace; not kept in JSON.
    """

    environment: dict[str, str]
    model: str
    how: str
    device: str
    dtype: str
    sizes: dict[str, Any]
    kv_lens: list[int]
    max_seq_len: int
    new_tokens: int
    warm_up_tokens: int
    layers: list[LayerBytes]
    sequences: list[SequenceBytes]
    copies: list[Copy]
    weights_predicted_bytes: int | None
    weights_held_bytes: int
    weights_read_bytes: int | None
    cache_read_bytes: float | None
    step_read_bytes: int | None
    step_written_bytes: int | None
    first_token_s: list[float]
    token_s: list[float]
    device_token_s: list[float] | None
    clock_s: float
    split_token_s: list[float]
    split_s: dict[str, float]
    split_by_layer_s: list[dict[str, float]]
    region_read_bytes: dict[str, int]
    ceilings: Ceilings
    floor_s: float | None
    prefill_flops: int | None
    crossover_tokens: int | None
    sweep: list[SweepPoint]
    fit: Fit | None
    fits: Fits | None
    what_if: list[WhatIf]
    notes: list[str]
    events: list[Event] = field(default_factory=list, repr=False, compare=False)

    @property
    def predicted_bytes(self) -> int | None:
        """Of the whole cache."""
        return None if self.layers[0].predicted_bytes is None else sum(row.predicted_bytes for row in self.layers)

    @property
    def allocated_bytes(self) -> int:
        """Of the whole cache."""
        return sum(row.allocated_bytes for row in self.layers)

    @property
    def used_bytes(self) -> int:
        """Of the whole cache."""
        return sum(row.used_bytes for row in self.layers)

    @property
    def read_bytes(self) -> int | None:
        """Of the whole cache, in one step."""
        return None if self.layers[0].read_bytes is None else sum(row.read_bytes for row in self.layers)

    @property
    def occupancy(self) -> float:
        """Part of the allocated bytes that holds tokens."""
        return self.used_bytes / self.allocated_bytes

    @property
    def step_s(self) -> float:
        """The median of the decode steps."""
        return percentile(self.token_s, 50)

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences together."""
        return len(self.kv_lens) / self.step_s

    @property
    def roofline_share(self) -> float | None:
        """The floor divided by what a step took: 1 is as fast as the measured ceilings allow."""
        return None if self.floor_s is None else self.floor_s / self.step_s

    @property
    def split_total_s(self) -> float | None:
        """Seconds per token of the split pass: the sum of its regions and of the rest."""
        return sum(self.split_s.values()) if self.split_s else None

    @property
    def slowdown(self) -> float | None:
        """How many times slower the split pass was than the totals."""
        return self.split_total_s / self.step_s if self.split_s else None

    @property
    def flags(self) -> list[str]:
        """What to look at first: copies, waste, and numbers that cannot be."""
        return flags_of(self)

    def table(self) -> str:
        """Returns it for people, in lines of fixed width."""
        return profile_table(self)

    def record(self) -> dict[str, Any]:
        """Returns it as plain numbers, lists and dictionaries, with `schema` and `environment`."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "events"}
        return {"schema": SCHEMA, **json.loads(json.dumps(said, default=asdict)), "flags": self.flags}

    def to_json(self) -> str:
        """Returns `record()` as text; `from_json` reads it."""
        return json.dumps(self.record(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "DecodeProfile":
        """Returns the profile of a JSON text, without the events of its trace.

        Raises:
            ValueError: for a text of another schema.
        """
        said = json.loads(text)
        if said.pop("schema", None) != SCHEMA:
            raise ValueError(f"this is no profile of the schema {SCHEMA}; write it with DecodeProfile.to_json()")
        said = {f.name: said[f.name] for f in fields(cls) if f.name in said}
        made = {
            "ceilings": Ceilings(**said["ceilings"]),
            "fit": said["fit"] and Fit(**said["fit"] | {"flagged": tuple(said["fit"]["flagged"])}),
            "fits": said["fits"] and Fits(**said["fits"]),
        }
        rows = dict(layers=LayerBytes, sequences=SequenceBytes, copies=Copy, sweep=SweepPoint, what_if=WhatIf)
        made |= {name: [kind(**row) for row in said[name]] for name, kind in rows.items()}
        return cls(**said | made)

    def to_chrome_trace(self) -> str:
        """Returns the split pass as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, JSON text.

        Raises:
            ValueError: for a profile without events: one read from JSON, or whose split pass saw no region.
        """
        return chrome_trace(self)

    def plot(self):
        """Returns the Axes of the time per token against the context: the predicted floor a line, the measurements dots."""
        from gqa_lab.plots.profile import step_by_context

        return step_by_context(self.record())


def middle(values: Sequence[float]) -> list[int]:
    """Returns the positions of the middle half of the values: what is left without the fastest and slowest quarter.

    Example:
        >>> middle([5.0, 1.0, 9.0, 2.0])
        [0, 3]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    cut = len(values) // 4
    return sorted(order[cut : len(values) - cut])
