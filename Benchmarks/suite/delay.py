"""delay.py LISTEN TARGET MILLISECONDS: Unix sockets; every byte arrives so much later, each way.

One thread, one selector; order is kept; what waits is bounded by what the peers have in flight."""
import collections
import selectors
import socket
import sys
import time


class Pipe:
    """One direction: bytes with the time from which on they may go."""

    def __init__(self, source, sink):
        self.source, self.sink, self.waiting, self.ended = source, sink, collections.deque(), False


def main():
    listen, target, delay = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(listen)
    listener.listen(256)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    pipes = {}

    def close(pipe):
        for end in (pipe.source, pipe.sink):
            if end in pipes:
                selector.unregister(end)
                del pipes[end]
            end.close()

    while True:
        now = time.monotonic()
        first = min((p.waiting[0][0] for p in pipes.values() if p.waiting), default=now + 1)
        for key, _ in selector.select(max(0, first - now)):
            if key.fileobj is listener:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(target)
                except OSError:
                    near.close()
                    continue
                for a, b in ((near, far), (far, near)):
                    a.setblocking(False)
                    pipes[a] = Pipe(a, b)
                    selector.register(a, selectors.EVENT_READ)
                continue
            pipe = pipes.get(key.fileobj)
            if pipe is None:
                continue
            try:
                data = pipe.source.recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                close(pipe)
                continue
            pipe.waiting.append((time.monotonic() + delay, data))
        now = time.monotonic()
        for pipe in list(pipes.values()):
            while pipe.waiting and pipe.waiting[0][0] <= now:
                due, data = pipe.waiting[0]
                try:
                    sent = pipe.sink.send(data)
                except BlockingIOError:
                    pipe.waiting[0] = (now + 0.001, data)
                    break
                except OSError:
                    close(pipe)
                    break
                if sent < len(data):
                    pipe.waiting[0] = (due, data[sent:])
                else:
                    pipe.waiting.popleft()


main()
