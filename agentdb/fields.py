"""Model fields with words for people: help texts and choices, which the database does not know."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models
from django.utils import timezone


class _Described(models.Field):  # type: ignore[type-arg]
    """A field whose words are no part of the schema, so that no migration repeats or changes them."""

    def deconstruct(self) -> Any:
        name, _, args, options = super().deconstruct()
        for words in ("choices", "help_text"):
            options.pop(words, None)
        return name, f"django.db.models.{self.get_internal_type()}", args, options


class Text(_Described, models.TextField):  # type: ignore[type-arg]
    pass


class Integer(_Described, models.IntegerField):  # type: ignore[type-arg]
    pass


class Instant(_Described, models.DateTimeField):  # type: ignore[type-arg]
    """An aware ``datetime``. With ``moves_on_save`` each ``save()`` of a row that is there sets it to the present."""

    def __init__(self, *args: Any, moves_on_save: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.moves_on_save = moves_on_save

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        # auto_now would also replace the database's default in a new row, by this machine's clock.
        if self.moves_on_save and not add:
            now: datetime = timezone.now()
            setattr(model_instance, self.attname, now)
        return super().pre_save(model_instance, add)
