// One connection with its places for requests in flight. A place keeps all that is needed to send
// its operation again under the same id, so a lost connection loses nothing.

/// One operation, from its first sending to its final answer.
struct Request {
  enum Phase: UInt8 {
    case free
    /// Sent, awaiting its reply.
    case sent
    /// To be sent again when the connection is back, or after a pause.
    case waiting
  }

  var phase = Phase.free
  /// An earlier sending may have had its effect.
  var isUncertain = false
  var attempts: UInt16 = 0
  var subject: Int32 = 0
  var high: UInt64 = 0
  var low: UInt64 = 0
  /// Where latency counts from.
  var intended: Int64 = 0
  /// When a waiting one is sent again.
  var due: Int64 = 0
}

final class Lane<D: Dialect> {
  enum State: Hashable {
    /// Not connected; a new attempt is due at the time given.
    case down(until: Int64)
    /// Connected or connecting; the greeting is not accepted yet.
    case greeting
    case open
    /// The peer is about to close: nothing new is sent, what is in flight is awaited.
    case leaving
  }

  let index: Int
  var dialect: D
  var state: State
  var descriptor: Int32 = -1
  /// Which of the targets it is connected to; a failed attempt moves on to the next.
  var target: Int
  var failures = 0
  let input = Bytes()
  let output = Bytes()
  /// True while the kernel takes no more and the poller watches for room.
  var isBlocked = false
  var isDirty = false
  var requests: ContiguousArray<Request>
  /// requests × features.
  var amounts: ContiguousArray<Int64>
  var free: ContiguousArray<Int>
  /// Ordered protocols: the places in the order of sending, as a ring.
  private var order: ContiguousArray<Int>
  private var orderHead = 0
  private var orderCount = 0
  var waiting = 0

  init(index: Int, dialect: D, target: Int, inFlight: Int, features: Int) {
    self.index = index
    self.dialect = dialect
    self.target = target
    state = .down(until: 0)
    requests = ContiguousArray(repeating: Request(), count: inFlight)
    amounts = ContiguousArray(repeating: 0, count: inFlight * features)
    free = ContiguousArray((0..<inFlight).reversed())
    order = ContiguousArray(repeating: 0, count: inFlight)
  }

  var outstanding: Int { requests.count - free.count }

  func pushOrder(_ slot: Int) {
    order[(orderHead + orderCount) % order.count] = slot
    orderCount += 1
  }

  func popOrder() -> Int? {
    guard orderCount > 0 else { return nil }
    defer {
      orderHead = (orderHead + 1) % order.count
      orderCount -= 1
    }
    return order[orderHead]
  }

  func clearOrder() { orderCount = 0 }
}
