/* A record as it stands in the rings: EVENT_DTYPE (model/events.py) byte for byte, then the blob's sections.
 *
 * layout.py has the same numbers; tests/sources/syscalls/bpf/test_build.py compares them. */
#ifndef SOCKSCOPE_RECORD_H
#define SOCKSCOPE_RECORD_H

#include "kernel.h"

struct event {
    s64 enter_ns, exit_ns, ret;
    u64 args[6];
    u64 blob_offset;
    u32 blob_bytes;
    s32 tgid, tid;
    u16 call, flags;
};

/* model/events.py pack_section */
struct section {
    u8 kind, error;
    u16 reserved;
    u32 bytes;
};

/* EventFlag, Section and Call values used here (model/events.py, model/calls.py: part of the recording format). */
enum { ENTERED_ONLY = 1, NO_ENTRY = 2, TRUNCATED = 4, COPY_FAILED = 16, URING = 64 };
enum {
    SEC_SOCKADDR = 1,
    SEC_PAYLOAD = 2,
    SEC_CONTROL = 3,
    SEC_MSG_FLAGS = 4,
    SEC_IOV_TOTAL = 5,
    SEC_EPOLL_EVENTS = 6,
    SEC_EPOLL_EVENTS_ALIGNED = 7,
    SEC_FDSETS = 9,
    SEC_PATH = 12,
    SEC_MMSG_LENS = 14,
    SEC_CLONE_ARGS = 16,
    SEC_COMM = 17,
    SEC_FDSETS_IN = 18,
    SEC_PEER = 19,
};
enum { CALL_BIND = 3, CALL_CLONE = 80, CALL_CLONE3 = 81, CALL_VFORK = 83, CALL_EXECVE = 84, CALL_EXECVEAT = 85 };
enum {
    TASK_NEW = 200,
    TASK_EXEC,
    TASK_EXIT,
    TASK_SIGNAL,
    TASK_STOP,
    TASK_ATTACH,
    TASK_DETACH,
};
enum { SOCK_STATE = 210, TCP_RETRANSMIT, TCP_RESET_SENT, TCP_RESET_RECEIVED };

/* The rings' records, the kernel's 8-byte header included in the stride. One size a ring, so that any stretch of a
 * ring is one structured array to its reader. */
#define SMALL_STRIDE 256
#define MEDIUM_STRIDE 2048
#define LARGE_STRIDE 16384
#define RING_HEADER 8
#define SMALL_BLOB (SMALL_STRIDE - RING_HEADER - sizeof(struct event))
#define MEDIUM_BLOB (MEDIUM_STRIDE - RING_HEADER - sizeof(struct event))
#define LARGE_BLOB (LARGE_STRIDE - RING_HEADER - sizeof(struct event))

struct small_record {
    struct event e;
    u8 blob[SMALL_BLOB];
};
struct medium_record {
    struct event e;
    u8 blob[MEDIUM_BLOB];
};
struct large_record {
    struct event e;
    u8 blob[LARGE_BLOB];
};

_Static_assert(sizeof(struct event) == 96 && __builtin_offsetof(struct event, args) == 24 &&
                   __builtin_offsetof(struct event, blob_offset) == 72 && __builtin_offsetof(struct event, flags) == 94,
               "EVENT_DTYPE");
_Static_assert(sizeof(struct section) == 8, "pack_section");
_Static_assert(sizeof(struct small_record) == SMALL_STRIDE - RING_HEADER && SMALL_BLOB == 152, "slot_dtype");
_Static_assert(sizeof(struct medium_record) == MEDIUM_STRIDE - RING_HEADER && MEDIUM_BLOB == 1944, "slot_dtype");
_Static_assert(sizeof(struct large_record) == LARGE_STRIDE - RING_HEADER && LARGE_BLOB == 16280, "slot_dtype");

#endif
