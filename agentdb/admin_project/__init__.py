"""The project that ``runadmin`` serves and ``settings/`` builds on; it has no models, so INSTALLED_APPS can name it."""
