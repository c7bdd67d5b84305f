// One connection with its places for requests in flight. A place keeps all that is needed to send
// its operation again under the same id, so a lost connection loses nothing.
//
// Places come in frames of `records`: those of a frame are sent together the first time, each for
// itself when it has to be sent again. A frame is free when all of its places are.

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

/// Owned by one thread. The memory it points to lives as long as it does, and every place and
/// frame number is checked where it comes from a peer.
@safe final class Lane {
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
  var state: State
  var descriptor: Int32 = -1
  /// Which of the targets it is connected to; a failed attempt moves on to the next.
  var target: Int
  var failures = 0
  /// What was received of a message that is not there as a whole.
  let input = Bytes()
  let output = Bytes()
  /// True while the kernel takes no more and the poller watches for room.
  var isBlocked = false
  var isDirty = false
  let frames: Int
  let records: Int
  let places: Int
  let requests: UnsafeMutablePointer<Request>
  /// places × features.
  let amounts: UnsafeMutablePointer<Int64>
  /// Per frame: places that are not free.
  let busy: UnsafeMutablePointer<Int32>
  private let free: UnsafeMutablePointer<Int32>
  var freeCount: Int
  /// Ordered protocols: the places in the order of sending, as a ring.
  private let order: UnsafeMutablePointer<Int32>
  private var orderHead = 0
  private var orderCount = 0
  var waiting = 0

  init(index: Int, target: Int, inFlight: Int, records: Int, features: Int) {
    self.index = index
    self.target = target
    state = .down(until: 0)
    frames = inFlight
    self.records = records
    places = inFlight * records
    unsafe requests = .allocate(capacity: places)
    unsafe requests.initialize(repeating: Request(), count: places)
    unsafe amounts = .allocate(capacity: max(1, places * features))
    unsafe amounts.initialize(repeating: 0, count: max(1, places * features))
    unsafe busy = .allocate(capacity: inFlight)
    unsafe busy.initialize(repeating: 0, count: inFlight)
    unsafe free = .allocate(capacity: inFlight)
    for frame in 0..<inFlight {
      unsafe (free + frame).initialize(to: Int32(inFlight - 1 - frame))
    }
    freeCount = inFlight
    unsafe order = .allocate(capacity: places)
    unsafe order.initialize(repeating: 0, count: places)
  }

  deinit {
    unsafe requests.deallocate()
    unsafe amounts.deallocate()
    unsafe busy.deallocate()
    unsafe free.deallocate()
    unsafe order.deallocate()
  }

  /// A free frame, which then has `records` busy places.
  @inline(__always) func takeFrame(_ records: Int) -> Int? {
    guard freeCount > 0 else { return nil }
    freeCount -= 1
    let frame = unsafe Int(free[freeCount])
    unsafe busy[frame] = Int32(truncatingIfNeeded: records)
    return frame
  }

  /// True when the frame of this place is free again.
  @inline(__always) func release(_ slot: Int) -> Bool {
    unsafe requests[slot].phase = .free
    let frame = records == 1 ? slot : slot / records
    unsafe busy[frame] -= 1
    guard unsafe busy[frame] == 0 else { return false }
    unsafe free[freeCount] = Int32(truncatingIfNeeded: frame)
    freeCount += 1
    return true
  }

  func count(_ phase: Request.Phase) -> Int {
    (0..<places).reduce(0) { unsafe $0 + (requests[$1].phase == phase ? 1 : 0) }
  }

  @inline(__always) func pushOrder(_ slot: Int) {
    precondition(orderCount < places)
    var at = orderHead + orderCount
    if at >= places { at -= places }
    unsafe order[at] = Int32(truncatingIfNeeded: slot)
    orderCount += 1
  }

  @inline(__always) func popOrder() -> Int? {
    guard orderCount > 0 else { return nil }
    let slot = unsafe Int(order[orderHead])
    orderHead = orderHead + 1 == places ? 0 : orderHead + 1
    orderCount -= 1
    return slot
  }

  func clearOrder() { orderCount = 0 }
}
