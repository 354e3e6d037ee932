/* An engine that costs nothing: says when it began, then waits, or answers HTTP on 127.0.0.1.

   engine FIFO [PORT]: writes "PID NANOSECONDS\n" (CLOCK_MONOTONIC) into FIFO first of all. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

static void serve(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        exit(1);
    for (;;) { /* one connection after the other: the prober has no more than one */
        char request[4096];
        int peer = accept(listener, NULL, NULL);
        while (peer >= 0 && read(peer, request, sizeof request) > 0)
            if (write(peer, ANSWER, sizeof ANSWER - 1) < 0)
                break;
        close(peer);
    }
}

int main(int argc, char **argv)
{
    struct timespec now;
    char line[64];
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "%d %lld\n", (int)getpid(),
                          now.tv_sec * 1000000000LL + now.tv_nsec);
    int fifo = argc > 1 ? open(argv[1], O_WRONLY | O_CLOEXEC) : -1;
    if (fifo < 0 || write(fifo, line, length) != length)
        return 1;
    close(fifo);
    signal(SIGPIPE, SIG_IGN);
    if (argc > 2)
        serve(atoi(argv[2]));
    for (;;)
        pause();
}
