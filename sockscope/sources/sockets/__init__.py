"""Socket states: the kernel's own tables by sock_diag, owners and history by /proc."""
