"""A host project's own admin site, which registers one of the four models."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from agentdb.admin.model_admins import SessionAdmin
from agentdb.models import Session

site = admin.AdminSite(name="operations")
site.register(Session, SessionAdmin)

urlpatterns = [path("operations/", site.urls)]
