// One flush per tick: conversations that have answers to write note themselves here, and one task
// at the end of the event loop's turn writes each connection's answers in one go (house rule 6).
// What is for another thread is handed over behind them, in one go as well.

import NIOCore

final class LoopFlusher {
  private let eventLoop: any EventLoop
  private var dirty: [Conversation] = []
  private var outboxes: [LocalOutbox] = []
  private var scheduled = false

  init(eventLoop: any EventLoop) { self.eventLoop = eventLoop }

  func add(_ session: Conversation) {
    dirty.append(session)
    schedule()
  }

  func add(_ outbox: LocalOutbox) {
    outboxes.append(outbox)
    schedule()
  }

  private func schedule() {
    guard !scheduled else { return }
    scheduled = true
    eventLoop.assumeIsolated().execute { self.flush() }
  }

  private func flush() {
    let sessions = dirty
    dirty.removeAll(keepingCapacity: true)
    for session in sessions { session.flushAnswers() }
    scheduled = false
    if !dirty.isEmpty { schedule() }
    let outboxes = outboxes
    self.outboxes.removeAll(keepingCapacity: true)
    for outbox in outboxes { outbox.handOver() }
  }
}
