// The event loop of one thread: keeps its connections filled (closed loop) or the schedule kept
// (open loop), takes replies off, and settles what has no answer yet by sending it again under the
// same id.
//
// Why this shape: everything that a request needs is allocated before the first one is sent;
// afterwards a request is a template copy, a few stores, and its share of one write. Each
// connection is flushed once per turn. Latency counts from the moment an operation was to be sent
// by the schedule, so a stalled server is charged for all that it made wait.
//
// Promise: at the end every operation is answered for good, or counted as unresolved.

internal import Glibc
internal import Synchronization

package final class Generator<D: Dialect> {
  let load: Load
  let targets: [Target]
  let progress: RunProgress
  var workload: Workload
  var tally: Tally
  var lanes: [Lane<D>] = []
  let poller: Poller
  var random: SplitMix
  let features: Int

  var now: Int64 = 0
  var wallMilliseconds: Int64 = 0
  /// How many operations this thread may still start; nil: no bound.
  var budget: Int?
  var isIssuing = false
  var issued = 0
  /// The schedule: when operation `issued` is due, open loop only.
  var scheduleStart: Int64 = 0
  let interval: Double
  var cursor = 0
  var dirty: [Int] = []
  var openCount = 0
  private var published = (0, 0, 0, 0)
  /// Why the last connection failed, for the message if none succeeds.
  var lastError: String?

  /// - Parameters:
  ///   - connections: this thread's share.
  ///   - rate: this thread's share of an open loop's rate.
  package init(
    load: Load, targets: [Target], dialect: D, workload: Workload, progress: RunProgress,
    thread: Int = 0, threads: Int = 1, seed: UInt64
  ) throws {
    precondition(!targets.isEmpty && load.connections > 0 && load.inFlight > 0)
    self.load = load
    self.targets = targets
    self.progress = progress
    self.workload = workload.forThread(thread, of: threads)
    features = workload.amounts.count
    tally = Tally(subjects: workload.names.count, features: features)
    poller = try Poller()
    random = SplitMix(seed: seed ^ UInt64(thread + 1) &* 0x9E6C_63D0_876A_68EE)
    if case .requests(let total) = load.end {
      budget = total / threads + (thread < total % threads ? 1 : 0)
    }
    if case .rate(let rate) = load.arrival {
      interval = 1_000_000_000 * Double(threads) / rate
    } else {
      interval = 0
    }
    for index in stride(from: thread, to: load.connections, by: threads) {
      lanes.append(
        Lane(
          index: lanes.count, dialect: dialect, target: index % targets.count,
          inFlight: load.inFlight, features: features))
    }
  }

  /// Runs to the end. `onMeasure` is called when the measured time starts (true) and ends.
  package func run(onMeasure: (Bool) -> Void = { _ in }) throws -> Measurement {
    try openAll()
    isIssuing = true
    scheduleStart = now
    let measureAt = now + Int64(load.warmup * 1e9)
    var endAt = Int64.max
    if case .seconds(let seconds) = load.end { endAt = measureAt + Int64(seconds * 1e9) }
    var started: Int64?
    var ended: Int64?
    var giveUpAt = Int64.max
    var tickAt = now
    for lane in lanes { fill(lane) }
    while true {
      if started == nil && now >= measureAt {
        started = now
        tally.startMeasuring()
        onMeasure(true)
      }
      if now >= tickAt {
        tickAt = now + 250_000_000
        try tick()
      }
      if isIssuing {
        if !load.arrival.isClosed { issueDue() }
        if now >= endAt || isDone || progress.stop.load(ordering: .relaxed) { isIssuing = false }
      }
      flushDirty()
      let busy = lanes.contains { $0.outstanding > 0 }
      if !isIssuing {
        // A bounded run is measured to its last reply, a timed one to the end of its time.
        if ended == nil && (endAt != .max || !busy) {
          ended = now
          onMeasure(false)
        }
        if !busy { break }
        if giveUpAt == .max { giveUpAt = now + Int64(load.resolveWithin * 1e9) }
        if now >= giveUpAt { break }
      }
      try turn(until: min(tickAt, nextDue(), endAt > now ? endAt : .max))
      if ended == nil { tally.measured = tally.answersInHistogram }
    }
    return finish(started: started ?? now, ended: ended ?? now)
  }

  private func finish(started: Int64, ended: Int64) -> Measurement {
    for lane in lanes {
      tally.unresolved += lane.outstanding
      drop(lane)
    }
    return Measurement(tally: tally, started: started, ended: ended)
  }

  private var isDone: Bool {
    if let budget, issued >= budget { return true }
    return workload.isExhausted
  }

  // MARK: - Turning

  /// One wait, then everything that became ready.
  func turn(until limit: Int64) throws {
    let ready = try poller.wait(nanoseconds: limit - now)
    now = Clocks.monotonic()
    wallMilliseconds = Clocks.wallMilliseconds()
    for index in 0..<ready {
      let event = poller[index]
      let lane = lanes[event.token]
      if event.writable { writable(lane) }
      if event.readable && lane.descriptor >= 0 { read(lane) }
    }
  }

  private func tick() throws {
    progress.publish(tally, since: &published)
    for lane in lanes {
      try lane.dialect.refresh(wallMilliseconds: wallMilliseconds)
      if case .down(let until) = lane.state, until <= now { connect(lane) }
      if lane.waiting > 0 { resendDue(lane) }
    }
  }

  private func nextDue() -> Int64 {
    var next = Int64.max
    if isIssuing && !load.arrival.isClosed && hasRoom { next = dueTime() }
    for lane in lanes {
      if case .down(let until) = lane.state { next = min(next, max(until, now + 1_000_000)) }
      if lane.waiting > 0 { next = min(next, now + 5_000_000) }
    }
    if next <= now + 5_000_000 { housekeep() }
    return next
  }

  /// What has a time of its own and is rare: reconnects and pauses.
  private func housekeep() {
    for lane in lanes {
      if case .down(let until) = lane.state, until <= now { connect(lane) }
      if lane.waiting > 0 { resendDue(lane) }
    }
    flushDirty()
  }

  // MARK: - Issuing

  /// Closed loop: every free place of the lane takes an operation.
  func fill(_ lane: Lane<D>) {
    guard load.arrival.isClosed, isIssuing, lane.state == .open else { return }
    while !lane.free.isEmpty && !isDone { issue(lane, intended: now) }
  }

  private func dueTime() -> Int64 {
    switch load.arrival {
    case .closed: now
    case .rate: scheduleStart + Int64(Double(issued) * interval)
    case .trace(let speed): scheduleStart + Int64(Double(workload.nextOffset) / speed)
    }
  }

  private var hasRoom: Bool { lanes.contains { $0.state == .open && !$0.free.isEmpty } }

  /// Open loop: everything whose time has come, as far as there are free places. What finds none
  /// is issued later, and its latency still counts from its own time.
  private func issueDue() {
    while !isDone {
      let due = dueTime()
      guard due <= now, let lane = nextLane() else { return }
      issue(lane, intended: due)
    }
  }

  private func nextLane() -> Lane<D>? {
    for _ in lanes.indices {
      cursor = cursor + 1 < lanes.count ? cursor + 1 : 0
      let lane = lanes[cursor]
      if lane.state == .open && !lane.free.isEmpty { return lane }
    }
    return nil
  }

  private func issue(_ lane: Lane<D>, intended: Int64) {
    guard let slot = lane.free.popLast() else { return }
    issued += 1
    let subject = workload.next(into: &lane.amounts, base: slot * features)
    let time = UInt64(lane.dialect.mintTime(wallMilliseconds: wallMilliseconds))
    let noise = random.next()
    lane.requests[slot] = Request(
      phase: .sent, isUncertain: false, attempts: 0, subject: Int32(subject),
      high: time << 16 | noise & 0xFFFF, low: random.next(), intended: intended, due: 0)
    send(lane, slot)
  }

  /// Renders the request in `slot` behind what is already to be sent.
  func send(_ lane: Lane<D>, _ slot: Int) {
    let request = lane.requests[slot]
    lane.dialect.render(
      subject: Int(request.subject), high: request.high, low: request.low,
      correlation: UInt64(slot + 1), amounts: lane.amounts, base: slot * features,
      into: lane.output)
    if D.isOrdered { lane.pushOrder(slot) }
    markDirty(lane)
  }

  func markDirty(_ lane: Lane<D>) {
    if !lane.isDirty {
      lane.isDirty = true
      dirty.append(lane.index)
    }
  }

  private func flushDirty() {
    for index in dirty {
      let lane = lanes[index]
      lane.isDirty = false
      flush(lane)
    }
    dirty.removeAll(keepingCapacity: true)
  }
}
