// Where records wait that came faster than they can be worked on, and who is next.
//
//   frame ─▶ admitted? ─no─▶ OVERLOADED, at once
//              │ yes
//              ├─▶ small, nobody waits, room ─────────────────▶ enforcer, in the turn that read it
//              └─▶ queue of its connection ─▶ turn by turn, some of each connection ─▶ enforcer
//                       │ deadline
//                       └─▶ OVERLOADED: nothing of these records was begun
//
// Why this shape: thousands of records may be read in one turn of the loop. Worked on at once they
// hold it for as long as they take, and meanwhile no deadline is looked at, no reply read, and
// nobody else served. So a frame is decoded record by record as its turn comes; a turn takes a few
// milliseconds; every connection that waits gets the same small number of records before any gets
// more; and no more is handed on than what is done in a short time, because behind the enforcer
// everybody waits in one line. Promise 8.

import DequeModule
import NIOCore
import TollgateCore
import TollgateEngine
import TollgateWire

/// A frame of operations whose records are not all handed on yet.
final class IntakeFrame: Awaited {
  let arrived: NIODeadline
  let deadline: NIODeadline
  private var records: AskedRecords
  private let submit: (Int, Result<AskedRecord, WireError>) -> Void
  private let refuse: (Int) -> Void
  private var index = 0
  /// Admitted records that are not handed on.
  private(set) var left: Int

  /// - Parameters:
  ///   - submit: takes the record of that index.
  ///   - refuse: answers the record of that index OVERLOADED; it was not begun.
  init(
    _ records: AskedRecords, admitted: Int, arrived: NIODeadline, deadline: NIODeadline,
    submit: @escaping (Int, Result<AskedRecord, WireError>) -> Void,
    refuse: @escaping (Int) -> Void
  ) {
    self.records = records
    self.arrived = arrived
    self.deadline = deadline
    self.submit = submit
    self.refuse = refuse
    left = admitted
    for place in admitted..<records.left { refuse(place) }
  }

  var isAnswered: Bool { left == 0 }

  func handOn() {
    guard left > 0, let record = records.next() else { return }
    left -= 1
    index += 1
    submit(index - 1, record)
  }

  /// Answers what is not handed on; how many that were.
  func expire() -> Int {
    let late = left
    left = 0
    for place in index..<index + late { refuse(place) }
    return late
  }

  /// Nobody waits for it any more.
  func drop() -> Int {
    defer { left = 0 }
    return left
  }
}

/// The frames of one connection that wait.
final class IntakeQueue {
  fileprivate var frames: Deque<IntakeFrame> = []
  fileprivate var isInLine = false

  fileprivate func dropAnswered() {
    while let first = frames.first, first.isAnswered { frames.removeFirst() }
  }
}

final class Intake {
  /// Records that one turn of the loop hands on at most, and for how long.
  static let turnRecordsMax = 512
  static let turnMax = TimeAmount.milliseconds(2)
  /// Records of a connection before the next one's turn.
  static let sliceRecords = 16

  private let enforcer: Enforcer
  private let eventLoop: any EventLoop
  private let breather: Breather
  private var line: Deque<IntakeQueue> = []
  private var wheel = DeadlineWheel<IntakeFrame>(now: .now())
  private var isTicking = false
  private var isScheduled = false
  /// Records handed on in this turn without waiting.
  private var direct = 0
  /// Records that wait.
  private(set) var count = 0

  init(enforcer: Enforcer, breather: Breather) {
    self.enforcer = enforcer
    self.breather = breather
    eventLoop = enforcer.eventLoop
  }

  /// How many of a frame's records are let in.
  func admitted(of records: Int, own: Int, deadline: NIODeadline, now: NIODeadline) -> Int {
    AdmissionRule(
      // Behind calls that do not come back nobody waits.
      waiting: count + (enforcer.isStuck ? 0 : enforcer.planned),
      allowed: enforcer.load.operations(
        in: (deadline - now).nanoseconds / 2, now: enforcer.monotonic(now)),
      own: own, senders: line.count + 1,
      room: enforcer.configuration.limits.inFlightMax - count - enforcer.outstandingCount
    ).admitted(of: records)
  }

  /// Whether so many records are handed on in the turn that read them: nobody waits, and they are
  /// few. They count against what this turn may do.
  func passes(_ records: Int) -> Bool {
    guard line.isEmpty, records <= Self.sliceRecords, direct < Self.turnRecordsMax,
      enforcer.hasRoom
    else { return false }
    if direct == 0 { schedule() }
    direct += records
    return true
  }

  /// Hands the frame's records on as their turn comes.
  func take(_ frame: IntakeFrame, of queue: IntakeQueue) {
    count += frame.left
    enforcer.intakeCount = count
    queue.frames.append(frame)
    wheel.insert(frame)
    startTicking()
    if !queue.isInLine {
      queue.isInLine = true
      line.append(queue)
    }
    schedule()
  }

  /// The connection is gone: what was not begun never will be.
  func drop(_ queue: IntakeQueue) {
    for frame in queue.frames { count -= frame.drop() }
    enforcer.intakeCount = count
    queue.frames.removeAll()
  }

  /// The enforcer can take more.
  func roomCame() { if !line.isEmpty { schedule() } }

  /// At the end of this turn; a turn of its own begins when it was held back by the turn's bounds.
  private func schedule() {
    guard !isScheduled else { return }
    isScheduled = true
    eventLoop.assumeIsolated().execute { self.breather.run { self.turn() } }
  }

  private func turn() {
    isScheduled = false
    direct = 0
    guard !line.isEmpty else { return }
    let end = NIODeadline.now() + Self.turnMax
    var handed = 0
    while handed < Self.turnRecordsMax, enforcer.hasRoom, let queue = line.popFirst() {
      handed += slice(queue)
      if queue.frames.isEmpty { queue.isInLine = false } else { line.append(queue) }
      if NIODeadline.now() >= end { break }
    }
    enforcer.intakeCount = count
    if !line.isEmpty, enforcer.hasRoom { schedule() }
  }

  private func slice(_ queue: IntakeQueue) -> Int {
    var handed = 0
    queue.dropAnswered()
    while handed < Self.sliceRecords, let frame = queue.frames.first {
      frame.handOn()
      count -= 1
      handed += 1
      queue.dropAnswered()
    }
    return handed
  }

  private func startTicking() {
    guard !isTicking else { return }
    isTicking = true
    tick()
  }

  private func tick() {
    for frame in wheel.advance(to: .now()) { count -= frame.expire() }
    enforcer.intakeCount = count
    guard wheel.count > 0 else {
      isTicking = false
      return
    }
    eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(1)) { self.tick() }
  }
}
