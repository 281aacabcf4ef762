/* What servers seldom do, always in the same order, when a first client comes. Not a test: a program.
 *
 * `equality_odd PORT`: prints READY, does it all, closes the client and stays, its threads in calls that never return. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *const BAD = (void *)8;
static char stack[65536] __attribute__((aligned(16)));
static int shared_fd;
static const struct timespec MOMENT = {0, 50000000};

static void pass_time(void) { nanosleep(&MOMENT, NULL); }

static int ended(pid_t child)
{
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

static void bad_pointers(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int yes = 1, s[2];
    char data[16] = {0};
    socklen_t length = 2;
    socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    write(s[0], "some bytes", 10);
    write(s[0], BAD, 5);
    read(s[1], BAD, 5);
    recvfrom(s[1], data, 4, 0, BAD, BAD);
    sendto(fd, "x", 1, 0, BAD, 16);
    sendmsg(s[0], BAD, 0);
    recvmsg(s[1], BAD, 0);
    writev(s[0], BAD, 2);
    writev(s[0], (struct iovec[]){{BAD, 4}, {data, 2}}, 2);
    connect(s[0], BAD, 16);
    bind(s[0], (void *)data, 0);
    poll(BAD, 1, 0);
    poll(&p, 0, 0);
    select(5, BAD, NULL, NULL, NULL);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, BAD, 4);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, &length);
    getsockname(fd, BAD, BAD);
    getsockname(fd, (void *)data, &length);
    accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    epoll_ctl(fd, EPOLL_CTL_ADD, fd, BAD);
    open(BAD, O_RDONLY);
    close(s[0]);
    close(s[1]);
}

static void many_messages(void)
{
    char in[3][8];
    struct iovec v[3] = {{"one", 3}, {"three", 5}, {"x", 1}}, w[3] = {{in[0], 8}, {in[1], 8}, {in[2], 8}};
    struct mmsghdr m[3], n[3];
    int s[2];
    memset(m, 0, sizeof m);
    memset(n, 0, sizeof n);
    for (int i = 0; i < 3; i++) {
        m[i].msg_hdr = (struct msghdr){.msg_iov = &v[i], .msg_iovlen = 1};
        n[i].msg_hdr = (struct msghdr){.msg_iov = &w[i], .msg_iovlen = 1};
    }
    socketpair(AF_UNIX, SOCK_DGRAM, 0, s);
    sendmmsg(s[0], m, 3, 0);
    recvmmsg(s[1], n, 3, 0, NULL);
    close(s[0]);
    close(s[1]);
}

static void descriptors(void)
{
    int p[2], q[2], fd = memfd_create("odd", MFD_CLOEXEC), flag = 1;
    char data[32] = "0123456789";
    struct iovec v[2] = {{data, 4}, {data + 4, 6}};
    sigset_t none;
    fd_set in;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = 77};
    struct pollfd waits;
    sigemptyset(&none);
    pipe2(p, O_CLOEXEC);
    pipe2(q, O_NONBLOCK);
    pwritev(fd, v, 2, 0);
    preadv(fd, v, 2, 3);
    pwrite64(fd, data, 5, 1);
    preadv2(fd, v, 1, 0, 0);
    vmsplice(p[1], v, 1, 0);
    tee(p[0], q[1], 4, 0);
    splice(p[0], NULL, q[1], NULL, 4, SPLICE_F_NONBLOCK);
    waits = (struct pollfd){.fd = q[0], .events = POLLIN};
    ppoll(&waits, 1, &MOMENT, &none);
    FD_ZERO(&in);
    FD_SET(q[0], &in);
    pselect(q[0] + 1, &in, NULL, NULL, &MOMENT, &none);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(poller, EPOLL_CTL_ADD, q[0], &e);
    epoll_pwait(poller, &e, 4, -1, &none);
    read(q[0], data, sizeof data);
    read(q[0], data, sizeof data);
    ioctl(q[0], FIONBIO, &flag);
    int events = eventfd(3, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0), sigs = signalfd(-1, &none, 0);
    dup3(events, 60, O_CLOEXEC);
    int shared = shmget(IPC_PRIVATE, 4096, 0600);
    void *at = shmat(shared, NULL, 0);
    shmdt(at);
    shmctl(shared, IPC_RMID, NULL);
    munmap(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0), 4096);
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    int copy = (int)syscall(SYS_pidfd_getfd, self, events, 0);
    int all[] = {fd, p[0], p[1], q[0], q[1], poller, events, timer, sigs, 60, self, copy, 60};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        close(all[i]);
}

static int closes_for_both(void *unused)
{
    (void)unused;
    close(shared_fd);
    return 0;
}

static void *executes(void *unused)
{
    pass_time();
    execl("/bin/true", "true", NULL);
    return unused;
}

static void processes(int conn)
{
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    ended(child);
    shared_fd = dup(conn);
    ended(clone(closes_for_both, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL));
    write(shared_fd, "closed by another", 17);
    if ((child = fork()) == 0) {
        unshare(CLONE_FILES);
        close(conn);
        execl("/no/such/file", "true", NULL);
        _exit(7);
    }
    ended(child);
    if ((child = fork()) == 0) { /* a thread executes: the leader is gone, and the thread takes its number */
        pthread_t thread;
        pthread_create(&thread, NULL, executes, NULL);
        pthread_join(thread, NULL);
    }
    ended(child);
    if ((child = fork()) == 0) {
        char one;
        recv(conn, &one, 1, 0);
        _exit(0);
    }
    pass_time();
    kill(child, SIGKILL);
    ended(child);
    if ((child = fork()) == 0) {
        pass_time();
        raise(SIGSTOP);
        write(conn, "went on", 7);
        *(volatile int *)BAD = 1;
    }
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WSTOPPED);
    kill(child, SIGCONT);
    ended(child);
    if ((child = fork()) == 0) {
        syscall(SYS_close_range, 3, ~0u, 0);
        abort();
    }
    ended(child);
}

static void *sits_in_read(void *fd)
{
    char one;
    read(*(int *)fd, &one, 1);
    return NULL;
}

static void *sits_in_select(void *fd)
{
    fd_set in;
    struct timeval long_time = {1000, 0};
    FD_ZERO(&in);
    FD_SET(*(int *)fd, &in);
    select(*(int *)fd + 1, &in, NULL, NULL, &long_time);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[argc - 1]))};
    /* When a child's end is told depends on who runs first. */
    sigset_t childs;
    sigemptyset(&childs);
    sigaddset(&childs, SIGCHLD);
    sigprocmask(SIG_BLOCK, &childs, NULL);
    int listener = socket(AF_INET, SOCK_STREAM, 0), quiet[2], yes = 1;
    pthread_t threads[2];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 8))
        return 1;
    write(1, "READY\n", 6);
    int conn = accept(listener, NULL, NULL);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    bad_pointers(listener);
    many_messages();
    descriptors();
    processes(conn);
    socketpair(AF_UNIX, SOCK_STREAM, 0, quiet);
    pthread_create(&threads[0], NULL, sits_in_read, &quiet[0]);
    pass_time();
    pthread_create(&threads[1], NULL, sits_in_select, &quiet[0]);
    pass_time();
    close(conn);
    poll(&(struct pollfd){.fd = quiet[1], .events = POLLIN}, 1, -1);
    return 0;
}
