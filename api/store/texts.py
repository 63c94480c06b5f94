"""What of a text is stored and searched."""

from __future__ import annotations

import re
import unicodedata

from api.errors import BadInput

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")
"""A run of letters and digits; in scripts that put no spaces between words, each character."""
MOST_WORDS = 256


def clean(text: str) -> str:
    """The text without what PostgreSQL's text columns refuse: NUL and lone surrogates."""
    return text.replace("\0", "").encode(errors="replace").decode()


def split_words(text: str) -> list[str]:
    """The different words of a text in the form they are searched by, at most 256 of at most 64 characters."""
    found = dict.fromkeys(word[:64] for word in WORD.findall(unicodedata.normalize("NFKC", clean(text)).casefold()))
    return list(found)[:MOST_WORDS]


def check_tag(tag: str) -> str:
    """A tag in the one form it is stored in. Raises ``BadInput``."""
    folded = unicodedata.normalize("NFC", tag[:1000]).casefold()
    form = " ".join(unicodedata.normalize("NFC", folded).split())  # folded letters may have marks to join: the form's form is the form
    if not 1 <= len(form) <= 64 or not form.isprintable():
        raise BadInput(f"found the tag {tag[:80]!r}; use 1 to 64 printable characters")
    return form


def check_title(name: str) -> str:
    """A name of a session or collection. Raises ``BadInput``."""
    form = unicodedata.normalize("NFC", name[:1000]).strip()
    if not 1 <= len(form) <= 200 or not form.isprintable():
        raise BadInput(f"found the name {name[:80]!r}; use 1 to 200 printable characters")
    return form
