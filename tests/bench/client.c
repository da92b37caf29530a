/* HTTP clients that measure each request, and say what became of it.
 *
 *     client [OPTIONS] PORT
 *
 *     -c N     clients, each with one connection and one request at a time    (32)
 *     -d MS    for how long new requests are begun                            (2000)
 *     -p PATH  what they ask for                                              (/)
 *     -s PATH  what the slow requests ask for; "think" stands for none at all:
 *              the client is silent for as long as -m says
 *     -m MS    how long "think" takes                                         (100)
 *     -r N     how many of 1000 requests are slow                             (0)
 *     -n       a new connection for each request
 *     -o MS    count the requests that took at least this long                (1000)
 *     -t MS    give a request up after this time                              (10000)
 *
 * One process, one thread, one epoll: a latency is taken from before the request is written (with
 * -n: before the connection is made) until its last byte was read, in microseconds. The latencies
 * of slow requests are left out. Prints one "name value" a line. Exits 0 whatever became of the
 * requests; 1 if it could not do its work.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t Nanoseconds;

enum { MOST_CLIENTS = 20000, HEAD = 4096, EVENTS = 256 };

static const Nanoseconds MILLISECOND = 1000000;
/* After a failure a client waits for this long: a server that is gone must not be hammered. */
static const Nanoseconds PAUSE_AFTER_FAILURE = 10 * MILLISECOND;

enum Failure {
    REFUSED,   /* no connection came about */
    LOST,      /* the connection ended before the first byte of the reply */
    TORN,      /* the connection ended within the reply */
    LATE,      /* the reply was not complete in time */
    MALFORMED, /* the reply is not HTTP/1.1, or its length is not given */
    FAILURES
};

static const char *const failure_names[FAILURES] = {
    "refused", "lost", "torn", "timeout", "malformed",
};

enum State { RESTING, CONNECTING, READING };

struct Client {
    enum State state;
    int socket; /* -1: none */
    bool slow;
    Nanoseconds began; /* RESTING: when to begin */
    char head[HEAD];
    size_t length;      /* of what was read of the head */
    uint64_t body_left; /* valid when `status` is */
    int status;         /* 0: the head is not complete */
    bool closes;
};

static struct {
    long clients, duration_ms, think_ms, slow_permille, over_ms, timeout_ms;
    const char *path, *slow_path;
    bool reconnect;
    struct sockaddr_in server;
} settings = {
    .clients = 32, .duration_ms = 2000, .think_ms = 100, .over_ms = 1000, .timeout_ms = 10000,
    .path = "/",
};

static struct {
    uint64_t replies, slow, statuses[600], failures[FAILURES];
    uint32_t *latencies; /* microseconds */
    size_t count, room;
} tally;

static int poll_set;
static Nanoseconds stop_at;
static long busy; /* clients that wait for a reply */
static char fast_request[512], slow_request[512];

static Nanoseconds now(void)
{
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time) < 0)
        err(1, "clock_gettime");
    return (Nanoseconds)time.tv_sec * 1000000000 + (Nanoseconds)time.tv_nsec;
}

/* The same choice of slow requests in every run (xorshift64*). */
static bool choose_slow(void)
{
    static uint64_t state = 88172645463325252;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 2685821657736338717 >> 33) % 1000 < (uint64_t)settings.slow_permille;
}

static bool thinks(const struct Client *client)
{
    return client->slow && strcmp(settings.slow_path, "think") == 0;
}

static void record(Nanoseconds latency)
{
    if (tally.count == tally.room) {
        tally.room = tally.room ? 2 * tally.room : 1 << 16;
        tally.latencies = realloc(tally.latencies, tally.room * sizeof *tally.latencies);
        if (tally.latencies == NULL)
            err(1, "room for %zu latencies", tally.room);
    }
    tally.latencies[tally.count++] = (uint32_t)(latency / 1000);
}

static void rest(struct Client *client, Nanoseconds until)
{
    client->state = RESTING;
    client->began = until;
}

static void disconnect(struct Client *client)
{
    if (client->socket >= 0)
        close(client->socket); /* This takes it out of the poll set, too. */
    client->socket = -1;
}

static void fail(struct Client *client, enum Failure failure)
{
    tally.failures[failure]++;
    busy--;
    disconnect(client);
    rest(client, now() + PAUSE_AFTER_FAILURE);
}

static void watch(struct Client *client, int operation, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = client };
    if (epoll_ctl(poll_set, operation, client->socket, &event) < 0)
        err(1, "epoll_ctl");
}

static void send_request(struct Client *client)
{
    const char *request = client->slow ? slow_request : fast_request;
    size_t length = strlen(request);
    client->state = READING;
    client->length = 0;
    client->status = 0;
    /* It fits into the empty send buffer of a connection that works. */
    if (send(client->socket, request, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail(client, LOST);
}

static void begin(struct Client *client)
{
    client->slow = choose_slow();
    client->began = now();
    if (thinks(client)) {
        client->slow = false;
        rest(client, client->began + (Nanoseconds)settings.think_ms * MILLISECOND);
        return;
    }
    busy++;
    if (client->socket >= 0) {
        send_request(client);
        return;
    }
    client->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->socket < 0)
        err(1, "socket");
    int yes = 1;
    if (setsockopt(client->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0)
        err(1, "TCP_NODELAY");
    const struct sockaddr *server = (const struct sockaddr *)&settings.server;
    if (connect(client->socket, server, sizeof settings.server) < 0 && errno != EINPROGRESS) {
        fail(client, REFUSED);
        return;
    }
    client->state = CONNECTING;
    watch(client, EPOLL_CTL_ADD, EPOLLOUT);
}

static void connected(struct Client *client)
{
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(client->socket, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        err(1, "SO_ERROR");
    if (error != 0) {
        fail(client, REFUSED);
        return;
    }
    watch(client, EPOLL_CTL_MOD, EPOLLIN);
    send_request(client);
}

static void complete(struct Client *client)
{
    Nanoseconds time = now();
    busy--;
    tally.replies++;
    tally.statuses[client->status]++;
    if (client->slow)
        tally.slow++;
    else
        record(time - client->began);
    if (client->closes || settings.reconnect)
        disconnect(client);
    rest(client, time);
}

/* What the head says, once it is whole. False if it makes no sense. */
static bool read_head(struct Client *client, char *end)
{
    char *at = client->head;
    int read = 0;
    *end = '\0';
    if (sscanf(at, "HTTP/1.1 %3d %n", &client->status, &read) != 1 || read == 0 ||
        client->status < 200 || client->status > 599)
        return false;
    bool has_length = false;
    client->closes = false;
    while ((at = strstr(at, "\r\n")) != NULL) {
        at += 2;
        if (strncasecmp(at, "Content-Length:", 15) == 0) {
            client->body_left = strtoull(at + 15, NULL, 10);
            has_length = true;
        } else if (strncasecmp(at, "Connection: close", 17) == 0) {
            client->closes = true;
        }
    }
    return has_length;
}

static void readable(struct Client *client)
{
    char body[65536];
    for (;;) {
        bool in_body = client->status != 0;
        char *place = in_body ? body : client->head + client->length;
        size_t room = in_body ? sizeof body : sizeof client->head - 1 - client->length;
        ssize_t got = recv(client->socket, place, room, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            fail(client, client->length == 0 ? LOST : TORN);
            return;
        }
        uint64_t body_got = (uint64_t)got;
        if (!in_body) {
            client->length += (size_t)got;
            char *end = memmem(client->head, client->length, "\r\n\r\n", 4);
            if (end == NULL && client->length < sizeof client->head - 1)
                continue;
            if (end == NULL || !read_head(client, end)) {
                fail(client, MALFORMED);
                return;
            }
            body_got = client->length - (size_t)(end + 4 - client->head);
        }
        if (body_got > client->body_left) {
            fail(client, MALFORMED);
            return;
        }
        client->body_left -= body_got;
        if (client->body_left == 0) {
            complete(client);
            return;
        }
    }
}

static void handle(struct Client *client, uint32_t events)
{
    switch (client->state) {
    case CONNECTING:
        connected(client);
        break;
    case READING:
        readable(client);
        break;
    case RESTING:
        /* The server closed a connection that is between two requests: the next one is lost, and
         * says so. Until then, do not look again. */
        if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            watch(client, EPOLL_CTL_MOD, EPOLLIN | EPOLLET);
        break;
    }
}

/* Begins what is due and gives up what is late. Returns how long there is nothing more to do. */
static int look_around(struct Client *clients)
{
    Nanoseconds time = now(), next = time + 10 * MILLISECOND;
    for (long i = 0; i < settings.clients; i++) {
        struct Client *client = &clients[i];
        if (client->state == RESTING && time < stop_at) {
            if (client->began <= time)
                begin(client);
            if (client->state == RESTING && client->began < next)
                next = client->began;
        } else if (client->state != RESTING &&
                   time > client->began + (Nanoseconds)settings.timeout_ms * MILLISECOND) {
            fail(client, LATE);
        }
    }
    return next <= time ? 0 : (int)((next - time) / MILLISECOND) + 1;
}

static int ascending(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static uint32_t percentile(double percent)
{
    if (tally.count == 0)
        return 0;
    size_t place = (size_t)((double)tally.count * percent / 100);
    return tally.latencies[place < tally.count ? place : tally.count - 1];
}

static void print(Nanoseconds took)
{
    qsort(tally.latencies, tally.count, sizeof *tally.latencies, ascending);
    size_t over = tally.count;
    while (over > 0 && tally.latencies[over - 1] >= (uint64_t)settings.over_ms * 1000)
        over--;
    printf("replies %lu\nslow %lu\nmilliseconds %lu\n", tally.replies, tally.slow,
           took / MILLISECOND);
    printf("p50 %u\np90 %u\np99 %u\np999 %u\nmax %u\n", percentile(50), percentile(90),
           percentile(99), percentile(99.9), percentile(100));
    printf("over %zu\nmax_under %u\n", tally.count - over, over ? tally.latencies[over - 1] : 0);
    for (int status = 0; status < 600; status++)
        if (tally.statuses[status] > 0)
            printf("status_%d %lu\n", status, tally.statuses[status]);
    for (int failure = 0; failure < FAILURES; failure++)
        printf("%s %lu\n", failure_names[failure], tally.failures[failure]);
}

static long number(char option, const char *text, long least, long most)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < least || value > most)
        errx(2, "-%c takes a number from %ld to %ld, not '%s'", option, least, most, text);
    return value;
}

static void read_arguments(int count, char **arguments)
{
    int option;
    while ((option = getopt(count, arguments, "c:d:p:s:m:r:o:t:n")) != -1) {
        switch (option) {
        case 'c': settings.clients = number('c', optarg, 1, MOST_CLIENTS); break;
        case 'd': settings.duration_ms = number('d', optarg, 1, 3600000); break;
        case 'p': settings.path = optarg; break;
        case 's': settings.slow_path = optarg; break;
        case 'm': settings.think_ms = number('m', optarg, 1, 60000); break;
        case 'r': settings.slow_permille = number('r', optarg, 0, 1000); break;
        case 'o': settings.over_ms = number('o', optarg, 1, 3600000); break;
        case 't': settings.timeout_ms = number('t', optarg, 1, 3600000); break;
        case 'n': settings.reconnect = true; break;
        default: errx(2, "what is understood stands at the head of client.c");
        }
    }
    if (optind != count - 1)
        errx(2, "usage: client [OPTIONS] PORT");
    if (settings.slow_permille > 0 && settings.slow_path == NULL)
        errx(2, "-r needs -s: what do the slow requests ask for?");
    settings.server.sin_family = AF_INET;
    settings.server.sin_port = htons((uint16_t)number('P', arguments[optind], 1, 65535));
    settings.server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

static void write_request(char request[512], const char *path)
{
    int length = snprintf(request, 512, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n", path,
                          settings.reconnect ? "Connection: close\r\n" : "");
    if (length >= 512)
        errx(2, "the path is too long");
}

int main(int count, char **arguments)
{
    read_arguments(count, arguments);
    write_request(fast_request, settings.path);
    write_request(slow_request, settings.slow_path ? settings.slow_path : settings.path);
    poll_set = epoll_create1(EPOLL_CLOEXEC);
    if (poll_set < 0)
        err(1, "epoll_create1");
    struct Client *clients = calloc((size_t)settings.clients, sizeof *clients);
    if (clients == NULL)
        err(1, "room for %ld clients", settings.clients);
    for (long i = 0; i < settings.clients; i++)
        clients[i].socket = -1;

    Nanoseconds start = now();
    stop_at = start + (Nanoseconds)settings.duration_ms * MILLISECOND;
    Nanoseconds looked = 0;
    int wait = 0;
    while (now() < stop_at || busy > 0) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poll_set, events, EVENTS, wait);
        if (ready < 0 && errno != EINTR)
            err(1, "epoll_wait");
        for (int i = 0; i < ready; i++) {
            struct Client *client = events[i].data.ptr;
            handle(client, events[i].events);
            /* At once, not after the round: the others' replies are no part of its latency. */
            if (client->state == RESTING && client->began <= now() && now() < stop_at)
                begin(client);
        }
        /* Those that rest or are late; not after each event, for that would look at all of them. */
        if (ready == 0 || now() >= looked + MILLISECOND) {
            wait = look_around(clients);
            looked = now();
        }
    }
    print(now() - start);
    return 0;
}
