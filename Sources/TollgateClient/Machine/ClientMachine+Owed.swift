// Paying back: POST what was let through, CANCEL what was denied after a send of unknown outcome.
// One frame of each kind is in flight at a time, so that a returning sidecar is not flooded and
// live calls keep their room.

internal import DequeModule
internal import TollgateWire

extension ClientMachine {
  mutating func adopt(_ posts: [Record], _ cancels: [Record]) {
    book.adopt(posts: posts, cancels: cancels)
  }

  mutating func pumpOwed(_ id: ConnectionID, _ now: Now) {
    guard let connection = connections[id] else { return }
    let bytesMax = connection.frameBytesMax - Self.frameOverhead
    let recordsMax = min(settings.recordsPerFrameMax, connection.recordsMax)
    if connection.hasRoom(settings.inFlightMax), !book.posts.isEmpty {
      lastShipment += 1
      let frame = book.posts.nextFrame(
        number: lastShipment, recordsMax: recordsMax, bytesMax: bytesMax, now: now.monotonic,
        timeout: settings.owedTimeout)
      let shipment = Shipment.posts(frame.records.map(\.id), number: lastShipment)
      send(frame, .post, .clientFallback, shipment, on: id)
    }
    if let connection = connections[id], connection.hasRoom(settings.inFlightMax),
      !book.cancels.isEmpty
    {
      lastShipment += 1
      let frame = book.cancels.nextFrame(
        number: lastShipment, recordsMax: recordsMax, bytesMax: bytesMax, now: now.monotonic,
        timeout: settings.owedTimeout)
      let shipment = Shipment.cancels(frame.records.map(\.id), number: lastShipment)
      send(frame, .cancel, [], shipment, on: id)
    }
  }

  private mutating func send(
    _ frame: (records: [Record], resent: Int), _ opcode: Opcode, _ flags: FrameFlags,
    _ shipment: Shipment, on id: ConnectionID
  ) {
    guard !frame.records.isEmpty else { return }
    connections[id]?.framesInFlight += 1
    statistics.recordsSent += Int64(frame.records.count)
    statistics.retries += Int64(frame.resent)
    effects.append(
      .send(
        id,
        Outgoing(
          opcode: opcode, flags: flags,
          deadlineMilliseconds: Self.headerDeadline(settings.owedTimeout), records: frame.records,
          shipment: shipment)))
  }

  mutating func owedAnswered(_ shipment: Shipment, _ records: [DecisionRecord], _ now: Now) {
    switch shipment {
    case .calls: preconditionFailure("a call is not owed")
    case .posts(let ids, let number):
      for (id, record) in zip(ids, records) {
        let acknowledgement = Acknowledgement(post: record)
        guard let settled = book.posts.settle(id, acknowledgement) else { continue }
        switch acknowledgement {
        case .done: statistics.posted += 1
        case .refused(let reason):
          statistics.postsRefused += 1
          effects.append(.refusedPost(settled, reason))
        case .later: break
        }
      }
      book.posts.finished(
        number: number, ids: ids, failed: false, now: now.monotonic, pause: settings.reconnect,
        using: &random)
      book.endOutageIfPosted()
    case .cancels(let ids, let number):
      for (id, record) in zip(ids, records)
      where book.cancels.settle(id, Acknowledgement(cancel: record)) != nil {
        statistics.cancelled += 1
      }
      book.cancels.finished(
        number: number, ids: ids, failed: false, now: now.monotonic, pause: settings.reconnect,
        using: &random)
    }
  }

  mutating func wakeOwed(_ now: Now) {
    book.posts.wake(now.monotonic)
    book.cancels.wake(now.monotonic)
  }

  /// The connection was gone before the shipment reached it: nothing of it was sent.
  mutating func undelivered(_ shipment: Shipment) {
    switch shipment {
    case .calls(let tokens):
      for token in tokens.reversed() where calls[token] != nil {
        calls[token]?.phase = .queued
        queue.prepend(token)
      }
    case .posts(_, let number): book.posts.lost(number: number)
    case .cancels(_, let number): book.cancels.lost(number: number)
    }
  }
}
