"""Which part of a model is running: a number is read before and after it, a clock's seconds or a meter's bytes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

REGIONS = ("attention", "append", "projections", "mlp", "head")


class Place(NamedTuple):
    """A function that is a region: where it is found, what it is called, and in which layer it stands.

    `layer` is None for the layer of the last region that knew its own, or a function of the call's arguments.
    """

    owner: Any
    attribute: str
    region: str
    layer: int | Callable[..., int | None] | None = None


class Event(NamedTuple):
    """One run of a region; `own` is `took` without the regions inside it."""

    region: str
    layer: int | None
    start: float
    took: float
    own: float


class Probe:
    """Reads a number before and after every region that runs, and keeps the differences.

    Args:
        read: what is read: a clock, or how many bytes a meter has counted.
    """

    def __init__(self, read: Callable[[], float]):
        self.read, self.events, self.layer = read, [], None
        self._inside: list[float] = []  # what the regions inside each open one have taken

    def wrap(self, function: Callable, region: str, layer: int | Callable | None) -> Callable:
        """Returns the function, read around."""

        def probed(*args, **kwargs):
            at = layer(*args, **kwargs) if callable(layer) else layer
            self.layer = self.layer if at is None else at
            here = self.layer if region in REGIONS[:-1] else None  # the head stands behind all layers
            self._inside.append(0)
            start = self.read()
            try:
                return function(*args, **kwargs)
            finally:
                took = self.read() - start
                inside = self._inside.pop()
                if self._inside:
                    self._inside[-1] += took
                self.events.append(Event(region, here, start, took, took - inside))

        return probed

    @contextmanager
    def watching(self, places: Sequence[Place]) -> Iterator[None]:
        """Reads around these functions while its block runs, and leaves everything as it was."""
        with ExitStack() as undo:
            for owner, attribute, region, layer in places:
                original = getattr(owner, attribute)
                if attribute in vars(owner):
                    undo.callback(setattr, owner, attribute, vars(owner)[attribute])
                else:
                    undo.callback(delattr, owner, attribute)
                setattr(owner, attribute, self.wrap(original, region, layer))
            yield
