"""What a check shows: a `Verdict`, or a `Page` of text. Plain text and HTML say the same."""

import html
from dataclasses import dataclass
from itertools import groupby

SYMBOLS = {"passed": "✓", "failed": "✗", "not attempted": "○", "recorded": "→"}
_COLOURS = {"passed": "#117733", "failed": "#CC3311", "not attempted": "#777777", "recorded": "#332288"}


@dataclass(frozen=True)
class Verdict:
    """One reply to the student. Only `passed` is true.

    Attributes:
        status: "passed", "failed" or "not attempted"; a prediction and the placement are "recorded".
        message: plain sentences; lines that start with two spaces form a table or a listing.
        title: which exercise or question it is about.

    Example:
        >>> Verdict("passed", "Tested with four sizes.", "05.expand")
        ✓ passed · 05.expand
        Tested with four sizes.
    """

    status: str
    message: str
    title: str = ""

    def __bool__(self) -> bool:
        return self.status == "passed"

    def __repr__(self) -> str:
        return f"{self._head()}\n{self.message}"

    def _head(self) -> str:
        return f"{SYMBOLS[self.status]} {self.status}" + (f" · {self.title}" if self.title else "")

    def _repr_html_(self) -> str:
        parts = [f"<strong>{html.escape(self._head())}</strong>"]
        for listing, lines in groupby(self.message.splitlines(), lambda line: line.startswith("  ")):
            text = html.escape("\n".join(lines))
            parts.append(_listing(text) if listing else text.replace("\n", "<br>"))
        joined = "<br>".join(parts).replace("<br><pre", "<pre").replace("</pre><br>", "</pre>")
        return (
            f'<div role="status" style="border-left: 5px solid {_COLOURS[self.status]}; '
            f'padding: 0.4em 0.9em; margin: 0.3em 0">{joined}</div>'
        )


@dataclass(frozen=True)
class Page:
    """A text to read, shown with its line breaks, and its columns if it is a table."""

    text: str
    is_table: bool = False

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        text = html.escape(self.text)
        style = (
            "white-space: pre; font-family: monospace" if self.is_table else "white-space: pre-wrap; max-width: 50em"
        )
        return f'<div role="region" style="{style}">{text}</div>'


def _listing(text: str) -> str:
    return f'<pre style="margin: 0.4em 0">{text}</pre>'
