// One flush per tick: handlers that have answers to write note themselves here, and one task at
// the end of the event loop's turn writes each connection's answers in one go (house rule 6).

import NIOCore

final class LoopFlusher {
  private let eventLoop: any EventLoop
  private var dirty: [ClientHandler] = []
  private var scheduled = false

  init(eventLoop: any EventLoop) { self.eventLoop = eventLoop }

  func add(_ handler: ClientHandler) {
    dirty.append(handler)
    guard !scheduled else { return }
    scheduled = true
    eventLoop.assumeIsolated().execute { self.flush() }
  }

  private func flush() {
    scheduled = false
    let handlers = dirty
    dirty.removeAll(keepingCapacity: true)
    for handler in handlers { handler.flushAnswers() }
  }
}
