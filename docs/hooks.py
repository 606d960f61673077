"""For the site: files outside of docs/ are linked where they lie in the repository."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    return re.sub(r"\]\(\.\./(?=[\w.])", f"]({config['repo_url']}/blob/main/", markdown)
