// The event loop of one thread: keeps its connections filled (closed loop) or the schedule kept
// (open loop), takes replies off, and settles what has no answer yet by sending it again under the
// same id.
//
// Why this shape: it must not be what is measured, so an answer and the request that follows it
// cost some tens of nanoseconds. Everything they need is allocated before the first one is sent
// and lies flat; what is written for each of them is reached through addresses that never change,
// since a property of a class would be guarded at each access. A request is a template copy, a few
// stores, and its share of one write for each readable connection and turn. Latency counts from
// the moment an operation was to be sent by the schedule, so a stalled server is charged for all
// that it made wait.
//
// Promise: at the end every operation is answered for good, or counted as unresolved.

internal import Glibc
internal import Synchronization

@safe package final class Generator<D: Dialect> {
  let load: Load
  let targets: [Target]
  let progress: RunProgress
  let workload: UnsafeMutablePointer<Workload>
  let random: UnsafeMutablePointer<SplitMix>
  let counts: Counts
  var dialect: D
  let lanes: [Lane]
  let poller: Poller
  let features: Int
  let isClosed: Bool
  /// Received bytes, before it is known whether they end with a whole message.
  let scratch = Bytes(capacity: 1 << 17)

  var now: Int64 = 0
  var wallMilliseconds: Int64 = 0
  /// How many operations this thread may still start.
  let budget: Int
  private let isBounded: Bool
  var isIssuing = false
  var issued = 0
  /// The schedule: when operation `issued` is due, open loop only.
  var scheduleStart: Int64 = 0
  let interval: Double
  var cursor = 0
  var dirty: [Int] = []
  /// Connections that are open, and that are down; frames that await an answer; operations that
  /// await another sending.
  var openCount = 0
  var downCount: Int
  var framesBusy = 0
  var waitingCount = 0
  private var refreshAt: Int64 = 0
  private var published = (0, 0, 0, 0)
  /// Why the last connection failed, for the message if none succeeds.
  var lastError: String?

  /// - Parameter thread: which of `threads` this one is; it takes its share of all.
  package init(
    load: Load, targets: [Target], dialect: D, workload: Workload, progress: RunProgress,
    thread: Int = 0, threads: Int = 1, seed: UInt64
  ) throws {
    precondition(!targets.isEmpty && load.connections > 0 && load.inFlight > 0)
    precondition(load.records > 0 && (load.records == 1 || (load.arrival.isClosed && !D.isOrdered)))
    self.load = load
    self.targets = targets
    self.progress = progress
    self.dialect = dialect
    poller = try Poller()
    unsafe self.workload = .allocate(capacity: 1)
    unsafe self.workload.initialize(to: workload.forThread(thread, of: threads))
    unsafe random = .allocate(capacity: 1)
    unsafe random.initialize(
      to: SplitMix(seed: seed ^ UInt64(thread + 1) &* 0x9E6C_63D0_876A_68EE))
    features = workload.amounts.count
    isClosed = load.arrival.isClosed
    counts = Counts(subjects: workload.names.count, features: features)
    if case .requests(let total) = load.end {
      budget = total / threads + (thread < total % threads ? 1 : 0)
    } else {
      budget = .max
    }
    isBounded = budget != .max || !workload.rows.isEmpty
    if case .rate(let rate) = load.arrival {
      interval = 1_000_000_000 * Double(threads) / rate
    } else {
      interval = 0
    }
    let features = features
    lanes = stride(from: thread, to: load.connections, by: threads).enumerated().map {
      Lane(
        index: $0, target: $1 % targets.count, inFlight: load.inFlight,
        records: load.records, features: features)
    }
    downCount = lanes.count
  }

  deinit {
    unsafe workload.deinitialize(count: 1)
    unsafe workload.deallocate()
    unsafe random.deallocate()
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
    for lane in lanes {
      fill(lane)
      flush(lane)
    }
    while true {
      if started == nil && now >= measureAt {
        started = now
        counts.startMeasuring()
        onMeasure(true)
      }
      if now >= tickAt {
        tickAt = now + 250_000_000
        try tick()
      }
      if isIssuing {
        if !isClosed { issueDue() }
        if now >= endAt || isDone || progress.stop.load(ordering: .relaxed) { isIssuing = false }
      }
      flushDirty()
      if !isIssuing {
        // A bounded run is measured to its last reply, a timed one to the end of its time.
        if ended == nil && (endAt != .max || framesBusy == 0) {
          ended = now
          counts.n.measured = counts.n.recorded
          onMeasure(false)
        }
        if framesBusy == 0 { break }
        if giveUpAt == .max { giveUpAt = now + Int64(load.resolveWithin * 1e9) }
        if now >= giveUpAt { break }
      }
      try turn(until: min(tickAt, nextDue(), endAt > now ? endAt : .max))
    }
    if ended == nil { counts.n.measured = counts.n.recorded }
    return finish(started: started ?? now, ended: ended ?? now)
  }

  private func finish(started: Int64, ended: Int64) -> Measurement {
    for lane in lanes {
      counts.n.unresolved += lane.places - lane.count(.free)
      drop(lane)
    }
    return Measurement(tally: counts.tally(), started: started, ended: ended)
  }

  @inline(__always)
  var isDone: Bool {
    guard isBounded else { return false }
    return unsafe issued >= budget || workload.pointee.isExhausted
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
    progress.publish(counts, since: &published)
    if now >= refreshAt {
      refreshAt = now + 1_000_000_000
      try dialect.refresh(wallMilliseconds: wallMilliseconds)
    }
    housekeep()
  }

  private func nextDue() -> Int64 {
    var next = Int64.max
    if isIssuing && !isClosed && hasRoom { next = dueTime() }
    if downCount + waitingCount > 0 {
      for lane in lanes {
        if case .down(let until) = lane.state { next = min(next, max(until, now + 1_000_000)) }
      }
      if waitingCount > 0 { next = min(next, now + 5_000_000) }
      if next <= now + 5_000_000 { housekeep() }
    }
    return next
  }

  /// What has a time of its own and is rare: reconnects and pauses.
  private func housekeep() {
    guard downCount + waitingCount > 0 else { return }
    for lane in lanes {
      if case .down(let until) = lane.state, until <= now { connect(lane) }
      if lane.waiting > 0 { resendDue(lane) }
    }
    flushDirty()
  }
}
