// A proxy that breaks connections the way networks do.
//
// The fault that matters most here is the unknown outcome: the request reached the server, its
// effect took place, and the reply was lost. `cut` makes exactly that: the client's bytes are
// passed on, the server's next bytes are swallowed, and both sides are then reset. The proxy
// runs on one thread of its own with poll(2), so what it does never depends on the event loops
// it disturbs. All controls may be called from any thread; each returns once the proxy's thread
// has taken it up, so a test needs no pause after it.

internal import Foundation
internal import Glibc
internal import NIOConcurrencyHelpers

package final class FaultProxy: Sendable {
  package enum Mode: Sendable, Equatable {
    /// Bytes pass, after the configured delay.
    case forward
    /// The server is gone: open connections are reset and new ones are refused by the kernel.
    case refuse
    /// Connections open and bytes vanish in both directions. Those that lost bytes are reset when
    /// the mode ends, because what follows on them would be out of step.
    case blackhole
    /// Bytes are held, none is lost, as behind a frozen peer.
    case pause
  }

  /// When a connection loses its reply.
  package enum Cut: Sendable, Equatable {
    case never
    /// Each connection once it has passed this many client bytes (0: its first request).
    case afterClientBytes(Int)
    /// Each connection after a count of client bytes drawn from 1 … 2 × mean.
    case random(seed: UInt64, meanClientBytes: Int)
  }

  package struct Counters: Sendable, Equatable {
    package var accepted = 0
    package var open = 0
    /// Connections reset after their request passed and before its reply returned.
    package var cut = 0
    /// Connections reset for any other reason the test asked for.
    package var dropped = 0
    /// Connections the upstream did not take.
    package var upstreamFailures = 0
    package var bytesToServer = 0
    package var bytesToClient = 0
    /// Bytes of replies that a cut or a blackhole swallowed.
    package var bytesSwallowed = 0
  }

  /// Where clients connect.
  package let endpoint: TestEndpoint
  private let shared: ProxyShared

  /// Listens and forwards to `upstream`, which need not be up yet.
  ///
  /// - Parameter listen: where to listen; nil takes a free loopback port.
  package init(to upstream: TestEndpoint, listen: TestEndpoint? = nil) throws {
    let wanted = try listen ?? .tcp("127.0.0.1", freePort())
    let listener = try Socket.listen(wanted)
    if case .tcp(let host, 0) = wanted {
      endpoint = .tcp(host, Socket.localPort(listener))
    } else {
      endpoint = wanted
    }
    let shared = try ProxyShared()
    self.shared = shared
    let bound = endpoint
    // The thread holds what is shared and not the proxy, so that dropping the proxy ends it.
    let thread = Thread {
      var loop = ProxyLoop(
        upstream: upstream, endpoint: bound, listener: listener, shared: shared)
      loop.run()
    }
    thread.name = "fault-proxy"
    thread.start()
  }

  deinit { close() }

  package var counters: Counters { shared.control.withLockedValue { $0.counters } }

  package var mode: Mode {
    get { shared.control.withLockedValue { $0.mode } }
    set { change { $0.mode = newValue } }
  }

  /// Holds bytes back by these times, each direction on its own.
  package func delay(toServer: Duration = .zero, toClient: Duration = .zero) {
    change {
      $0.delayToServer = toServer
      $0.delayToClient = toClient
    }
  }

  /// Arms or disarms the loss of replies; counts start anew on every connection.
  package func cut(_ rule: Cut) { change { $0.arm(rule) } }

  /// Every connection open now loses its next reply.
  package func cutNow() { change { $0.cutsOrdered += 1 } }

  /// Resets every open connection at once, wherever its requests are.
  package func dropAll() { change { $0.dropsOrdered += 1 } }

  /// Ends the thread and closes every socket. Idempotent.
  package func close() { change { $0.isClosed = true } }

  private func change(_ body: (inout ProxyControl) -> Void) {
    let version = shared.control.withLockedValue { control -> Int? in
      if control.isClosed { return nil }
      body(&control)
      control.version += 1
      return control.version
    }
    guard let version else { return }
    shared.wake()
    // The loop is never blocked for long: all its sockets are non-blocking.
    try? eventually(within: .seconds(5), every: .microseconds(200), "the proxy took a change") {
      shared.control.withLockedValue { $0.seenVersion >= version }
    }
  }
}

/// What the proxy's handle and its thread share; the wake pipe lives as long as either.
final class ProxyShared: Sendable {
  let control = NIOLockedValueBox(ProxyControl())
  let wakeRead: Int32
  private let wakeWrite: Int32

  init() throws {
    var ends: [Int32] = [0, 0]
    guard unsafe pipe(&ends) == 0 else { throw PosixError(call: "pipe") }
    for end in ends {
      Socket.setNonBlocking(end)
      Socket.setCloseOnExec(end)
    }
    wakeRead = ends[0]
    wakeWrite = ends[1]
  }

  deinit {
    Socket.close(wakeRead)
    Socket.close(wakeWrite)
  }

  func wake() {
    var byte: UInt8 = 1
    _ = unsafe Glibc.write(wakeWrite, &byte, 1)
  }

  /// Empties the wake pipe.
  func drainWakes() {
    var scratch: UInt64 = 0
    while unsafe Glibc.read(wakeRead, &scratch, 8) > 0 {}
  }
}

/// What tests set and the loop reads, under the proxy's lock.
struct ProxyControl {
  var mode = FaultProxy.Mode.forward
  var delayToServer = Duration.zero
  var delayToClient = Duration.zero
  var cut = FaultProxy.Cut.never
  var random = SeededRandom(seed: 0)
  var armings = 0
  var cutsOrdered = 0
  var dropsOrdered = 0
  var isClosed = false
  var version = 0
  var seenVersion = 0
  var counters = FaultProxy.Counters()

  mutating func arm(_ rule: FaultProxy.Cut) {
    cut = rule
    armings += 1
    if case .random(let seed, _) = rule { random = SeededRandom(seed: seed) }
  }
}
