/* Makes every syscall that is recorded, once or more, with known arguments. Not a test: a program.
 * What lies between the two markers is compared. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/netlink.h>

static char buffer[4096];
static const char odd[] = "one\n\t\"two\"\\\0\1\0012\377three</x>[{(, => /* */ and a good deal more than sixty-four bytes of it";

static struct sockaddr_in v4(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void streams(void)
{
    int one = 1, size;
    socklen_t len;
    struct sockaddr_in a = v4(0);
    struct sockaddr_storage from;
    int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    bind(l, (void *)&a, sizeof a);
    listen(l, 7);
    len = sizeof a;
    getsockname(l, (void *)&a, &len);
    fcntl(l, F_SETFL, O_NONBLOCK);
    accept(l, NULL, NULL); /* EAGAIN */
    int c = socket(AF_INET, SOCK_STREAM, 0);
    connect(c, (void *)&a, sizeof a);
    len = sizeof from;
    int s = accept4(l, (void *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
    len = sizeof from;
    getsockname(s, (void *)&from, &len);
    len = sizeof from;
    getpeername(s, (void *)&from, &len);
    getpeername(l, (void *)&from, &len); /* ENOTCONN */
    int c2 = socket(AF_INET, SOCK_STREAM, 0);
    connect(c2, (void *)&a, sizeof a);
    len = sizeof from;
    int s2 = accept(l, (void *)&from, &len);

    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(s, IPPROTO_TCP, TCP_KEEPIDLE, &(int){33}, sizeof(int));
    setsockopt(s, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){1, 500000}, sizeof(struct timeval));
    setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2);
    setsockopt(s, SOL_SOCKET, 9999, &one, sizeof one); /* ENOPROTOOPT */
    len = sizeof size;
    getsockopt(s, SOL_SOCKET, SO_ERROR, &size, &len);
    getsockopt(s, SOL_SOCKET, SO_TYPE, &size, &len);
    getsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &size, &len);
    struct linger linger;
    len = sizeof linger;
    getsockopt(s, SOL_SOCKET, SO_LINGER, &linger, &len);
    len = sizeof buffer;
    memset(buffer, 0, sizeof buffer);
    getsockopt(s, IPPROTO_TCP, TCP_CONGESTION, buffer, &len);
    len = 1;
    getsockopt(s, IPPROTO_TCP, TCP_INFO, buffer, &len);
    setsockopt(s, SOL_SOCKET, SO_LINGER, &(struct linger){0, 0}, sizeof(struct linger));

    send(c, odd, sizeof odd, MSG_NOSIGNAL);
    recv(s, buffer, 5, MSG_PEEK);
    recv(s, buffer, sizeof buffer, MSG_DONTWAIT);
    recv(s, buffer, sizeof buffer, 0); /* EAGAIN */
    write(c, "plain", 5);
    read(s, buffer, 64);
    read(s, buffer, 64);  /* EAGAIN */
    read(9999, buffer, 3); /* EBADF */
    write(c, NULL, 3);    /* EFAULT */
    sendto(c, "x", 1, MSG_MORE | MSG_DONTWAIT, NULL, 0);
    struct iovec out[3] = {{"", 0}, {"first", 5}, {"second one", 10}};
    writev(c, out, 3);
    struct iovec in[2] = {{buffer, 4}, {buffer + 64, 60}};
    readv(s, in, 2);
    readv(s, in, 2); /* EAGAIN */
    ioctl(s, FIONREAD, &size);
    ioctl(s, FIONBIO, &one);
    fcntl(s, F_GETFL);
    fcntl(s, F_GETFD);
    fcntl(s, F_SETFD, FD_CLOEXEC);
    int d = dup(s);
    dup2(s, 100);
    dup3(s, 101, O_CLOEXEC);
    fcntl(s, F_DUPFD, 110);
    fcntl(s, F_DUPFD_CLOEXEC, 120);
    fcntl(9999, F_GETFD);
    close(d);
    close(9999);
    close_range(100, 130, 0);
    close_range(3000, ~0U, CLOSE_RANGE_CLOEXEC);
    shutdown(c, SHUT_WR);
    recv(s, buffer, 10, 0); /* 0 */
    shutdown(s2, SHUT_RDWR);
    shutdown(l, SHUT_RD);
    close(s);
    close(c);
    close(s2);
    close(c2);
    close(l);
    int refused = socket(AF_INET, SOCK_STREAM, 0);
    a = v4(1);
    connect(refused, (void *)&a, sizeof a);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    connect(refused, &none, sizeof none);
    close(refused);
}

static void datagrams(void)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_storage from;
    socklen_t len = sizeof six;
    int zero = 0;
    int d = socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP);
    setsockopt(d, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    bind(d, (void *)&six, sizeof six);
    getsockname(d, (void *)&six, &len);
    sendto(d, "datagram", 8, 0, (void *)&six, sizeof six);
    len = sizeof from;
    recvfrom(d, buffer, 100, 0, (void *)&from, &len);
    recvfrom(d, buffer, 100, MSG_DONTWAIT, (void *)&from, &len); /* EAGAIN */

    struct iovec one[1] = {{"message", 7}}, two[2] = {{"and", 3}, {"another", 7}};
    struct mmsghdr out[2] = {{.msg_hdr = {&six, sizeof six, one, 1, NULL, 0, 0}},
                             {.msg_hdr = {&six, sizeof six, two, 2, NULL, 0, 0}}};
    sendmmsg(d, out, 2, 0);
    char room[2][64];
    struct sockaddr_in6 froms[2];
    struct iovec in[2] = {{room[0], 4}, {room[1], 64}};
    struct mmsghdr got[2] = {{.msg_hdr = {&froms[0], sizeof froms[0], &in[0], 1, NULL, 0, 0}},
                             {.msg_hdr = {&froms[1], sizeof froms[1], &in[1], 1, NULL, 0, 0}}};
    recvmmsg(d, got, 2, MSG_DONTWAIT, NULL);
    recvmmsg(d, got, 2, MSG_DONTWAIT, NULL); /* EAGAIN */
    close(d);
    int n = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl nl = {.nl_family = AF_NETLINK, .nl_groups = 1};
    bind(n, (void *)&nl, sizeof nl);
    close(n);
}

static void unixes(void)
{
    int pair[2], one = 1;
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path, "\0odd\1name\"", 10);
    int u = socket(AF_UNIX, SOCK_DGRAM, 0);
    bind(u, (void *)&a, 2 + 10);
    struct sockaddr_un got;
    socklen_t len = sizeof got;
    getsockname(u, (void *)&got, &len);
    len = sizeof got;
    getsockname(pair[0], (void *)&got, &len);
    strcpy(a.sun_path, "/nowhere/to be found");
    connect(u, (void *)&a, sizeof a);
    connect(u, (void *)&a, 2 + strlen(a.sun_path) + 1);
    struct ucred cred;
    len = sizeof cred;
    getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &cred, &len);

    union {
        char room[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr align;
    } c = {0};
    struct iovec iov[2] = {{"take", 4}, {" these", 6}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = c.room, .msg_controllen = sizeof c.room};
    *CMSG_FIRSTHDR(&m) = (struct cmsghdr){CMSG_LEN(3 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), (int[]){u, pair[0], pair[1]}, 3 * sizeof(int));
    sendmsg(pair[0], &m, MSG_NOSIGNAL);
    char control[256] = {0};
    struct iovec in[1] = {{buffer, 64}};
    struct msghdr r = {.msg_iov = in, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    recvmsg(pair[1], &r, MSG_CMSG_CLOEXEC);
    recvmsg(pair[1], &r, MSG_DONTWAIT); /* EAGAIN */
    setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
    m.msg_control = NULL;
    m.msg_controllen = 0;
    sendmsg(pair[0], &m, 0);
    memset(control, 0, sizeof control);
    r.msg_controllen = sizeof control;
    recvmsg(pair[1], &r, 0);
    close(pair[0]);
    sendmsg(pair[0], &m, 0); /* EBADF */
    close(pair[1]);
    close(u);
}

static void waits(void)
{
    int p[2], q[2];
    syscall(SYS_pipe, p);
    pipe2(q, O_CLOEXEC | O_NONBLOCK);
    struct pollfd fds[3] = {{p[0], POLLIN, 0}, {q[1], POLLOUT | POLLRDHUP, 0}, {-1, 0, 0}};
    syscall(SYS_poll, fds, 3, 10);
    poll(fds, 1, 1);
    poll(NULL, 0, 0);
    write(p[1], "now", 3);
    ppoll(fds, 2, &(struct timespec){1, 5}, NULL);
    fds[2].fd = 9999;
    poll(fds, 3, -1);
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_SET(p[0], &r);
    FD_SET(q[0], &r);
    FD_SET(q[1], &w);
    struct timeval tv = {1, 7};
    syscall(SYS_select, 70, &r, &w, NULL, &tv);
    FD_ZERO(&r);
    FD_SET(q[0], &r);
    pselect(q[0] + 1, &r, NULL, NULL, &(struct timespec){0, 1000}, NULL);
    tv = (struct timeval){1, 7};
    FD_SET(60, &r); /* not 999: the kernel looks no further than the table of descriptors is long */
    select(61, &r, NULL, NULL, &tv); /* EBADF */
    int e = epoll_create1(EPOLL_CLOEXEC);
    close(syscall(SYS_epoll_create, 5));
    epoll_ctl(e, EPOLL_CTL_ADD, p[0], &(struct epoll_event){EPOLLIN | EPOLLET, {.u64 = 0x1234567890abcdef}});
    epoll_ctl(e, EPOLL_CTL_ADD, q[1], &(struct epoll_event){EPOLLOUT | EPOLLONESHOT, {.fd = q[1]}});
    epoll_ctl(e, EPOLL_CTL_MOD, q[1], &(struct epoll_event){EPOLLOUT | EPOLLRDHUP, {.fd = q[1]}});
    struct epoll_event ready[8];
    syscall(SYS_epoll_wait, e, ready, 8, 100);
    epoll_pwait(e, ready, 8, -1, NULL);
    epoll_ctl(e, EPOLL_CTL_DEL, q[1], NULL);
    epoll_ctl(e, EPOLL_CTL_DEL, 9999, NULL);
    syscall(SYS_epoll_pwait2, e, ready, 8, &(struct timespec){0, 1000}, NULL, 8);
    close(e);
    tee(p[0], q[1], 2, SPLICE_F_NONBLOCK);
    splice(p[0], NULL, q[1], NULL, 3, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    vmsplice(q[1], &(struct iovec){"lent", 4}, 1, SPLICE_F_GIFT);
    for (int i = 0; i < 2; i++)
        close(p[i]), close(q[i]);
    close(syscall(SYS_eventfd, 3));
    close(eventfd(3, EFD_CLOEXEC | EFD_SEMAPHORE));
    close(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    close(syscall(SYS_signalfd4, -1, &set, 8, SFD_CLOEXEC));
    close(syscall(SYS_signalfd, -1, &set, 8));
}

static void files(void)
{
    int m = memfd_create("a \"memory\" file", MFD_CLOEXEC);
    struct iovec iov[2] = {{"ab", 2}, {"cdefgh", 6}}, in[2] = {{buffer, 3}, {buffer + 9, 30}};
    pwrite(m, "pwrite", 6, 10);
    pread(m, buffer, 100, 11);
    pwritev(m, iov, 2, 3);
    preadv(m, in, 2, 1);
    pwritev2(m, iov, 2, 0, 0);
    preadv2(m, in, 2, 0, 0);
    off_t at = 2;
    int p[2];
    pipe(p);
    sendfile(p[1], m, &at, 5);
    sendfile(p[1], m, NULL, 5);
    void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m, 0);
    munmap(map, 4096);
    mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* not recorded */
    mmap(NULL, 0, PROT_READ, MAP_SHARED, m, 0);                      /* EINVAL */
    close(p[0]), close(p[1]), close(m);
    close(syscall(SYS_open, "/dev/null", O_RDWR | O_CLOEXEC, 0));
    close(openat(AT_FDCWD, "/", O_RDONLY | O_DIRECTORY));
    openat(AT_FDCWD, "/nowhere/\n/x", O_CREAT | O_WRONLY | O_TRUNC, 0640);
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC};
    close(syscall(SYS_openat2, AT_FDCWD, "/dev/zero", &how, sizeof how));
    syscall(SYS_creat, "/nowhere/creat", 0600);
    unlink("/nowhere/unlink");
    unlinkat(AT_FDCWD, "/nowhere/unlinkat", AT_REMOVEDIR);
    int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    shmget(0x5eac, 1, 0);
    void *attached = shmat(id, NULL, SHM_RDONLY);
    shmdt(attached);
    shmctl(id, IPC_RMID, NULL);
    syscall(SYS_io_uring_setup, 0, NULL);
    syscall(SYS_io_uring_enter, -1, 1, 1, 1, NULL, 8);
    ioctl(0, 0x5401, buffer); /* TCGETS: not recorded */
}

static void tasks(void)
{
    int status;
    int child = syscall(SYS_fork);
    if (!child)
        _exit(3);
    wait4(child, &status, 0, NULL);
    child = fork();
    if (!child) {
        signal(SIGTERM, SIG_DFL);
        kill(getpid(), SIGTERM);
        _exit(9);
    }
    waitid(P_PID, child, &(siginfo_t){0}, WEXITED | WNOWAIT);
    wait4(-1, &status, __WALL, NULL);
    struct clone_args args = {.flags = CLONE_FS, .exit_signal = SIGCHLD};
    child = syscall(SYS_clone3, &args, sizeof args);
    if (!child)
        _exit(0);
    wait4(child, NULL, 0, NULL);
    wait4(-1, &status, WNOHANG, NULL); /* ECHILD */
    unshare(CLONE_FILES);
    kill(getpid(), 0);
    syscall(SYS_tkill, getpid(), 0);
    syscall(SYS_tgkill, getpid(), getpid(), 0);
    kill(0x3ffffffe, SIGRTMIN + 3);
    int p = syscall(SYS_pidfd_open, getpid(), 0);
    close(syscall(SYS_pidfd_getfd, p, 0, 0));
    close(p);
    execve("/nowhere/to/exec", (char *[]){"a", NULL}, (char *[]){NULL});
    syscall(SYS_execveat, AT_FDCWD, "/nowhere/at", (char *[]){"a", NULL}, (char *[]){NULL}, 0x100);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 3; fd < 30; fd++)
        close(fd);
    unlink("/sockscope-begin");
    streams();
    datagrams();
    unixes();
    waits();
    files();
    tasks();
    unlink("/sockscope-end");
    return 0;
}
