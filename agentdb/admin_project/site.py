"""An admin whose first page is agentdb's overview.

Put ``agentdb.admin_project.site.AgentDbAdminConfig`` into INSTALLED_APPS in place of ``django.contrib.admin``. With
Django's own admin site the overview is at ``agentdb/`` below the admin.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig
from django.contrib.auth.signals import user_login_failed
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_lazy


class AgentDbAdminSite(AdminSite):
    site_header = "agentdb"
    site_title = "agentdb"
    index_title = gettext_lazy("Overview")
    index_template = "admin/agentdb/index.html"
    site_url = None
    enable_nav_sidebar = (
        False  # the navigation has four links, and the columns need the width
    )

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """The overview, and below it the apps of a project that has more than agentdb."""
        others = [
            app for app in self.get_app_list(request) if app["app_label"] != "agentdb"
        ]
        return super().index(request, {"other_apps": others, **(extra_context or {})})


class AgentDbAdminConfig(AdminConfig):
    default_site = "agentdb.admin_project.site.AgentDbAdminSite"

    def ready(self) -> None:
        super().ready()
        from agentdb.admin.audit import record_failed_login

        user_login_failed.connect(record_failed_login, dispatch_uid="agentdb.audit")


def csrf_failure(request: HttpRequest, reason: str = "") -> TemplateResponse:
    """Answer a form that comes without its cookie."""
    context = {
        **admin.site.each_context(request),
        "title": gettext("Log in again"),
        "again": request.path,
    }
    return TemplateResponse(
        request, "admin/agentdb/cookies_gone.html", context, status=403
    )
