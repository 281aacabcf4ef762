"""The ptrace engine: works wherever strace works.

`engine.py` is what others use. It starts tracer processes (`tracer.py`), each with the compiled loop
(`csrc/`, `native.py`), a buffer shared with the main process and a guardian (`guardian.py`) that gives the
target its CPU affinity back whatever happens.
"""
