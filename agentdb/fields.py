"""Model fields whose help texts and choices are not part of the schema."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils import timezone


class _Described(models.Field):  # type: ignore[type-arg]
    """Leaves help texts and choices out of migrations, so that changing one needs no migration."""

    def deconstruct(self) -> Any:
        name, _, args, options = super().deconstruct()
        options.pop("choices", None)
        options.pop("help_text", None)
        path = f"django.db.models.{self.get_internal_type()}"
        return name, path, args, options


class Text(_Described, models.TextField):  # type: ignore[type-arg]
    pass


class Integer(_Described, models.IntegerField):  # type: ignore[type-arg]
    pass


class Instant(_Described, models.DateTimeField):  # type: ignore[type-arg]
    """An aware ``datetime``. With ``moves_on_save`` each ``save()`` of an existing row sets it to the current time."""

    def __init__(self, *args: Any, moves_on_save: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.moves_on_save = moves_on_save

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        # auto_now would set it in new rows too, by this machine's clock instead of the database's default.
        is_old = not add
        if self.moves_on_save and is_old:
            setattr(model_instance, self.attname, timezone.now())
        return super().pre_save(model_instance, add)
