"""An admin whose first page is agentdb's overview.

Put ``agentdb.admin_project.site.AgentDbAdminConfig`` into INSTALLED_APPS in place of ``django.contrib.admin``. With
Django's own admin site the overview is at ``agentdb/`` below the admin.
"""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig


class AgentDbAdminSite(AdminSite):
    site_header = "agentdb"
    site_title = "agentdb"
    index_title = "Overview"
    index_template = "admin/agentdb/index.html"
    site_url = None
    enable_nav_sidebar = False  # four tables are one click away; their columns need the width


class AgentDbAdminConfig(AdminConfig):
    default_site = "agentdb.admin_project.site.AgentDbAdminSite"
