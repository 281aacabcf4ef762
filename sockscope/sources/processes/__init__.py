"""What /proc says of processes, namespaces and shared memory: facts that no syscall tells."""
