"""`DecodeProfile`: what a profile says, in fields; as a table, as JSON, as a trace, as a figure."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gqa_lab.profiler.fit import Fit, percentile
from gqa_lab.profiler.meter import Copy
from gqa_lab.profiler.regions import Event
from gqa_lab.profiler.report import chrome_trace, flags_of, profile_table

SCHEMA = "gqa_lab.profile/1"


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer's cache; None is what `costs` does not know, or what the meter cannot see."""

    predicted_bytes: int | None  # what its buffers should take
    allocated_bytes: int  # what they take
    used_bytes: int  # what of it holds tokens
    read_bytes: int | None  # what one step reads of keys and values, and of copies of them


@dataclass(frozen=True)
class SequenceBytes:
    """Bytes of one sequence in all layers: `n_tokens` of `n_slots` are in use."""

    n_tokens: int
    n_slots: int
    used_bytes: int
    wasted_bytes: int


@dataclass(frozen=True)
class Ceilings:
    """What this machine was measured to do at most, in a second: bytes read, FLOPs of a matrix product."""

    read_bytes_per_s: int | float
    flops_per_s: int | float


@dataclass(frozen=True)
class SweepPoint:
    """One context: the bytes that `costs` says a step reads there, and the median of its seconds."""

    kv_len: int
    read_bytes: int
    seconds: float
    flagged: bool = False  # above the ceiling, and not in the line


@dataclass(frozen=True)
class Fits:
    """What fits into `memory_bytes` beside the weights: computed with a `reserve`, or (CUDA) allocated and freed."""

    memory_bytes: int
    reserve: float
    batch_size: int  # sequences of the longest profiled length
    kv_len: int  # tokens of each sequence of the profiled batch, at most what the model was made for
    tried: bool


@dataclass(frozen=True)
class WhatIf:
    """What the fitted line says of another cache."""

    what: str
    cache_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DecodeProfile:
    """What `profile_decode` returns. None is what was not measured or is not known; `_s` are seconds."""

    environment: dict[str, str]  # device, versions, commit and date
    model: str
    how: str  # attention and step
    device: str
    dtype: str
    sizes: dict[str, Any]  # of the model: n_layers, n_heads, n_kv_heads, head_dim, kind ...
    kv_lens: list[int]  # tokens of each prompt, and of each sequence when its bytes are counted
    warm_up_tokens: int  # steps before the timed ones
    # bytes: one step under the meter, never timed
    layers: list[LayerBytes]
    sequences: list[SequenceBytes]
    copies: list[Copy]  # of keys and values, in one step
    step_read_bytes: int | None  # of everything
    step_written_bytes: int | None
    region_read_bytes: dict[str, int]
    weights_held_bytes: int
    # totals: two readings of the clock per token
    first_token_s: list[float]  # of each reading of the prompts
    token_s: list[float]  # of each decode step, until its token is known on the host
    device_token_s: list[float] | None  # on CUDA between events around the step: the GPU's work and its pauses
    clock_s: float  # of two readings of the clock
    # split: the clock around every region; on CUDA time of the host only
    split_s: dict[str, float]  # per token by region; with "unattributed" they add up to `split_total_s`
    split_by_layer_s: list[dict[str, float]]
    split_used_bytes: list[int]  # of the cache, after each of its steps
    # ceilings: measured
    ceilings: Ceilings
    # predicted by `costs`
    weights_predicted_bytes: int | None  # held
    weights_read_bytes: int | None  # by a step
    cache_read_bytes: float | None  # by a step, mean of the timed ones
    step_flops: int | None
    prefill_flops: int | None
    crossover_tokens: int | None  # per sequence, beyond which a step reads more cache than weights
    # other contexts
    sweep: list[SweepPoint]
    fit: Fit | None
    what_if: list[WhatIf]
    fits: Fits | None
    notes: list[str]  # what to know before believing the numbers
    events: list[Event] = field(default_factory=list, repr=False, compare=False)  # for the trace; not in the JSON

    @property
    def predicted_bytes(self) -> int | None:
        """Of the whole cache."""
        return _total(row.predicted_bytes for row in self.layers)

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
        return _total(row.read_bytes for row in self.layers)

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
    def floor_s(self) -> float | None:
        """The seconds below which a step cannot come: its predicted bytes and FLOPs at the measured ceilings."""
        if self.weights_read_bytes is None or self.step_flops is None:
            return None
        reading_s = (self.weights_read_bytes + self.cache_read_bytes) / self.ceilings.read_bytes_per_s
        return max(reading_s, self.step_flops / self.ceilings.flops_per_s)

    @property
    def roofline_share(self) -> float | None:
        """The floor divided by what a step took: 1 is as fast as the measured ceilings allow."""
        return None if self.floor_s is None else self.floor_s / self.step_s

    @property
    def prefill_share(self) -> float | None:
        """FLOPs per second of the prompts, as a part of the measured matrix product's."""
        if self.prefill_flops is None or not self.first_token_s:
            return None
        return self.prefill_flops / percentile(self.first_token_s, 50) / self.ceilings.flops_per_s

    @property
    def split_total_s(self) -> float | None:
        """Seconds per token of the split pass: the sum of its regions and of the rest."""
        return sum(self.split_s.values()) if self.split_s else None

    @property
    def slowdown(self) -> float | None:
        """How many times as long as in the totals a token took in the split pass."""
        return self.split_total_s / self.step_s if self.split_s else None

    @property
    def flags(self) -> list[str]:
        """What to look at first: copies, waste, and numbers that cannot be."""
        return flags_of(self)

    def table(self) -> str:
        """Returns it for people, in lines of fixed width."""
        return profile_table(self)

    def record(self) -> dict[str, Any]:
        """Returns it as plain numbers, lists and dictionaries, with its schema and environment."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "events"}
        return {"schema": SCHEMA, **json.loads(json.dumps(said, default=asdict)), "flags": self.flags}

    def to_json(self) -> str:
        """Returns `record()` as text; `from_json` reads it."""
        return json.dumps(self.record(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "DecodeProfile":
        """Returns the profile that a JSON text keeps, without the events of its trace.

        Raises:
            ValueError: for a text of another schema.
        """
        said = json.loads(text)
        if not isinstance(said, dict) or said.get("schema") != SCHEMA:
            raise ValueError(f"this is no profile of the schema {SCHEMA}; write one with DecodeProfile.to_json()")
        said = {f.name: said[f.name] for f in fields(cls) if f.name != "events"}
        for name, kind in dict(ceilings=Ceilings, fit=Fit, fits=Fits).items():
            said[name] = said[name] and kind(**said[name])
        kinds = dict(layers=LayerBytes, sequences=SequenceBytes, copies=Copy, sweep=SweepPoint, what_if=WhatIf)
        for name, kind in kinds.items():
            said[name] = [kind(**row) for row in said[name]]
        return cls(**said)

    def to_chrome_trace(self) -> str:
        """Returns the split pass as JSON text that Perfetto (ui.perfetto.dev) and chrome://tracing open.

        Raises:
            ValueError: for a profile without events: its split saw no region, or it was read from JSON.
        """
        return chrome_trace(self)

    def plot(self):
        """Returns the Axes of the time per token against the context, measurements beside the predicted floor."""
        from gqa_lab.plots.profile import step_by_context

        return step_by_context(self.record())


def _total(values) -> int | None:
    values = list(values)
    return None if None in values else sum(values)
