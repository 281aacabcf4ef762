// A netlink dump received whole: a datagram holds 32 KiB at most, and each would mean a wait for Python's lock.
// Source: netlink(7), sock_diag(7).
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#define DATAGRAM_BYTES 65536 // the kernel fills at most 32 KiB at a time (af_netlink.c netlink_dump)
#define DONE_BYTES 20
#define NLMSG_ERROR 2
#define NLMSG_DONE 3

struct header { // struct nlmsghdr
    uint32_t length;
    uint16_t type, flags;
    uint32_t sequence, port;
};

// Fills the buffer with datagrams, one behind the other, until one that ends the dump or tells an error, or there
// is not room enough for another. `last`: where the last one begins. Bytes filled; *failed: errno of a recv.
int64_t ss_receive(int socket, uint8_t *buffer, int64_t room, uint32_t sequence, uint32_t port, int64_t *last,
                   int32_t *failed)
{
    int64_t filled = 0;
    *last = *failed = 0;
    while (filled + DATAGRAM_BYTES <= room) {
        struct header head = {0};
        ssize_t got = recv(socket, buffer + filled, DATAGRAM_BYTES, 0);
        if (got < 0) {
            *failed = errno;
            break;
        }
        *last = filled;
        filled += got;
        if (got >= (ssize_t)sizeof head) {
            memcpy(&head, buffer + *last, sizeof head);
            if (head.type == NLMSG_ERROR)
                break;
        }
        // DONE comes alone or behind the last sockets; the random sequence number excludes a chance likeness.
        if (got >= DONE_BYTES) {
            memcpy(&head, buffer + filled - DONE_BYTES, sizeof head);
            if (head.length == DONE_BYTES && head.type == NLMSG_DONE && head.sequence == sequence && head.port == port)
                break;
        }
    }
    return filled;
}
