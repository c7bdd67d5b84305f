// A plain blocking conversation, for what happens before and after a run: the audit's reads and
// the admin calls. Slow and simple on purpose. Between the reading before and the one after lies
// the whole run, in which any server may have been restarted: so nobody here holds a socket, but a
// standing line that is opened when it is needed.

internal import Glibc

final class BlockingSocket {
  private let descriptor: Int32
  let target: Target
  /// The peer went away, or was another one since: asking anew on a new connection can help.
  private(set) var isGone = false
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
      if n == 0 {
        isGone = true
        throw BenchError("\(target) closed the connection")
      }
      if n < 0 && n != -Int(EINTR) { throw failure("read from", n) }
    }
  }

  private func failure(_ what: String, _ n: Int) -> BenchError {
    if n == -Int(EAGAIN) { return BenchError("\(target) did not answer in time") }
    isGone = true
    return BenchError.system("\(what) \(target)", Int32(-n))
  }
}

/// A conversation that outlives its connections. Only for what may be asked twice.
final class StandingLine {
  private let targets: [Target]
  private let timeoutSeconds: Int
  private var socket: BlockingSocket?

  /// - Parameter targets: any of them will do; the first that answers is taken.
  init(_ targets: [Target], timeoutSeconds: Int) {
    self.targets = targets
    self.timeoutSeconds = timeoutSeconds
  }

  /// One question and its answer. Where the connection stood already and its other end is gone,
  /// it is asked once more on a new one.
  func use<Answer>(
    greeting: (BlockingSocket) throws -> Void, _ ask: (BlockingSocket) throws -> Answer
  ) throws -> Answer {
    if let standing = socket {
      do { return try ask(standing) } catch {
        // After a failure nobody knows what is still on its way: the next one starts afresh.
        socket = nil
        guard standing.isGone else { throw error }
      }
    }
    let fresh = try open(greeting)
    let answer = try ask(fresh)
    socket = fresh
    return answer
  }

  private func open(_ greeting: (BlockingSocket) throws -> Void) throws -> BlockingSocket {
    var failures: [String] = []
    for target in targets {
      do {
        let fresh = try BlockingSocket(target, timeoutSeconds: timeoutSeconds)
        try greeting(fresh)
        return fresh
      } catch {
        failures.append("\(error)")
      }
    }
    throw BenchError(failures.joined(separator: "; "))
  }
}
