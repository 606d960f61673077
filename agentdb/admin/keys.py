"""Issuing an API key: a form, and the one page that ever shows the key."""

from __future__ import annotations

import uuid
from typing import Any

from django import forms
from django.core.validators import RegexValidator
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext, gettext_lazy
from django.views.decorators.debug import sensitive_variables

from agentdb.admin.audit import Entry, log_in_project, record, refuse
from agentdb.admin.display import page
from agentdb.console.figures import amount
from agentdb.errors import AgentDbError, DuplicateKeyError
from agentdb.keys import KeyHashes
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.serving.adapter import DjangoDb


class IssueKeyForm(forms.Form):
    """What a key is issued for, and its id: sending the form again would insert the same row, which is refused."""

    tenant_id = forms.CharField(
        label=gettext_lazy("Tenant"),
        # As it was typed: the Db takes " acme" for another tenant than "acme".
        strip=False,
        validators=[RegexValidator(r"\S", gettext_lazy("The tenant cannot be blank."))],
        widget=forms.TextInput(attrs={"autofocus": True}),
    )
    label = forms.CharField(
        required=False,
        help_text=gettext_lazy("What the key is for: a person, a program."),
    )
    id = forms.UUIDField(initial=uuid.uuid4, widget=forms.HiddenInput)


def issue(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """Show the form, or issue the key that it asks for. Reloading the result issues no second one."""
    if not model_admin.has_add_permission(request):
        refuse(request, "issue")
    form = IssueKeyForm(request.POST or None)
    if form.is_valid():
        try:
            return _issue(model_admin, request, form.cleaned_data)
        except DuplicateKeyError:
            again = gettext(
                "This form has been used, and its key was shown. Open the form again to issue another one."
            )
            form.add_error(None, again)
        except AgentDbError as error:
            form.add_error(None, str(error))
    return page(
        model_admin,
        request,
        "issue_key",
        title=gettext("Issue API key"),
        form=form,
    )


@sensitive_variables(
    "plain", "key_hash", "response", "content"
)  # hidden in Django's error reports
def _issue(
    model_admin: Any,
    request: HttpRequest,
    asked: dict[str, Any],
) -> HttpResponse:
    """Issue the key, write the audit log, and return the page that shows the key."""
    tenant_id = asked["tenant_id"]
    # A misspelt tenant looks like a new one, and its key would open nothing: the page warns.
    alias = model_admin.alias
    is_new = not any(
        amount(alias, model, tenant_id).rows
        for model in (Agent, Session, Sandbox, ApiKey)
    )
    plain, key_hash = KeyHashes().generate()
    db = DjangoDb(router.db_for_write(ApiKey))
    issued = db.insert_api_key(
        str(asked["id"]),
        tenant_id,
        key_hash,
        asked["label"],
    )
    row = model_admin.get_queryset(request).get(pk=issued.id)
    entry = Entry("issue", [row], after={row.pk: row.label})
    record(request, entry)
    log_in_project(request, entry)
    response = page(
        model_admin,
        request,
        "key_issued",
        title=gettext("API key issued"),
        plain=plain,
        row=row,
        is_new=is_new,
    )
    # Rendered here, so that no response object carries the key through middleware that may log it.
    content = response.render().content
    return HttpResponse(content, headers={"Cache-Control": "no-store"})
