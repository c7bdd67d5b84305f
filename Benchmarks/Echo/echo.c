/* The limit of what one thread can carry on this machine: an epoll loop that sends back what it
 * reads, and nothing else. `make bench` compares with it.
 *
 *   echo unix PATH | echo tcp PORT        (127.0.0.1)
 *   cc -O2 -o echo echo.c
 *
 * One read and one write per ready connection and turn, level-triggered, TCP_NODELAY: what the
 * sidecar's local loop does, without frames, answers or anybody to tell. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int listen_unix(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    fail("path");
  }
  strcpy(address.sun_path, path);
  unlink(path);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address)) fail("bind");
  return listener;
}

static int listen_tcp(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int on = 1;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (listener < 0) fail("socket");
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&address, sizeof address)) fail("bind");
  return listener;
}

/* What the peer does not take at once is waited for: a benchmark's peer always reads. */
static int send_all(int descriptor, const char *bytes, ssize_t count) {
  while (count > 0) {
    ssize_t sent = send(descriptor, bytes, count, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return -1;
    if (sent > 0) {
      bytes += sent;
      count -= sent;
    }
  }
  return 0;
}

int main(int count, char **words) {
  if (count != 3) {
    fprintf(stderr, "usage: echo unix PATH | echo tcp PORT\n");
    return 2;
  }
  int is_tcp = strcmp(words[1], "tcp") == 0;
  int listener = is_tcp ? listen_tcp(atoi(words[2])) : listen_unix(words[2]);
  if (listen(listener, 1024)) fail("listen");
  int poller = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) fail("epoll_ctl");
  static char bytes[64 * 1024];
  struct epoll_event events[256];
  for (;;) {
    int ready = epoll_wait(poller, events, 256, -1);
    for (int i = 0; i < ready; i++) {
      int descriptor = events[i].data.fd;
      if (descriptor == listener) {
        int accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (accepted < 0) continue;
        int on = 1;
        if (is_tcp) setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        event.events = EPOLLIN;
        event.data.fd = accepted;
        if (epoll_ctl(poller, EPOLL_CTL_ADD, accepted, &event)) close(accepted);
        continue;
      }
      ssize_t n = recv(descriptor, bytes, sizeof bytes, 0);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
      if (n <= 0 || send_all(descriptor, bytes, n)) close(descriptor);
    }
  }
}
