"""Where a file lies is nobody's business: a report may be published."""

import re
from collections.abc import Mapping
from typing import Any

# A path begins where no relative one or a division goes on, and ends at a colon, a backquote or a closing quote; it may
# have spaces and apostrophes.
_ABSOLUTE = re.compile(
    r"""(?<![\w.~)\]}*$%/\\-])(?:[A-Za-z]:)?[/\\](?=\S)(?:(?:(?!["'](?:[\s,;.)\]}]|$))[^:`])*[/\\])?(?=[^/\\])"""
)


def without_folders(text: str) -> str:
    """Return a text with the file's name alone in the place of an absolute path."""
    return _ABSOLUTE.sub("", text)


def plain(value: Any) -> Any:
    """Return a text, or lists and tables with texts in them, without folders."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
