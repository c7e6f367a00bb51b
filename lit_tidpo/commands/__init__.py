"""What ``lit-tidpo`` does: one module a command, each with ``run``, imported when it is typed."""
