"""For the site: files outside of docs/ are linked where they lie in the repository, and defaults shown as values."""

from __future__ import annotations

import re
from typing import Any

from agentdb.interface import DEFAULT_TENANT_ID
from agentdb.serving.aio import DEFAULT_MAX_WORKERS

_VALUES = {
    "DEFAULT_TENANT_ID": f'"{DEFAULT_TENANT_ID}"',
    "DEFAULT_MAX_WORKERS": str(DEFAULT_MAX_WORKERS),
}


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    return re.sub(r"\]\(\.\./(?=[\w.])", f"]({config['repo_url']}/blob/main/", markdown)


def on_page_content(html: str, **_: Any) -> str:
    for name, value in _VALUES.items():
        html = html.replace(name, value)
    return html
