// Deadlines of one event loop, in slots of one millisecond: no timer per request (house rule 6).
// An answered request stays in its slot until the slot passes and is then let go, so the wheel
// holds at most (arrival rate × deadline) small references.
//
// An answer due by its deadline has to be on its way before it: the wheel aims ahead of it, by the
// resolution of its own ticks and a little for the way back, and never by more than a tenth of the
// time the request was given.

import NIOCore

/// What must be answered in time.
protocol Awaited: AnyObject {
  var arrived: NIODeadline { get }
  var deadline: NIODeadline { get }
  var isAnswered: Bool { get }
}

struct DeadlineWheel<Entry: Awaited> {
  static var slots: Int { 2048 }
  /// Nanoseconds by which an answer is given early, at most.
  static var aheadMax: Int64 { 5_000_000 }
  private var wheel: [[Entry]] = Array(repeating: [], count: slots)
  private var position: Int64
  private(set) var count = 0

  init(now: NIODeadline) { position = Self.tick(now) }

  private static func tick(_ time: NIODeadline) -> Int64 {
    Int64(clamping: time.uptimeNanoseconds / 1_000_000)
  }

  /// When the request is given up.
  static func aim(_ request: Entry) -> NIODeadline {
    let given = (request.deadline - request.arrived).nanoseconds
    return request.deadline - .nanoseconds(min(max(0, given) / 10, aheadMax))
  }

  mutating func insert(_ request: Entry) {
    // An instant in the middle of a millisecond passes with it, never before it.
    let due = max(Self.tick(Self.aim(request)) + 1, position + 1)
    let slot = min(due, position + Int64(Self.slots) - 1)
    wheel[Int(slot % Int64(Self.slots))].append(request)
    count += 1
  }

  /// The requests that are unanswered and have no time left to wait.
  mutating func advance(to now: NIODeadline) -> [Entry] {
    let target = Self.tick(now)
    var expired: [Entry] = []
    while position < target {
      position += 1
      if count == 0 {
        position = target
        break
      }
      let slot = Int(position % Int64(Self.slots))
      guard !wheel[slot].isEmpty else { continue }
      let passed = wheel[slot]
      wheel[slot].removeAll(keepingCapacity: passed.count < 4096)
      count -= passed.count
      for request in passed where !request.isAnswered {
        // A deadline further off than the wheel is wide was parked in its last slot.
        if Self.aim(request) > now { insert(request) } else { expired.append(request) }
      }
    }
    return expired
  }
}
