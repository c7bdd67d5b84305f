// A plain blocking conversation, for what happens before and after a run: the audit's reads and
// the admin calls. Slow and simple on purpose.

internal import Glibc

final class BlockingSocket {
  private let descriptor: Int32
  private let target: Target
  let input = Bytes()
  private let output = Bytes()

  init(_ target: Target, timeoutSeconds: Int) throws {
    self.target = target
    descriptor = try target.connect(blocking: true)
    var limit = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
    let size = socklen_t(MemoryLayout<timeval>.size)
    unsafe setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, size)
    unsafe setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, size)
  }

  deinit { close(descriptor) }

  func send(_ bytes: [UInt8]) throws {
    output.clear()
    output.append(bytes)
    while !output.isEmpty {
      let n = output.send(to: descriptor)
      if n < 0 && n != -Int(EINTR) { throw failure("write to", n) }
    }
  }

  /// Reads until `parse` makes something of the input.
  func receive<T>(_ parse: (Bytes) throws -> T?) throws -> T {
    while true {
      if let value = try parse(input) { return value }
      let n = input.receive(from: descriptor)
      if n == 0 { throw BenchError("\(target) closed the connection") }
      if n < 0 && n != -Int(EINTR) { throw failure("read from", n) }
    }
  }

  private func failure(_ what: String, _ n: Int) -> BenchError {
    n == -Int(EAGAIN)
      ? BenchError("\(target) did not answer in time")
      : BenchError.system("\(what) \(target)", Int32(-n))
  }
}
