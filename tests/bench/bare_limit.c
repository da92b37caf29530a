/* The least that a new connection per request can cost: workers that share the listener.
 *
 *     bare_limit WORKERS
 *
 * Each worker accepts, reads one request head, answers with two bytes and closes. No connection is
 * handed on, and no request is understood. So whatever a server costs above this is the price of
 * what it does. Says "listening on 127.0.0.1:PORT" on stderr, like batond; ends on SIGTERM.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_WORKERS = 1024, HEAD = 4096 };

static const char reply[] =
    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

static int listen_somewhere(void)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        err(1, "socket");
    struct sockaddr_in address = { .sin_family = AF_INET };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        err(1, "bind to 127.0.0.1");
    if (listen(listener, 4096) < 0)
        err(1, "listen");
    socklen_t length = sizeof address;
    if (getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        err(1, "getsockname");
    fprintf(stderr, "listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    return listener;
}

static void serve(int connection)
{
    char head[HEAD];
    size_t length = 0;
    while (length < sizeof head) {
        ssize_t got = recv(connection, head + length, sizeof head - length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return;
        length += (size_t)got;
        if (memmem(head, length, "\r\n\r\n", 4) != NULL) {
            /* It always fits into an empty send buffer; if the client is gone, nobody misses it. */
            (void)send(connection, reply, sizeof reply - 1, MSG_NOSIGNAL);
            return;
        }
    }
}

static _Noreturn void work(int listener, pid_t parent)
{
    /* A worker whose parent was killed must not stay behind. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        err(1, "prctl");
    if (getppid() != parent)
        _exit(1);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) {
            serve(connection);
            close(connection);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            err(1, "accept");
        }
    }
}

int main(int count, char **arguments)
{
    char *end = NULL;
    long workers = count == 2 ? strtol(arguments[1], &end, 10) : 0;
    if (workers < 1 || workers > MOST_WORKERS || *end != '\0')
        errx(2, "usage: bare_limit WORKERS (1 to %d)", MOST_WORKERS);

    sigset_t ends, before;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGCHLD);
    if (sigprocmask(SIG_BLOCK, &ends, &before) < 0)
        err(1, "sigprocmask");

    int listener = listen_somewhere();
    pid_t parent = getpid(), processes[MOST_WORKERS];
    for (long i = 0; i < workers; i++) {
        processes[i] = fork();
        if (processes[i] < 0)
            err(1, "fork");
        if (processes[i] == 0) {
            sigprocmask(SIG_SETMASK, &before, NULL);
            work(listener, parent);
        }
    }

    int signal = 0;
    sigwait(&ends, &signal);
    for (long i = 0; i < workers; i++)
        kill(processes[i], SIGKILL);
    for (long i = 0; i < workers; i++)
        waitpid(processes[i], NULL, 0);
    if (signal == SIGCHLD)
        errx(1, "a worker ended");
    return 0;
}
