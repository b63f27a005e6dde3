"""What ``python -m flows`` can do: functions that typer makes commands of, one file a kind of work."""
