/* io_uring. */
