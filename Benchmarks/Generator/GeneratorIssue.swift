// What is sent: new operations as places become free (closed loop) or due (open loop), and old
// ones again under their ids.

extension Generator {
  /// Closed loop: every free frame of the lane takes operations.
  @inline(__always)
  func fill(_ lane: Lane) {
    guard isClosed, isIssuing, lane.state == .open else { return }
    while lane.freeCount > 0 && !isDone { issue(lane, intended: now) }
  }

  func dueTime() -> Int64 {
    switch load.arrival {
    case .closed: now
    case .rate: scheduleStart + Int64(Double(issued) * interval)
    case .trace(let speed):
      unsafe scheduleStart + Int64(Double(workload.pointee.nextOffset) / speed)
    }
  }

  var hasRoom: Bool { lanes.contains { $0.state == .open && $0.freeCount > 0 } }

  /// Open loop: everything whose time has come, as far as there are free places. What finds none
  /// is issued later, and its latency still counts from its own time.
  func issueDue() {
    while !isDone {
      let due = dueTime()
      guard due <= now, let lane = nextLane() else { return }
      issue(lane, intended: due)
      markDirty(lane)
    }
  }

  private func nextLane() -> Lane? {
    for _ in lanes.indices {
      cursor = cursor + 1 < lanes.count ? cursor + 1 : 0
      let lane = lanes[cursor]
      if lane.state == .open && lane.freeCount > 0 { return lane }
    }
    return nil
  }

  /// One frame of new operations, rendered behind what is already to be sent.
  @inline(__always)
  private func issue(_ lane: Lane, intended: Int64) {
    let records = min(lane.records, budget - issued)
    guard records > 0, let frame = lane.takeFrame(records) else { return }
    framesBusy += 1
    issued += records
    dialect.begin(correlation: UInt64(frame + 1), records: records, into: lane.output)
    let time = UInt64(dialect.mintTime(wallMilliseconds: wallMilliseconds))
    let first = frame * lane.records
    for slot in first..<first + records {
      let amounts = unsafe lane.amounts + slot * features
      let subject = unsafe workload.pointee.next(into: amounts)
      let noise = unsafe random.pointee.next()
      let asked = unsafe Asked(
        subject: subject, high: time << 16 | noise & 0xFFFF, low: random.pointee.next())
      unsafe lane.requests[slot] = Request(
        phase: .sent, isUncertain: false, attempts: 0, subject: Int32(truncatingIfNeeded: subject),
        high: asked.high, low: asked.low, intended: intended, due: 0)
      unsafe dialect.render(asked, amounts: amounts, into: lane.output)
      if D.isOrdered { lane.pushOrder(slot) }
    }
  }

  /// Renders the request in `slot` once more, alone.
  func resend(_ lane: Lane, _ slot: Int) {
    let request = unsafe lane.requests[slot]
    dialect.begin(
      correlation: UInt64(lane.frames + slot + 1), records: 1, into: lane.output)
    unsafe dialect.render(
      Asked(subject: Int(request.subject), high: request.high, low: request.low),
      amounts: lane.amounts + slot * features, into: lane.output)
    markDirty(lane)
  }

  func markDirty(_ lane: Lane) {
    if !lane.isDirty {
      lane.isDirty = true
      dirty.append(lane.index)
    }
  }

  func flushDirty() {
    guard !dirty.isEmpty else { return }
    for index in dirty {
      let lane = lanes[index]
      lane.isDirty = false
      flush(lane)
    }
    dirty.removeAll(keepingCapacity: true)
  }
}
