/* What answering a message costs when nothing is done with it: a bare server in one thread, and its load.
 *
 *     cc -O2 -o floor tests/bench/floor.c
 *     ./floor CONNECTIONS MESSAGES RATE MODE      RATE 0: as fast as possible
 *
 * Each connection sends 400 bytes, waits for 200, sends again. MODE: "none" answers at once, "write" appends 420
 * bytes to a file in the working directory first, "sync" also calls fdatasync, once for all that epoll_wait gave.
 * Prints the server's CPU (user + system) for a message and its context switches. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, REQUEST = 400, RECORD = 420, ANSWER = 200 };

static char buffer[65536];

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_us(const struct rusage *used) {
    return (used->ru_utime.tv_sec + used->ru_stime.tv_sec) * 1e6 + used->ru_utime.tv_usec + used->ru_stime.tv_usec;
}

static void watch(int epoll, int socket) {
    int on = 1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = socket};
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event) == 0, "epoll_ctl");
}

static void serve(int listener, int connections, char mode) {
    struct epoll_event events[EVENTS];
    struct rusage before, after;
    int epoll = epoll_create1(0), asking[EVENTS], left = connections;
    int file = open("floor.data", O_RDWR | O_CREAT | O_TRUNC, 0644);
    long answered = 0, rounds = 0;
    off_t end = 0;
    check(file >= 0 && fallocate(file, 0, 0, 256 << 20) == 0 && fsync(file) == 0, "floor.data");
    unlink("floor.data");
    for (int i = 0; i < connections; i++)
        watch(epoll, accept(listener, NULL, NULL));
    getrusage(RUSAGE_SELF, &before);
    while (left > 0) {
        int count = epoll_wait(epoll, events, EVENTS, -1), askers = 0;
        for (int i = 0; i < count; i++) {
            if (recv(events[i].data.fd, buffer, sizeof buffer, 0) > 0) {
                asking[askers++] = events[i].data.fd;
            } else {
                close(events[i].data.fd);
                left--;
            }
        }
        if (mode == 's' && askers > 0) {
            check(pwrite(file, buffer, RECORD * askers, end) > 0 && fdatasync(file) == 0, "floor.data");
            end += RECORD * askers;
            rounds++;
        }
        for (int i = 0; i < askers; i++) {
            if (mode == 'w') {
                check(pwrite(file, buffer, RECORD, end) > 0, "floor.data");
                end += RECORD;
            }
            send(asking[i], buffer, ANSWER, MSG_NOSIGNAL);
        }
        answered += askers;
    }
    getrusage(RUSAGE_SELF, &after);
    long switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw;
    printf("%.1f us of CPU, %.2f context switches a message", (cpu_us(&after) - cpu_us(&before)) / answered,
           (double)switches / answered);
    if (rounds > 0)
        printf(", %.1f messages a sync", (double)answered / rounds);
    printf("\n");
}

static void load(struct sockaddr_in *address, int connections, long messages, double rate) {
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(0), *sockets = calloc(connections, sizeof *sockets);
    long sent = 0, answered = 0;
    double began = seconds();
    for (int i = 0; i < connections; i++) {
        sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
        check(connect(sockets[i], (struct sockaddr *)address, sizeof *address) == 0, "connect");
        watch(epoll, sockets[i]);
    }
    for (int i = 0; i < connections; i++)
        sent += send(sockets[i], buffer, REQUEST, 0) > 0;
    while (answered < sent) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            answered += recv(events[i].data.fd, buffer, sizeof buffer, 0) > 0;
            if (rate > 0 && began + sent / rate > seconds())
                usleep((began + sent / rate - seconds()) * 1e6);
            if (sent < messages)
                sent += send(events[i].data.fd, buffer, REQUEST, 0) > 0;
        }
    }
    printf("%.0f messages/s, ", answered / (seconds() - began));
    fflush(stdout);
    for (int i = 0; i < connections; i++)
        close(sockets[i]);
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (count != 5 || atoi(words[1]) < 1 || atoi(words[1]) > EVENTS) {
        fprintf(stderr, "usage: %s CONNECTIONS MESSAGES RATE none|write|sync, at most %d connections\n", words[0], EVENTS);
        return 2;
    }
    check(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, EVENTS) == 0, "listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    if (fork() == 0) {
        serve(listener, atoi(words[1]), words[4][0]);
        return 0;
    }
    load(&address, atoi(words[1]), atol(words[2]), atof(words[3]));
    wait(NULL);
    return 0;
}
