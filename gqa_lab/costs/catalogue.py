"""A table of names that says what it has instead of only what it lacks."""

import csv
import difflib
from importlib import resources
from typing import TypeVar

Entry = TypeVar("Entry")


class Catalogue(dict[str, Entry]):
    """A dictionary whose unknown key raises `KeyError` with the nearest names.

    Example:
        >>> Catalogue({"llama-2-7b": 1, "llama-2-70b": 2})["llama2-7b"]
        Traceback (most recent call last):
        KeyError: "'llama2-7b' is not known here; did you mean llama-2-7b or llama-2-70b?"
    """

    def __missing__(self, name: object):
        raise KeyError(f"{name!r} is not known here; did you mean {' or '.join(self.nearest(str(name)))}?")

    def nearest(self, name: str, most: int = 3) -> list[str]:
        """Returns the names most like `name`, the best first; never none of them."""
        by_plain = {_plain(key): key for key in self}
        plain = _plain(name)
        close = difflib.get_close_matches(plain, by_plain, most, 0.6)
        starting = sorted((key for key in by_plain if plain and key.startswith(plain)), key=len)
        return [by_plain[key] for key in dict.fromkeys([*starting, *close])][:most] or list(self)[:most]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def read_table(name: str) -> list[dict[str, str]]:
    """Returns the rows of the table `gqa_lab/data/{name}.csv`."""
    text = resources.files("gqa_lab").joinpath(f"data/{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
