"""What we *measure*: where the bytes and the milliseconds of a model's decode steps go, beside what `costs` predicts.

    python -m gqa_lab.profiler --model smollm2 --kv-len 1000

`profile_decode(model)` returns a `DecodeProfile`: `.table()`, `.to_json()`, `.to_chrome_trace()`, `.plot()`. Its parts
that measure the GPU (events, what fits by trial) were written for one and not yet run on one.
"""

from gqa_lab.profiler.fit import Fit, fit_line, percentile
from gqa_lab.profiler.measure import measure_ceilings, profile_decode
from gqa_lab.profiler.profile import Ceilings, DecodeProfile

__all__ = ["Ceilings", "DecodeProfile", "Fit", "fit_line", "measure_ceilings", "percentile", "profile_decode"]
