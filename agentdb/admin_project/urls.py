"""URLs of a project that is agentdb's admin and nothing else."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import path
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe
from django.views.generic import RedirectView

# A few small files for few users need no second server.
static_file = require_safe(cache_control(public=True, max_age=3600)(serve))

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path(
        f"{settings.STATIC_URL.strip('/')}/<path:path>", static_file, {"insecure": True}
    ),
    path("favicon.ico", static_file, {"path": "agentdb/icon.svg", "insecure": True}),
    path("admin/", admin.site.urls),
]
