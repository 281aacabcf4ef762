"""The bpf engine: programs in the kernel record, one merged record a syscall; nothing is stopped.

`csrc/` is the kernel's part, `layout.py` what both sides share. `ring.py` and `decode.py` read, `engine.py` is what the
pipeline sees, `launch.py` starts commands, `prerequisites.py` says why it cannot be used here.
"""
