"""URLs of a project that is agentdb's admin and nothing else."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles import finders
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView


@require_safe
def static_file(request: HttpRequest, name: str) -> HttpResponse:
    """A static file of an installed app: few and small ones, for few users, so that no second server is needed."""
    found = finders.find(name) if "\x00" not in name else None
    if not found or not Path(found).is_file():
        raise Http404
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return HttpResponse(Path(found).read_bytes(), content_type=kind, headers={"Cache-Control": "public, max-age=3600"})


urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path(f"{settings.STATIC_URL.strip('/')}/<path:name>", static_file),
    path("favicon.ico", static_file, {"name": "agentdb/icon.svg"}),
    path("admin/", admin.site.urls),
]
