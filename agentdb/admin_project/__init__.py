"""The project that ``runadmin`` serves and ``settings/`` builds on; INSTALLED_APPS names it before there are models."""
