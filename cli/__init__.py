"""The command line: parse, call, render, exit code.

`app` and the modules of its commands import typer and the standard library alone, so that help and completion
answer at once. What needs planner, formulations or rich lives in `instances`, `solving`, `studies`, `render`
and `progress`, which commands import when they run.
"""
